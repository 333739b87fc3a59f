import type { Device } from '../device';
import type { Op } from '../op';
import { Tensor, type DType } from '../tensor';
import {
  attrsOf,
  completeSizes,
  describe as shapeOf,
  dtypesOf,
  inputsOf,
  letters,
  read,
  roundTo,
  toTensor,
  type Case,
} from './cases';
import { references, type Attrs, type Inputs } from './reference';

/** Largest difference to f64 that sums in f32 may make, as a share of the largest magnitude. */
const tolerances: Readonly<Record<string, number>> = {
  matmul: 2e-6, // sums of up to 1,025 products
  matmul_add: 2e-6,
  norm_matmul: 2e-6,
  selective_scan: 2e-6, // the bound that the fixtures are held to as well
  selective_scan_backward: 4e-6, // of products with what was itself summed up
  expert_up: 2e-6, // two products, multiplied
  norm_route: 4e-6, // plainly in f32, weights of 257 experts with logits up to 16 are up to 2.7e-6 off
  norm_route_up: 4e-6,
  expert_layer_step: 6e-6, // the same, and one more
  mamba_step: 7e-6, // of a convolution, two products and a scan, one after the other
  mamba_layer_step: 1e-5, // the same with two more
};

/** What is made of a value that was rounded to a dtype on the way, and the letter of that dtype. */
const roundedOnTheWay: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  norm_matmul: { y: 'T' },
};

/** What is rounded to its dtype at random, to either neighbour, where that is not f32. */
const drawn: Readonly<Record<string, string>> = {
  selective_scan: 'state',
  mamba_step: 'scanState',
  mamba_layer_step: 'scanState',
};

/** The distance of two neighbours, as a share of the larger: at most. */
const unit: Readonly<Partial<Record<DType, number>>> = { bf16: 2 ** -7, f16: 2 ** -10 };

/** How far a result is from the right one, and how far it may be: shares of the largest magnitude. */
export interface Outcome {
  readonly result: string;
  readonly dtype: DType;
  readonly error: number;
  readonly bound: number;
}

export type Results = Readonly<Record<string, Tensor>>;

const largest = (x: ArrayLike<number>) => {
  let most = 0;
  for (let i = 0; i < x.length; i++) most = Math.max(most, Math.abs(x[i]!));
  return most;
};

/** The largest difference, relative to the largest magnitude in `wanted`. What is not a number is infinitely far. */
export function relativeError(got: ArrayLike<number>, wanted: ArrayLike<number>): number {
  if (got.length !== wanted.length) throw new Error(`${got.length} values, expected ${wanted.length}`);
  let difference = 0;
  for (let i = 0; i < wanted.length; i++) {
    if (got[i] === wanted[i]) continue; // infinities, too
    const each = Math.abs(got[i]! - wanted[i]!);
    difference = Number.isNaN(each) ? Infinity : Math.max(difference, each);
  }
  return difference / (largest(wanted) || 1);
}

/**
 * What an answer in `dtype` may be off. In half precision twice what the same maths loses that is done plainly
 * in it: from the same rounded inputs, in f32, rounded once at the end, and once `within` where one value is
 * made of another.
 */
export function boundOf(op: Op, wanted: Float64Array, dtype: DType, within: DType = 'f32'): number {
  if (dtype === 'i32') return 0;
  const rounding = (to: DType) => (to === 'f32' ? 0 : relativeError(roundTo(wanted, to), wanted));
  return (tolerances[op.opName] ?? 1e-6) + 2 * (rounding(dtype) + rounding(within));
}

/** Runs an op; what it updates in place counts as a result. */
export function call(op: Op, args: Readonly<Record<string, unknown>>): Results {
  const made = (op as (args: unknown) => Tensor | Results | undefined)(args);
  const outputs = made instanceof Tensor ? { [[...op.outputs.keys()][0]!]: made } : (made ?? {});
  const updated = [...op.inputs].filter(([name, { inPlace }]) => inPlace && args[name]);
  return { ...outputs, ...Object.fromEntries(updated.map(([name]) => [name, args[name] as Tensor])) };
}

/** What a case gives an op beside tensors. */
const constantsOf = (op: Op, each: Case): Attrs => ({ ...attrsOf(op, each.sizes), ...each.attrs });

/** What the call must be told: the dtype of Y, or one that only inputs give that are left out. */
function freeLetter(op: Op, inputs: Readonly<Record<string, unknown>>): string {
  if (letters(op).includes('Y')) return 'Y';
  const given = new Set([...op.inputs].flatMap(([name, { text }]) => (inputs[name] ? [text[0]!] : [])));
  return (
    [...op.outputs.values()]
      .map(({ text }) => text[0]!)
      .find((letter) => letter === 'T' && !given.has('T')) ?? ''
  );
}

/** All arguments of a call, with its tensors on `device`. */
export function argumentsOf(
  op: Op,
  each: Case,
  device: Device,
  place = toTensor,
  inputs = inputsOf(op, each),
): Readonly<Record<string, unknown>> {
  const tensors = Object.entries(inputs).map(([name, value]) => [name, place(value, device)] as const);
  const dtype = each.dtypes?.[freeLetter(op, inputs)];
  const free = dtype ? { dtype } : {};
  return { ...Object.fromEntries(tensors), ...constantsOf(op, each), ...free };
}

export function disposeAll(...records: readonly Readonly<Record<string, unknown>>[]): void {
  for (const record of records)
    for (const value of Object.values(record)) if (value instanceof Tensor) value.dispose();
}

/** What f64 gives where all that an op rounds on its way is rounded, for ops that say so. */
function plainly(op: Op, each: Case, attrs: Attrs, inputs: Inputs): Inputs | undefined {
  const dtype = each.dtypes?.['T'] ?? 'f32';
  if (dtype === 'f32') return undefined;
  return { ...inputs, ...references[op.opName]!(inputs, attrs, (data) => roundTo(data, dtype)) };
}

/** References update in place. */
const copyOf = (inputs: Inputs): Inputs =>
  Object.fromEntries(
    Object.entries(inputs).map(([name, { shape, data }]) => [name, { shape, data: data.slice() }]),
  );

/** One call on `device` beside its reference in f64: all that it gives. */
export async function measure(op: Op, device: Device, each: Case): Promise<Outcome[]> {
  const inputs = inputsOf(op, each);
  const args = argumentsOf(op, each, device, toTensor, inputs);
  const results = call(op, args);
  const attrs = { ...op.schema.attrs, ...constantsOf(op, each) };
  const plain = plainly(op, each, attrs, copyOf(inputs));
  const wanted: Inputs = references[op.opName]!(inputs, attrs);
  const outcomes: Outcome[] = [];
  try {
    for (const [result, tensor] of Object.entries(results)) {
      const spec = op.outputs.get(result) ?? op.inputs.get(result)!;
      const dtypes = dtypesOf(op, each.dtypes);
      const like = spec.like === undefined ? undefined : inputs[spec.like];
      const [dtype, shape] = like
        ? [like.dtype, like.shape]
        : spec.like
          ? (['f32', [0]] as const)
          : shapeOf(spec.text, completeSizes(op, each.sizes), dtypes);
      const expected = `${dtype}[${shape.join(',')}]`;
      if (String(tensor) !== expected) throw new Error(`${result} is ${tensor}, expected ${expected}`);
      const right = (wanted[result] ?? inputs[result])!.data;
      const error = relativeError(await read(tensor), right);
      const within = dtypes[roundedOnTheWay[op.opName]?.[result] ?? ''];
      const lost = plain?.[result] ? 2 * relativeError(plain[result].data, right) : 0;
      const either = drawn[op.opName] === result ? (unit[dtype] ?? 0) : 0;
      outcomes.push({ result, dtype, error, bound: boundOf(op, right, dtype, within) + lost + either });
    }
    return outcomes;
  } finally {
    disposeAll(args, results);
  }
}
