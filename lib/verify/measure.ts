import type { Device } from '../device';
import type { Op } from '../op';
import { Tensor, type DType } from '../tensor';
import { boundOfResult, relativeError, roundingsTo } from './bounds';
import {
  attrsOf,
  completeSizes,
  describe as shapeOf,
  dtypesOf,
  inputsOf,
  letters,
  read,
  toTensor,
  type Case,
} from './cases';
import { references, roundingReferences, type Attrs, type Inputs } from './reference';

export { boundOf, relativeError } from './bounds';

/** How far a result is from the right one, and how far it may be: shares of the largest magnitude. */
export interface Outcome {
  readonly result: string;
  readonly dtype: DType;
  readonly error: number;
  readonly bound: number;
}

export type Results = Readonly<Record<string, Tensor>>;

/** Runs an op; what it updates in place counts as a result. */
export function call(op: Op, args: Readonly<Record<string, unknown>>): Results {
  const made = (op as (args: unknown) => Tensor | Results | undefined)(args);
  const outputs = made instanceof Tensor ? { [[...op.outputs.keys()][0]!]: made } : (made ?? {});
  const updated = [...op.inputs].filter(([name, { inPlace }]) => inPlace && args[name]);
  return { ...outputs, ...Object.fromEntries(updated.map(([name]) => [name, args[name] as Tensor])) };
}

/** What a case gives an op beside tensors. */
const constantsOf = (op: Op, each: Case): Attrs => ({ ...attrsOf(op, each.sizes), ...each.attrs });

/** Kernels get constants in f32: 1 - beta2 is another number where that has been rounded. */
const asFloats = (attrs: Attrs): Attrs =>
  Object.fromEntries(
    Object.entries(attrs).map(([name, value]) => [
      name,
      typeof value === 'number' ? Math.fround(value) : value,
    ]),
  );

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

/** References update in place. */
const copyOf = (inputs: Inputs): Inputs =>
  Object.fromEntries(
    Object.entries(inputs).map(([name, { shape, data }]) => [name, { shape, data: data.slice() }]),
  );

/**
 * What f64 gives where all that an op rounds on its way is rounded, for ops that say so: once, or several times
 * where a result has few values.
 */
function plainly(op: Op, each: Case, attrs: Attrs, inputs: Inputs, results: Results): Inputs[] {
  const dtype = each.dtypes?.['T'] ?? 'f32';
  const reference = roundingReferences[op.opName];
  if (dtype === 'f32' || !reference) return [];
  const floats = Object.values(results).filter((tensor) => tensor.dtype !== 'i32');
  return roundingsTo(dtype, Math.min(...floats.map(({ size }) => size))).map((round) => {
    const own = copyOf(inputs);
    return { ...own, ...reference(own, attrs, round) };
  });
}

/** One call on `device` beside its reference in f64: all that it gives. */
export async function measure(op: Op, device: Device, each: Case): Promise<Outcome[]> {
  const inputs = inputsOf(op, each);
  const args = argumentsOf(op, each, device, toTensor, inputs);
  const results = call(op, args);
  const attrs = asFloats({ ...op.schema.attrs, ...constantsOf(op, each) });
  const plain = plainly(op, each, attrs, inputs, results);
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
      const lost = plain.map((each) => (each[result] ? relativeError(each[result].data, right) : 0));
      const bound = boundOfResult(op, result, right, dtype, dtypes) + 2 * Math.max(0, ...lost);
      outcomes.push({ result, dtype, error, bound });
    }
    return outcomes;
  } finally {
    disposeAll(args, results);
  }
}
