/** Valid calls of every op, from its schema: sizes and dtypes vary, values are pseudo-random. */
import type { Device } from '../device';
import { bf16FromFloat, f16FromFloat, floatFromBf16, floatFromF16 } from '../io/convert';
import type { Op } from '../op';
import type { Spec } from '../schema';
import { Tensor, type DType } from '../tensor';
import { fills } from './argument-values';
import { normal, randomFrom, type Sizes } from './fills';
import { moeSizes } from './moe-cases';
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

/** With one column what a norm's gradient leaves is rounding. */
const several = (sizes: Sizes): Sizes => ({ ...sizes, d: sizes['d'] === 1 ? 3 : sizes['d']! });

const someWords = (sizes: Sizes): Sizes => ({ ...sizes, t: sizes['v'] === 0 ? 0 : sizes['t']! });

/** Sizes that are not free, or not 5. */
const dependent: Readonly<Record<string, (sizes: Sizes) => Sizes>> = {
  ...moeSizes,
  copy_slots: (sizes) => ({ ...sizes, s: Math.min(sizes['s']!, sizes['p']!, sizes['q']!) }),
  zero_slots: (sizes) => ({ ...sizes, s: Math.min(sizes['s']!, sizes['p']!) }),
  take_rows: (sizes) => ({ ...sizes, m: sizes['t'] === 0 ? 0 : sizes['m']! }),
  embedding: (sizes) => ({ ...sizes, t: sizes['v'] === 0 ? 0 : sizes['t']! }),
  cross_entropy: someWords,
  cross_entropy_backward: someWords,
  cross_entropy_gradient: someWords,
  causal_conv1d: (sizes) => ({ ...sizes, w: Math.max(sizes['w']!, 1), ...pool(sizes) }),
  causal_conv1d_backward: (sizes) => ({ ...sizes, w: Math.max(sizes['w']!, 1), ...pool(sizes) }),
  conv_matmul: (sizes) => ({ ...sizes, w: Math.max(sizes['w']!, 1), ...pool(sizes) }),
  selective_scan: (sizes) => ({ ...sizes, g: groups(sizes), ...pool(sizes) }),
  selective_scan_backward: (sizes) => ({ ...sizes, g: groups(sizes), ...pool(sizes) }),
  rms_norm_backward: several,
  add_rms_norm_backward: several,
  layer_norm_backward: several,
  embedding_backward: (sizes) => ({ ...sizes, v: sizes['rows']!, t: sizes['rows'] === 0 ? 0 : sizes['t']! }),
  s4d_scan: (sizes) => ({ ...sizes, ...pool(sizes) }),
  s4d_scan_backward: (sizes) => ({ ...sizes, ...pool(sizes) }),
  fft_conv: convolved,
  fft_conv_backward: convolved,
  mamba_step: (sizes) => mixer(sizes),
  mamba_layer_step: (sizes) => mixer(sizes),
  sample: (sizes) => {
    const v = Math.max(sizes['v']!, 7);
    return { ...sizes, v, m: Math.ceil(v / 32), e: Math.min(sizes['e']!, 3) };
  },
};
/** No sequence is longer than the kernel. */
function convolved(sizes: Sizes): Sizes {
  return { ...sizes, ...pool(sizes), l: Math.max(sizes['l']!, sizes['t']!) };
}
const mixer = (sizes: Sizes): Sizes => ({
  ...sizes,
  w: Math.max(sizes['w']!, 1),
  e: 2 * sizes['d']!,
  k: sizes['r']! + 2 * sizes['n']!,
  p: sizes['b']! + 2,
});
const pool = ({ t, s }: Sizes): Sizes => {
  const count = t === 0 ? s! : Math.max(s!, 1); // tokens belong to a sequence
  return { s: count, p: count + 2 };
};

const groups = ({ d, g }: Sizes): number => (d! % Math.max(g!, 1) ? 1 : Math.max(g!, 1));

const specsOf = (op: Op): Spec[] => [...op.inputs.values(), ...op.outputs.values()];
const unique = (texts: Iterable<string>) => [...new Set(texts)];

/** Names of the sizes, and letters for dtypes, of an op. */
export const sizeNames = (op: Op): string[] =>
  unique(specsOf(op).flatMap(({ text }) => text.match(/(?<=[[,])[a-z]+/g) ?? []));
export const letters = (op: Op): string[] =>
  unique(specsOf(op).flatMap(({ text }) => text.match(/[A-Z](?=\[)/g) ?? []));

const floats: readonly DType[] = ['f32', 'bf16', 'f16'];
/** The letter of states between calls, which no other dtype has to do with. */
const kept = 'S';

/** Every choice of a dtype for every letter; states in 16 bits beside others that are all the same. */
export function dtypeChoices(op: Op): Readonly<Record<string, DType>>[] {
  const others = letters(op).filter((letter) => letter !== kept);
  const choices = others.reduce<Readonly<Record<string, DType>>[]>(
    (choices, letter) => choices.flatMap((choice) => floats.map((dtype) => ({ ...choice, [letter]: dtype }))),
    [{}],
  );
  if (others.length === letters(op).length) return choices;
  const alike = choices.filter((choice) => new Set(Object.values(choice)).size < 2);
  const narrow = floats.filter((dtype) => dtype !== 'f32');
  return [...choices, ...alike.flatMap((choice) => narrow.map((dtype) => ({ ...choice, [kept]: dtype })))];
}

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
const otherWhole: Readonly<Record<string, number>> = { kind: 1, most: 3, experts: 3 };

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

interface Drawn {
  readonly key: string;
  readonly data: Readonly<Record<string, Float64Array>>;
}
/** The last values: cases that differ in dtypes alone have the same, and drawing them is most of the work. */
let last: Drawn | undefined;

/** Values for every input of an op, not rounded yet. */
function draw(op: Op, sizes: Sizes, form: number | undefined, seed: number): Drawn['data'] {
  const key = JSON.stringify([op.opName, sizes, form, seed]);
  if (last?.key === key) return last.data;
  const random = randomFrom(seed);
  const data: Record<string, Float64Array> = {};
  for (const [name, spec] of op.inputs) {
    const [dtype, shape] = describe(spec.text, sizes, {}, form);
    const fill =
      fills[op.opName]?.[name] ?? (dtype === 'i32' ? () => Math.floor((random() - 0.5) * 2 ** 31) : normal);
    const made = values(...shape).data;
    for (let i = 0; i < made.length; i++) made[i] = fill(random, sizes, i);
    data[name] = made;
  }
  last = { key, data };
  return data;
}

/** What a case gives an op, rounded to the dtypes that the device gets. */
export function inputsOf(op: Op, { sizes: given, dtypes = {}, without = [], form, seed = 1 }: Case) {
  const sizes = completeSizes(op, given);
  const of = dtypesOf(op, dtypes);
  const drawn = draw(op, sizes, form, seed);
  const inputs: Record<string, Values & { readonly dtype: DType }> = {};
  for (const [name, spec] of op.inputs) {
    if (without.includes(name)) continue;
    const [dtype, shape] = describe(spec.text, sizes, of, form);
    inputs[name] = { dtype, shape, data: roundTo(drawn[name]!, dtype) };
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
