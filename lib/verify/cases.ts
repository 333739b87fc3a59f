/** Valid calls of every op, from its schema: sizes and dtypes vary, values are pseudo-random. */
import type { Device } from '../device';
import { bf16FromFloat, f16FromFloat, floatFromBf16, floatFromF16 } from '../io/convert';
import type { Op } from '../op';
import type { Spec } from '../schema';
import { Tensor, type DType } from '../tensor';
import { below, fixed, narrow, normal, randomFrom, type Fill, type Sizes } from './fills';
import { moeFills, moeSizes } from './moe-cases';
import { values, type Attrs, type Values } from './reference';

export { normal, randomFrom };
export type { Sizes };

/** Values as the device holds them, and back. */
export function encode(data: ArrayLike<number>, dtype: DType): Float32Array | Int32Array | Uint16Array {
  if (dtype === 'i32') return new Int32Array(data);
  const floats = new Float32Array(data);
  if (dtype === 'f32') return floats;
  const bits = new Uint16Array(floats.length);
  (dtype === 'bf16' ? bf16FromFloat : f16FromFloat)(floats, bits);
  return bits;
}
export function decode(data: Float32Array | Int32Array | Uint16Array, dtype: DType): Float64Array {
  if (!(data instanceof Uint16Array)) return new Float64Array(data);
  const floats = new Float32Array(data.length);
  (dtype === 'bf16' ? floatFromBf16 : floatFromF16)(data, floats);
  return new Float64Array(floats);
}
export const roundTo = (data: ArrayLike<number>, dtype: DType) => decode(encode(data, dtype), dtype);

export const read = async (tensor: Tensor): Promise<Float64Array> =>
  decode(await tensor.data(), tensor.dtype);

/** Raw bits, for comparisons that allow no difference. */
export const bits = async (tensor: Tensor): Promise<Buffer> => {
  const data = await tensor.data();
  return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
};

/** Sequences of unequal lengths, empty ones among them. */
const offsets: Fill = (_, { t, s }, i) => (i === s ? t! : Math.floor((t! * i * i) / (s! * s!)));
/** Each row once, not in order, and none for the second one. */
const slots =
  (pool: string): Fill =>
  (_, sizes, i) =>
    i === 1 ? -1 : sizes[pool]! - 1 - i;

/** What cannot be any number. */
const fills: Readonly<Record<string, Readonly<Record<string, Fill>>>> = {
  ...moeFills,
  embedding: { ids: below('v') },
  cross_entropy: { labels: (random, sizes, i) => (i % 3 === 2 ? -100 : below('v')(random, sizes)) },
  take_rows: { rows: below('t') },
  zero_slots: { slots: slots('p') },
  copy_slots: { fromSlots: slots('p'), toSlots: (_, { q }, i) => (i === 2 ? -1 : (i + 1) % q!) },
  causal_conv1d: { offsets, slots: slots('p') },
  selective_scan: {
    offsets,
    slots: slots('p'),
    A: (random) => -0.1 - 4 * random(),
    // Time does not run backwards, where no softplus sees to it.
    delta: (random) => 0.5 * random(),
    deltaBias: (random) => 0.3 * random(),
  },
  mamba_step: {
    offsets: (_, _sizes, i) => i,
    slots: slots('p'),
    A: (random) => -0.1 - 4 * random(),
    xProj: narrow('d'),
    dtWeight: narrow('r'),
  },
  sample: {
    temperature: fixed(0),
    topK: fixed(0),
    topP: fixed(1),
    minP: fixed(0),
    penalty: fixed(1.25),
    stop: (_, { v }, i) => (i * 5) % v!,
    quiet: fixed(4),
    position: (_, _sizes, i) => i,
    token: fixed(0),
  },
};

/** Sizes that are not free, or not 5. */
const dependent: Readonly<Record<string, (sizes: Sizes) => Sizes>> = {
  ...moeSizes,
  copy_slots: (sizes) => ({ ...sizes, s: Math.min(sizes['s']!, sizes['p']!, sizes['q']!) }),
  zero_slots: (sizes) => ({ ...sizes, s: Math.min(sizes['s']!, sizes['p']!) }),
  take_rows: (sizes) => ({ ...sizes, m: sizes['t'] === 0 ? 0 : sizes['m']! }),
  embedding: (sizes) => ({ ...sizes, t: sizes['v'] === 0 ? 0 : sizes['t']! }),
  cross_entropy: (sizes) => ({ ...sizes, t: sizes['v'] === 0 ? 0 : sizes['t']! }),
  causal_conv1d: (sizes) => ({ ...sizes, w: Math.max(sizes['w']!, 1), ...pool(sizes) }),
  selective_scan: (sizes) => ({
    ...sizes,
    g: sizes['d']! % Math.max(sizes['g']!, 1) ? 1 : Math.max(sizes['g']!, 1),
    ...pool(sizes),
  }),
  mamba_step: (sizes) => ({
    ...sizes,
    w: Math.max(sizes['w']!, 1),
    e: 2 * sizes['d']!,
    k: sizes['r']! + 2 * sizes['n']!,
    p: sizes['b']! + 2,
  }),
  sample: (sizes) => {
    const v = Math.max(sizes['v']!, 7);
    return { ...sizes, v, m: Math.ceil(v / 32), e: Math.min(sizes['e']!, 3) };
  },
};
const pool = ({ t, s }: Sizes): Sizes => {
  const count = t === 0 ? s! : Math.max(s!, 1); // tokens belong to a sequence
  return { s: count, p: count + 2 };
};

const specsOf = (op: Op): Spec[] => [...op.inputs.values(), ...op.outputs.values()];
const unique = (texts: Iterable<string>) => [...new Set(texts)];

/** Names of the sizes, and letters for dtypes, of an op. */
export const sizeNames = (op: Op): string[] =>
  unique(specsOf(op).flatMap(({ text }) => text.match(/(?<=[[,])[a-z]+/g) ?? []));
export const letters = (op: Op): string[] =>
  unique(specsOf(op).flatMap(({ text }) => text.match(/[A-Z](?=\[)/g) ?? []));

const floats: readonly DType[] = ['f32', 'bf16', 'f16'];
/** Every choice of a dtype for every letter. */
export const dtypeChoices = (op: Op): Readonly<Record<string, DType>>[] =>
  letters(op).reduce<Readonly<Record<string, DType>>[]>(
    (choices, letter) => choices.flatMap((choice) => floats.map((dtype) => ({ ...choice, [letter]: dtype }))),
    [{}],
  );

/** All dtypes of a call: what is not chosen is f32, and the output's that of the input. */
export function dtypesOf(
  op: Op,
  chosen: Readonly<Record<string, DType>> = {},
): Readonly<Record<string, DType>> {
  const all = letters(op);
  const plain = Object.fromEntries(all.map((letter) => [letter, 'f32' as const]));
  return { ...plain, Y: (all[0] ? chosen[all[0]] : undefined) ?? 'f32', ...chosen };
}

export const completeSizes = (op: Op, sizes: Sizes): Sizes => {
  const all = { ...Object.fromEntries(sizeNames(op).map((name) => [name, 5])), ...sizes };
  return dependent[op.opName]?.(all) ?? all;
};

/** Attributes that are sizes, as a case has them; the others stay at their defaults. */
export const attrsOf = (op: Op, sizes: Sizes): Attrs => {
  const all = completeSizes(op, sizes);
  return Object.fromEntries(
    Object.keys(op.schema.attrs ?? {}).flatMap((name) => (name in all ? [[name, all[name]!]] : [])),
  );
};

/** Other values of the attributes that are whole numbers and no sizes. */
const otherWhole: Readonly<Record<string, number>> = { kind: 1, most: 3 };

/** One other value for each attribute that is no size. */
export const attrsToTry = (op: Op): Attrs[] =>
  Object.entries(op.schema.attrs ?? {})
    .filter(([name]) => !(name in completeSizes(op, {})))
    .map(([name, fallback]) => ({
      [name]: typeof fallback === 'boolean' ? !fallback : (otherWhole[name] ?? 0.25),
    }));

/** Dtype and shape of an argument, in the form of it that is asked for. */
export function describe(
  text: string,
  sizes: Sizes,
  dtypes: Readonly<Record<string, DType>>,
  form = 0,
): [DType, number[]] {
  const forms = text.split('|');
  const [, dtype, dims] = /^(\w+)\[(.*)\]$/.exec(forms[Math.min(form, forms.length - 1)]!)!;
  const shape = dims!.split(',').map((dim) => {
    const [, name, plus] = /^([a-z]*)([+-]?\d+)?$/.exec(dim)!;
    return (name ? sizes[name]! : 0) + Number(plus ?? 0);
  });
  return [dtypes[dtype!] ?? (dtype as DType), shape];
}

export interface Case {
  readonly sizes: Sizes;
  readonly dtypes?: Readonly<Record<string, DType>>;
  /** Inputs to leave out. */
  readonly without?: readonly string[];
  /** Which alternative of `a|b`. */
  readonly form?: number;
  readonly attrs?: Attrs;
  readonly seed?: number;
}

/** What a case gives an op, rounded to the dtypes that the device gets. */
export function inputsOf(op: Op, { sizes: given, dtypes = {}, without = [], form, seed = 1 }: Case) {
  const sizes = completeSizes(op, given);
  const of = dtypesOf(op, dtypes);
  const random = randomFrom(seed);
  const inputs: Record<string, Values & { readonly dtype: DType }> = {};
  for (const [name, spec] of op.inputs) {
    const [dtype, shape] = describe(spec.text, sizes, of, form);
    const fill =
      fills[op.opName]?.[name] ?? (dtype === 'i32' ? () => Math.floor((random() - 0.5) * 2 ** 31) : normal);
    const made = values(...shape).data.map((_, i) => fill(random, sizes, i));
    if (!without.includes(name)) inputs[name] = { dtype, shape, data: roundTo(made, dtype) };
  }
  return inputs;
}

export function toTensor({ data, shape, dtype }: Values & { readonly dtype: DType }, device: Device): Tensor {
  return Tensor.from(encode(data, dtype), shape, { dtype, device });
}

/** The same contents with rows that are further apart than they are long, where that is possible. */
export function toStrided(value: Values & { readonly dtype: DType }, device: Device): Tensor {
  const [rows, ...rest] = value.shape as [number, ...number[]];
  const length = rest.reduce((a, b) => a * b, 1);
  if (rest.length === 0 || rows < 2) return toTensor(value, device);
  const wide = new Float64Array(rows * (length + 7)).fill(value.dtype === 'i32' ? 77 : NaN);
  for (let i = 0; i < rows; i++)
    wide.set(value.data.subarray(i * length, (i + 1) * length), i * (length + 7) + 3);
  return toTensor({ dtype: value.dtype, shape: [rows, length + 7], data: wide }, device)
    .columns(3, 3 + length)
    .reshape(value.shape);
}
