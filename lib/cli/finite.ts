import type { Checkpoint } from '../io/checkpoint';

const chunkBytes = 8 << 20;

/** For each float format the bits of the exponent, all of them set in NaN and infinity, and those of the fraction. */
const formats = {
  F32: { bytes: 4, exponent: 0x7f800000, fraction: 0x007fffff },
  BF16: { bytes: 2, exponent: 0x7f80, fraction: 0x007f },
  F16: { bytes: 2, exponent: 0x7c00, fraction: 0x03ff },
} as const;

/** What one tensor holds that is no finite number. */
export interface Unusual {
  readonly name: string;
  readonly nan: number;
  readonly infinite: number;
  /** Where the first one is. */
  readonly first: readonly number[];
}

/** Reads the tensor `name` piece by piece; undefined when all of it is finite, or no float that models use. */
export async function unusualIn(checkpoint: Checkpoint, name: string): Promise<Unusual | undefined> {
  const { dtype, shape, begin, end } = checkpoint.info(name);
  if (!(dtype in formats)) return undefined;
  const { bytes, exponent, fraction } = formats[dtype as keyof typeof formats];
  const buffer = new ArrayBuffer(Math.min(chunkBytes, end - begin));
  let nan = 0;
  let infinite = 0;
  let first: number | undefined;
  for (let at = 0; at < end - begin; at += chunkBytes) {
    const length = Math.min(chunkBytes, end - begin - at);
    await checkpoint.read(name, new Uint8Array(buffer, 0, length), at);
    const bits =
      bytes === 4 ? new Uint32Array(buffer, 0, length / 4) : new Uint16Array(buffer, 0, length / 2);
    for (let i = 0; i < bits.length; i++) {
      if ((bits[i]! & exponent) !== exponent) continue;
      first ??= at / bytes + i;
      if (bits[i]! & fraction) nan++;
      else infinite++;
    }
  }
  return first === undefined ? undefined : { name, nan, infinite, first: indexOf(first, shape) };
}

/** Element number `flat` of a row-major array, dimension by dimension. */
function indexOf(flat: number, shape: readonly number[]): number[] {
  const index: number[] = [];
  for (const length of [...shape].reverse()) {
    index.unshift(flat % length);
    flat = Math.floor(flat / length);
  }
  return index;
}
