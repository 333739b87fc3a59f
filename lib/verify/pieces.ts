import type { Device } from '../device';
import type { Op } from '../op';
import { scope, Tensor, type DType, type TypedArray } from '../tensor';
import { inputsOf, toTensor, type Sizes } from './cases';
import { call } from './measure';
import type { Attrs } from './reference';

/** Packed sequences: their lengths, and the row of its state that each one owns; -1 for none. */
export interface Packing {
  readonly lengths: readonly number[];
  readonly slots: readonly number[];
}

/** A packed call that can be cut. */
export interface PackedCase extends Packing {
  readonly sizes: Sizes;
  readonly dtype: DType;
  readonly form?: number;
  readonly attrs?: Attrs;
  readonly seed?: number;
}

/** The same values, once from one packed call and once from calls for pieces of one sequence each. */
export interface Pair {
  readonly result: string;
  readonly dtype: DType;
  readonly packed: TypedArray;
  readonly pieces: TypedArray;
}

/** On a GPU sums have another order in another shape: in half precision one step to the next number. */
const rounding: Readonly<Record<DType, number>> = { f32: 1e-5, bf16: 2 ** -7, f16: 2 ** -10, i32: 0 };

/** How far the same rows may be apart that were computed beside others, or from another start. */
export const roundingOn = (device: Device, dtype: DType): number =>
  device.id === 'cpu' ? 0 : rounding[dtype];

type Args = Readonly<Record<string, unknown>>;

/** Whether an op runs over packed sequences that leave a state. */
export const isSequential = (op: Op): boolean => op.inputs.has('offsets') && op.inputs.has('state');

/** The arguments of a packed call, its state among them. */
export function packedArguments(op: Op, device: Device, each: PackedCase): Args {
  const { sizes, dtype, form, attrs, seed, lengths, slots } = each;
  const ints = (data: readonly number[]) => Tensor.from(Int32Array.from(data), [data.length], { device });
  const offsets = lengths.reduce<number[]>((all, n) => [...all, all.at(-1)! + n], [0]);
  const inputs = inputsOf(op, {
    sizes: { ...sizes, t: offsets.at(-1)!, s: lengths.length },
    dtypes: { T: dtype },
    form,
    seed,
  });
  const tensors = Object.entries(inputs)
    .filter(([name]) => name !== 'offsets' && name !== 'slots')
    .map(([name, value]) => [name, toTensor(value, device)] as const);
  return { ...Object.fromEntries(tensors), ...attrs, offsets: ints(offsets), slots: ints(slots) };
}

/** Inputs with a row for each token. */
const perToken = (op: Op, form = 0): string[] =>
  [...op.inputs]
    .filter(([, { text }]) => /\[t[,\]]/.test(text.split('|')[form] ?? text))
    .map(([name]) => name);

/** Runs sequences all at once, and one by one in pieces of at most `step` tokens. */
export async function packedAndPieces(
  op: Op,
  device: Device,
  each: PackedCase,
  step: number,
): Promise<Pair[]> {
  const { lengths, slots, dtype, form } = each;
  const ints = (data: readonly number[]) => Tensor.from(Int32Array.from(data), [data.length], { device });
  const packed = packedArguments(op, device, each);
  const single = packedArguments(op, device, each);
  const [whole, state] = [packed['state'] as Tensor, single['state'] as Tensor];
  const cut = perToken(op, form);
  const pieces: Promise<TypedArray>[] = [];
  const output = [...op.outputs.keys()][0]!;
  const run = (begin: number, end: number, slot: number) =>
    scope(() => {
      const rows = cut.map((name) => [name, (single[name] as Tensor).rows(begin, end)] as const);
      const given = { offsets: ints([0, end - begin]), slots: ints([slot]) };
      pieces.push(call(op, { ...single, ...Object.fromEntries(rows), ...given })[output]!.data());
    });
  const y = call(op, packed)[output]!;
  const spare = whole.shape[0]! - 1; // a sequence without a state is cut with this row, which is zero then
  const besideSpare = (all: TypedArray) => all.subarray(0, (all.length / (spare + 1)) * spare);
  try {
    for (let s = 0, at = 0; s < lengths.length; at += lengths[s++]!) {
      const own = slots[s]! >= 0;
      if (!own) await clear(state.rows(spare, spare + 1));
      for (let begin = at; begin < at + lengths[s]!; begin += step)
        run(begin, Math.min(begin + step, at + lengths[s]!), own ? slots[s]! : spare);
    }
    const rows = await Promise.all(pieces);
    return [
      { result: output, dtype, packed: await y.data(), pieces: joined(rows) },
      {
        result: 'state',
        dtype: state.dtype,
        packed: besideSpare(await whole.data()),
        pieces: besideSpare(await state.data()),
      },
    ];
  } finally {
    for (const value of [y, ...Object.values(packed), ...Object.values(single)])
      if (value instanceof Tensor) value.dispose();
  }
}

async function clear(row: Tensor): Promise<void> {
  await row.write(new Uint8Array(row.size * (row.dtype === 'f32' ? 4 : 2)));
  row.dispose();
}

function joined(parts: readonly TypedArray[]): TypedArray {
  const all = new (parts[0]!.constructor as new (length: number) => TypedArray)(
    parts.reduce((sum, { length }) => sum + length, 0),
  );
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
