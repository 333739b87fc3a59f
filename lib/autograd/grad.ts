import { checkFunction, checkList, checkNames, kindOf } from '../arguments';
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
  type Call,
  type InputGradients,
  type Step,
  type Tape,
  type Variable,
} from './tape';

export const isTensor = (value: unknown): boolean => value instanceof Tensor;

/** Any tensor as rows, in place. Rows may lie apart. */
export const matrix = (tensor: Tensor): Tensor =>
  tensor.shape.length === 2
    ? tensor
    : tensor.shape.length === 1
      ? tensor.reshape([1, tensor.size])
      : tensor.reshape([tensor.shape[0]!, sizeOf(tensor.shape.slice(1))]);

/** Columns of a gradient as a matrix. */
const widthOf = (shape: readonly number[]): number =>
  shape.length === 1 ? shape[0]! : sizeOf(shape.slice(1));

/** Makes zeros of what nothing was written to. */
function settle(variable: Variable): void {
  const { grad, holes } = variable;
  if (!grad || !holes) return;
  scope(() => holes.forEach(([begin, end]) => fill({ x: matrix(grad).columns(begin, end) })));
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

/** The columns of a base's gradient that a variable's is, and how it is seen there. */
interface Spot {
  readonly base: Variable;
  readonly columns: Range;
  readonly view: (grad: Tensor) => Tensor;
}

/** None for what is no columns of a base, such as some of its rows. */
function spotOf(variable: Variable): Spot | undefined {
  const { from, shape } = variable;
  if (!from) return { base: variable, columns: [0, widthOf(shape)], view: (grad) => grad };
  const under = spotOf(from.base);
  if (!under) return undefined;
  const { base, columns: all } = under;
  const view = (grad: Tensor) => from.again(under.view(grad));
  if (!from.columns)
    return sizeOf(shape) === sizeOf(from.base.shape) ? { base, columns: all, view } : undefined;
  const rows = base.shape.length === 1 ? 1 : base.shape[0];
  if (from.base.shape[0] !== rows) return undefined;
  const [begin, end] = from.columns;
  return { base, columns: [all[0] + begin, all[0] + end], view };
}

const within = ([begin, end]: Range, [first, last]: Range) => first <= begin && end <= last;

/**
 * Where a variable's gradient may be written as a whole, in its base's, if nothing was yet: who asks must do
 * so. Its rows may lie apart only if `apart` says so.
 */
function roomOf(variable: Variable, apart: boolean): Tensor | undefined {
  const spot = spotOf(variable);
  if (!spot) return undefined;
  const { base, columns, view } = spot;
  if (!base.grad) {
    if (base === variable) return undefined;
    base.grad = keep(Tensor.empty(base.shape, base.dtype, base.device));
    base.owned = true;
    base.holes = [[0, widthOf(base.shape)]];
  }
  if (!base.holes?.some((each) => within(columns, each))) return undefined;
  const found = view(base.grad);
  if (!apart && !found.dense) return undefined;
  const [begin, end] = columns;
  const rest = base.holes
    .flatMap((each): Range[] =>
      within(columns, each)
        ? [
            [each[0], begin],
            [end, each[1]],
          ]
        : [each],
    )
    .filter(([first, last]) => first < last);
  if (rest.length > 0) base.holes = rest;
  else delete base.holes;
  return found;
}

/** Adds a gradient to a variable's. */
export function give(variable: Variable, gradient: Tensor, call: string): void {
  const { shape, dtype } = variable;
  if (gradient.dtype !== dtype || gradient.shape.join() !== shape.join()) {
    throw new TypeError(`${call}: its gradient rule gave ${gradient}, expected ${dtype}[${shape.join(',')}]`);
  }
  const room = roomOf(variable, true);
  if (room) {
    cast({ x: matrix(gradient), out: { y: matrix(room) } });
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

/** Where the rule of one step may write the gradients of its inputs, and what it may add to. */
class Rooms {
  readonly #inputs: Readonly<Record<string, Variable>>;
  readonly #written = new Map<string, Tensor>();
  readonly #summed = new Set<Variable>();

  constructor(inputs: Readonly<Record<string, Variable>>) {
    this.#inputs = inputs;
  }

  readonly room: Call['room'] = (name, rows) => {
    const variable = this.#inputs[name];
    const found = variable && roomOf(variable, rows === 'apart');
    if (found) this.#written.set(name, found);
    return found;
  };

  readonly sum: Call['sum'] = (name) => {
    const out = this.room(name, 'apart');
    if (out) return { out };
    const variable = this.#inputs[name];
    const grad = variable?.grad;
    if (!grad || variable.holes || this.#summed.has(variable)) return {};
    if (variable.owned) {
      this.#summed.add(variable);
      this.#written.set(name, grad);
      return { plus: grad, out: grad };
    }
    // It may be somebody else's too: a sum of its own takes its place.
    const plus = grad.reshape(grad.shape);
    grad.dispose();
    delete variable.grad;
    return { plus };
  };

  /** Gives the inputs what the rule made. */
  give(gradients: InputGradients, call: string): void {
    for (const [name, variable] of Object.entries(this.#inputs)) {
      const gradient = gradients[name];
      const written = this.#written.get(name);
      if (written && gradient !== written)
        throw new Error(`${call}: its gradient rule asked for room for ${name} and did not write there`);
      if (gradient && !written) give(variable, gradient, call);
    }
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
          const rooms = new Rooms(inputs);
          const { room, sum } = rooms;
          const gradients = vjp({
            args: valuesOf(args),
            results: valuesOf(results),
            ...{ grad, inputs, room, sum },
          });
          watch?.(opName, gradients);
          rooms.give(gradients, opName);
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
  /** They take the place of what is there instead of being added. */
  readonly overwrite?: boolean;
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

const names: readonly (keyof GradOptions)[] = ['into', 'overwrite', 'seed', 'copies', 'watch'];

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
export function grad(fn: () => Tensor, parameters: readonly Tensor[], options: GradOptions = {}): Gradients {
  checkFunction('grad', fn);
  checkList('grad', 'parameters', parameters, isTensor, 'tensor');
  checkNames('grad', options, names, 'options');
  const { into, overwrite = false, seed, copies = new Map<Tensor, Tensor>(), watch } = options;
  if (into !== undefined) checkList('grad', 'into', into, isTensor, 'tensor');
  if (seed !== undefined && !isTensor(seed))
    throw new TypeError(`grad: seed is ${kindOf(seed)}, expected a tensor`);
  if (into && into.length !== parameters.length)
    throw new TypeError(`grad: into has ${into.length} tensors, expected ${parameters.length}`);
  if (new Set(parameters).size < parameters.length) {
    const again = parameters.findIndex((parameter, i) => parameters.indexOf(parameter) < i);
    throw new RangeError(`grad: parameters has number ${again} a second time, expected each tensor once`);
  }
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
        if (overwrite) leaf.holes = [[0, widthOf(leaf.shape)]];
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
export function noGrad<R>(fn: () => R): R {
  checkFunction('noGrad', fn);
  return recording(undefined, fn);
}
