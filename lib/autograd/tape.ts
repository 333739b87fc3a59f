import type { Range } from '../shape';
import { keep, onView, Tensor } from '../tensor';

/** What gradients are summed for: a parameter, or something that was computed from one. */
export interface Variable {
  readonly shape: readonly number[];
  readonly dtype: Tensor['dtype'];
  readonly device: Tensor['device'];
  /** A view's gradient lies inside its base's: `again` makes the same view of another tensor. */
  readonly from?: {
    readonly base: Variable;
    readonly again: (tensor: Tensor) => Tensor;
    readonly columns: Range | undefined;
  };
  grad?: Tensor;
  /** Columns of `grad` that nothing was written to yet: zeros, once it is read. */
  holes?: readonly Range[];
  /** Whether `grad` is ours to add to, or belongs to a rule that may have given it away twice. */
  owned?: boolean;
}

type Arguments = Readonly<Record<string, Tensor | number | boolean | undefined>>;
type Tensors = Readonly<Record<string, Tensor>>;

/** What a gradient rule is given: the call, as far as the op said that it is needed, and `grad`. */
export interface Call {
  /** Tensors that the op's `saves` names, and all attributes. */
  readonly args: Arguments;
  /** Outputs that `saves` names. */
  readonly results: Tensors;
  /** Gradients of the outputs; those that nothing came from are missing. */
  readonly grad: Readonly<Record<string, Tensor | undefined>>;
  /** Shape and dtype of the inputs whose gradients are wanted. */
  readonly inputs: Readonly<Record<string, Variable>>;
  /** Where the gradient of an input is to be written instead of to a new tensor, if there is a place for it. */
  readonly room: (name: string, rows?: 'apart') => Tensor | undefined;
  /**
   * The same for rules that can add: `plus`, where there is one, is to be added to what they make, and may be `out`.
   * Its rows may lie apart.
   */
  readonly sum: (name: string) => { readonly plus?: Tensor; readonly out?: Tensor };
}

/** Gradients of the inputs, by name: each of its input's dtype and shape, or left out. */
export type InputGradients = Readonly<Record<string, Tensor | undefined>>;
export type Vjp = (call: Call) => InputGradients;

/** A tensor that a step needs on the way back, and that is computed again there instead of being kept. */
export class Derived {
  readonly #compute: () => Tensor;
  #value: Tensor | undefined;

  constructor(compute: () => Tensor) {
    this.#compute = compute;
  }

  /** The tensor, computed when it is first asked for. */
  get value(): Tensor {
    return (this.#value ??= recording(undefined, () => keep(this.#compute())));
  }

  dispose(): void {
    this.#value?.dispose();
    this.#value = undefined;
  }
}

type Saved<T> = Readonly<Record<string, T | Derived>>;

/** A call on the tape. */
export interface Step {
  readonly opName: string;
  readonly vjp: Vjp;
  readonly args: Saved<Arguments[string]>;
  readonly results: Saved<Tensor>;
  /** Goes when the step does: later ones alone have used it. */
  readonly derived?: Derived;
  readonly inputs: Readonly<Record<string, Variable>>;
  readonly outputs: Readonly<Record<string, Variable>>;
}

/** The calls so far, in order. */
export type Tape = Step[];

const variables = new WeakMap<Tensor, Variable>();
const derivations = new WeakMap<Tensor, Derived>();
let current: Tape | undefined;

export const variableOf = (tensor: Tensor): Variable | undefined => variables.get(tensor);

/** Makes `tensor` one to take gradients for, or the same one as `variable`. */
export function track(tensor: Tensor, variable?: Variable): Variable {
  const { shape, dtype, device } = tensor;
  const made = variable ?? { shape, dtype, device };
  variables.set(tensor, made);
  return made;
}

export function untrack(tensor: Tensor): void {
  variables.delete(tensor);
}

/** From now on steps that need `tensor` keep `derived` instead. */
export function derive(tensor: Tensor, derived: Derived): void {
  derivations.set(tensor, derived);
}

/** What a step keeps to have `tensor` on the way back. */
export const hold = (tensor: Tensor): Tensor | Derived => derivations.get(tensor) ?? alias(tensor);

/** What was saved, as tensors. */
export const valuesOf = <T>(saved: Saved<T>): Readonly<Record<string, T>> =>
  Object.fromEntries(
    Object.entries(saved).map(([name, each]) => [name, each instanceof Derived ? (each.value as T) : each]),
  );

/** The same memory under a handle of its own, which outlives the scopes around it. */
export function alias(tensor: Tensor): Tensor {
  return recording(undefined, () => keep(tensor.reshape(tensor.shape)));
}

/** Runs `fn` while calls go to `tape`, or to none. */
export function recording<R>(tape: Tape | undefined, fn: () => R): R {
  const outer = current;
  current = tape;
  try {
    return fn();
  } finally {
    current = outer;
  }
}

export const isRecording = (): boolean => current !== undefined;

/** Whether a call with these tensors has to be noted. */
export function isTracked(args: Readonly<Record<string, unknown>>): boolean {
  if (!current) return false;
  for (const name in args) if (variables.has(args[name] as Tensor)) return true;
  return false;
}

interface Recorded {
  readonly opName: string;
  readonly vjp: Vjp | undefined;
  readonly saves: readonly string[];
  readonly inPlace: readonly string[];
}

/** Before a tracked call runs: whether it can be differentiated. */
export function checkRecordable(op: Recorded, args: Readonly<Record<string, unknown>>): void {
  if (!op.vjp) throw new Error(`${op.opName}: it has no gradient; call it within noGrad, or not at all`);
  const overwritten = op.inPlace.find((name) => args[name] !== undefined);
  if (overwritten)
    throw new Error(
      `${op.opName}: ${overwritten} is given, expected none while gradients are recorded; it is updated in place`,
    );
}

/** After a tracked call: notes it. */
export function record(op: Recorded, args: Arguments, results: Tensors): void {
  const inputs: Record<string, Variable> = {};
  const outputs: Record<string, Variable> = {};
  const saved: Record<string, Arguments[string] | Derived> = {};
  const kept: Record<string, Tensor | Derived> = {};
  for (const [name, arg] of Object.entries(args)) {
    if (!(arg instanceof Tensor)) saved[name] = arg;
    else {
      const variable = variables.get(arg);
      if (variable) inputs[name] = variable;
      if (op.saves.includes(name)) saved[name] = hold(arg);
    }
  }
  for (const [name, result] of Object.entries(results)) {
    if (result.dtype !== 'i32') outputs[name] = track(result); // choices have no gradients
    if (op.saves.includes(name)) kept[name] = hold(result);
  }
  note({ opName: op.opName, vjp: op.vjp!, args: saved, results: kept, inputs, outputs });
}

export function note(step: Step): void {
  current!.push(step);
}

/** Frees what a step kept. */
export function release({ args, results, derived }: Step): void {
  derived?.dispose();
  for (const value of [...Object.values(args), ...Object.values(results)])
    if (value instanceof Tensor) value.dispose();
}

onView((view, base, again, columns) => {
  const variable = current && variables.get(base);
  if (!variable) return;
  const { shape, device } = view;
  variables.set(view, { shape, dtype: variable.dtype, device, from: { base: variable, again, columns } });
});
