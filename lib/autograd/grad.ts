import { accumulate, add, cast, fill } from '../ops/elementwise';
import type { Range } from '../shape';
import { keep, scope, sizeOf, Tensor } from '../tensor';
import {
  recording,
  release,
  track,
  untrack,
  valuesOf,
  variableOf,
  type Step,
  type Tape,
  type Variable,
} from './tape';

/** Any tensor as rows, in place. */
const matrix = (tensor: Tensor): Tensor =>
  tensor.shape.length === 2
    ? tensor
    : tensor.shape.length === 1
      ? tensor.reshape([1, tensor.size])
      : tensor.reshape([tensor.shape[0]!, sizeOf(tensor.shape.slice(1))]);

/** Makes zeros of what nothing was written to. */
function settle(variable: Variable): void {
  const { grad, holes } = variable;
  if (!grad || !holes) return;
  scope(() => holes.forEach(([begin, end]) => fill({ x: grad.columns(begin, end) })));
  delete variable.holes;
}

/** Where a variable's gradient lies: its own tensor of zeros to begin with, or a part of its base's. */
function place(variable: Variable): Tensor {
  const { from, shape, dtype, device } = variable;
  if (from) return from.again(place(from.base));
  settle(variable);
  const { grad: given } = variable;
  if (given && variable.owned) return given;
  const own = given ? cast({ x: matrix(given) }).reshape(shape) : Tensor.empty(shape, dtype, device);
  if (!given) fill({ x: matrix(own) });
  given?.dispose();
  variable.grad = keep(own);
  variable.owned = true;
  return own;
}

/** The part of its base's gradient that some columns' will be, if nothing was written to it yet. */
function hole({ from }: Variable): Tensor | undefined {
  if (!from?.columns || from.base.from) return undefined;
  const { base, again, columns } = from;
  if (!base.grad) {
    base.grad = keep(Tensor.empty(base.shape, base.dtype, base.device));
    base.owned = true;
    base.holes = [[0, base.shape[1]!]];
  }
  return base.holes?.some((each) => within(columns, each)) ? again(base.grad) : undefined;
}

const within = ([begin, end]: Range, [first, last]: Range) => first <= begin && end <= last;

/** After it was written to. */
function fillHole({ from }: Variable): void {
  const { base, columns } = from!;
  const [begin, end] = columns!;
  const rest = base.holes!.flatMap((each): Range[] =>
    within(columns!, each)
      ? [
          [each[0], begin],
          [end, each[1]],
        ]
      : [each],
  );
  base.holes = rest.filter(([first, last]) => first < last);
}

/** Adds a gradient to a variable's. `room` is the hole that it was written to, if it was. */
export function give(variable: Variable, gradient: Tensor, call: string, room?: Tensor): void {
  const { shape, dtype } = variable;
  if (gradient.dtype !== dtype || gradient.shape.join() !== shape.join()) {
    throw new TypeError(`${call}: its gradient rule gave ${gradient}, expected ${dtype}[${shape.join(',')}]`);
  }
  if (room) {
    fillHole(variable);
  } else if (variable.from || (variable.grad && variable.owned)) {
    accumulate({ x: matrix(gradient), sum: matrix(place(variable)) });
  } else if (variable.grad) {
    const sum = keep(add(matrix(variable.grad), matrix(gradient)).reshape(shape));
    variable.grad.dispose();
    variable.grad = sum;
    variable.owned = true;
  } else {
    // Another handle: the rule may have given the same tensor to two inputs.
    variable.grad = keep(gradient.reshape(shape));
  }
}

/** Told of each call on the way back, with the gradients that its rule gave. */
export type Watch = (opName: string, gradients: Readonly<Record<string, Tensor | undefined>>) => void;

/** Walks a tape back, from gradients that stand in the variables already; frees it on the way. */
export function backward(tape: Tape, watch?: Watch): void {
  for (let step: Step | undefined; (step = tape.pop());) {
    const { opName, vjp, args, results, inputs, outputs } = step;
    Object.values(outputs).forEach(settle);
    const grad = Object.fromEntries(Object.entries(outputs).map(([name, { grad }]) => [name, grad]));
    try {
      if (Object.values(grad).some((value) => value !== undefined)) {
        scope(() => {
          const rooms = new Map<string, Tensor | undefined>();
          const room = (name: string) => {
            const found = inputs[name] && hole(inputs[name]);
            rooms.set(name, found);
            return found;
          };
          const gradients = vjp({ args: valuesOf(args), results: valuesOf(results), grad, inputs, room });
          watch?.(opName, gradients);
          for (const [name, variable] of Object.entries(inputs)) {
            const gradient = gradients[name];
            const known = rooms.get(name);
            if (gradient) give(variable, gradient, opName, gradient === known ? known : undefined);
          }
        });
      }
    } finally {
      release(step);
      for (const variable of Object.values(outputs)) {
        variable.grad?.dispose();
        delete variable.grad;
        delete variable.holes;
      }
    }
  }
}

export interface GradOptions {
  /** Gradients are added to these instead of to new tensors: for micro-batches. */
  readonly into?: readonly Tensor[];
  /** The gradient of `fn`'s result; without it, ones. */
  readonly seed?: Tensor;
  /**
   * Copies in another dtype that `fn` uses in place of the parameters that they are mapped to: what is
   * computed from a copy counts for its parameter, and the gradient has the parameter's dtype.
   */
  readonly copies?: ReadonlyMap<Tensor, Tensor>;
  /** Told of each call on the way back. */
  readonly watch?: Watch;
}

export interface Gradients {
  /** What `fn` returned. */
  readonly value: Tensor;
  /** One for each parameter, of its dtype and shape; zeros where nothing depends on it. */
  readonly gradients: readonly Tensor[];
}

/**
 * Runs `fn` and returns its value and the gradients of the value's sum, or of its product with
 * `seed`, with respect to `parameters`: reverse-mode differentiation (Griewank and Walther 2008).
 * Everything is queued; nothing waits.
 * @throws TypeError when `fn` returns something that does not depend on a parameter, Error when it
 * calls an op that has no gradient or one that updates a tracked tensor in place.
 */
export function grad(
  fn: () => Tensor,
  parameters: readonly Tensor[],
  { into, seed, copies = new Map<Tensor, Tensor>(), watch }: GradOptions = {},
): Gradients {
  if (into && into.length !== parameters.length)
    throw new TypeError(`grad: into has ${into.length} tensors, expected ${parameters.length}`);
  const known = parameters.findIndex((parameter) => variableOf(parameter));
  if (known >= 0) throw new Error(`grad: parameter ${known} is in use by another grad`);
  const tape: Tape = [];
  const leaves = parameters.map((parameter) => track(parameter));
  for (const [copy, parameter] of copies) {
    const leaf = variableOf(parameter);
    if (leaf) track(copy, leaf);
  }
  try {
    const value = recording(tape, fn);
    const result = variableOf(value);
    if (!result) throw new TypeError('grad: the value does not depend on any of the parameters');
    const gradients = scope(() => {
      leaves.forEach((leaf, i) => {
        if (!into) return;
        leaf.grad = into[i]!;
        leaf.owned = true;
      });
      if (seed) give(result, seed, 'grad: seed');
      else fill({ x: matrix(place(result)), value: 1 });
      backward(tape, watch);
      return leaves.map(place);
    });
    return { value, gradients: gradients.map((gradient) => keep(gradient)) };
  } finally {
    tape.forEach(release);
    parameters.forEach(untrack);
    for (const copy of copies.keys()) untrack(copy);
  }
}

/** Runs `fn` without noting anything: what it returns counts as constant. */
export const noGrad = <R>(fn: () => R): R => recording(undefined, fn);
