import { FormatError } from '../errors';
import type { Checkpoint } from './checkpoint';

/** Conversions between the float formats of files and tensors, on raw bytes of one chunk. */
export type FloatFormat = 'f32' | 'bf16' | 'f16';

/** What files call them. */
export const floatFormats: ReadonlyMap<string, FloatFormat> = new Map([
  ['F32', 'f32'],
  ['BF16', 'bf16'],
  ['F16', 'f16'],
]);

const chunkBytes = 8 << 20;

/** The bytes of a checkpoint's tensor of floats in format `to`, piece by piece. */
export async function* convertedChunks(
  checkpoint: Checkpoint,
  name: string,
  to: FloatFormat,
): AsyncGenerator<Uint8Array> {
  const { dtype, begin, end } = checkpoint.info(name);
  const buffer = Buffer.allocUnsafeSlow(Math.min(chunkBytes, end - begin));
  for (let at = 0; at < end - begin; at += chunkBytes) {
    const chunk = buffer.subarray(0, Math.min(chunkBytes, end - begin - at));
    await checkpoint.read(name, chunk, at);
    yield convertTensor(`${checkpoint.folder}: parameter ${name}`, chunk, floatFormats.get(dtype)!, to);
  }
}

function halfToFloatTable(): Float32Array {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (exponent === 31) table[bits] = fraction ? NaN : sign * Infinity;
    else table[bits] = sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
  }
  return table;
}
let halves: Float32Array | undefined;

/** bf16 to f32. */
export function floatFromBf16(from: Uint16Array, to: Float32Array): void {
  const bits = new Uint32Array(to.buffer, to.byteOffset, to.length);
  for (let i = 0; i < from.length; i++) bits[i] = from[i]! << 16;
}

/** f16 to f32. */
export function floatFromF16(from: Uint16Array, to: Float32Array): void {
  halves ??= halfToFloatTable();
  for (let i = 0; i < from.length; i++) to[i] = halves[from[i]!]!;
}

/** f32 to bf16, to the nearest, ties to even; NaN stays NaN. */
export function bf16FromFloat(from: Float32Array, to: Uint16Array): void {
  const bits = new Uint32Array(from.buffer, from.byteOffset, from.length);
  for (let i = 0; i < bits.length; i++) {
    const u = bits[i]!;
    const isNaN = (u & 0x7fffffff) > 0x7f800000;
    to[i] = isNaN ? (u >>> 16) | 0x40 : (u + 0x7fff + ((u >>> 16) & 1)) >>> 16;
  }
}

/** f32 to f16, to the nearest, ties to even; what is too large becomes infinity. */
export function f16FromFloat(from: Float32Array, to: Uint16Array): void {
  const bits = new Uint32Array(from.buffer, from.byteOffset, from.length);
  for (let i = 0; i < bits.length; i++) {
    const u = bits[i]!;
    const size = u & 0x7fffffff;
    let half: number;
    if (size > 0x7f800000) half = 0x7e00;
    else if (size >= 0x477ff000) half = 0x7c00;
    else if (size >= 0x38800000) half = (size - 0x38000000 + 0xfff + ((size >>> 13) & 1)) >>> 13;
    else half = roundTiesToEven(Math.abs(from[i]!) * 2 ** 24);
    to[i] = ((u >>> 16) & 0x8000) | half;
  }
}

function roundTiesToEven(x: number): number {
  const down = Math.floor(x);
  const rest = x - down;
  return rest > 0.5 || (rest === 0.5 && down % 2 === 1) ? down + 1 : down;
}

/**
 * As `convert`, of a tensor that `where` names.
 * @throws FormatError for a finite value that f16 has no number for.
 */
export function convertTensor(
  where: string,
  chunk: Uint8Array,
  from: FloatFormat,
  to: FloatFormat,
): Uint8Array {
  const out = convert(chunk, from, to);
  if (to !== 'f16' || from === 'f16') return out;
  const halves = new Uint16Array(out.buffer, out.byteOffset, out.byteLength / 2);
  const isInfinite = (half: number) => (half & 0x7fff) === 0x7c00;
  if (!halves.some(isInfinite)) return out;
  const floats = convert(chunk.slice(), from, 'f32');
  const values = new Float32Array(floats.buffer, floats.byteOffset, halves.length);
  const lost = values.find((value, i) => isInfinite(halves[i]!) && Number.isFinite(value));
  if (lost === undefined) return out;
  throw new FormatError(
    `${where} holds ${lost}, expected at most 65504 in size, as f16 has it; bf16 or f32 can hold it`,
  );
}

/** The bytes of `chunk`, elements of format `from`, as format `to`; a copy where they differ. */
export function convert(chunk: Uint8Array, from: FloatFormat, to: FloatFormat): Uint8Array {
  if (from === to) return chunk;
  const count = chunk.byteLength / (from === 'f32' ? 4 : 2);
  const aligned = chunk.byteOffset % 4 === 0 ? chunk : chunk.slice();
  const floats =
    from === 'f32' ? new Float32Array(aligned.buffer, aligned.byteOffset, count) : new Float32Array(count);
  if (from !== 'f32') {
    const bits = new Uint16Array(aligned.buffer, aligned.byteOffset, count);
    (from === 'bf16' ? floatFromBf16 : floatFromF16)(bits, floats);
  }
  if (to === 'f32') return new Uint8Array(floats.buffer, floats.byteOffset, count * 4);
  const out = new Uint16Array(count);
  (to === 'bf16' ? bf16FromFloat : f16FromFloat)(floats, out);
  return new Uint8Array(out.buffer);
}
