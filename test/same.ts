/** How near two answers to the same question have to be. */
import type { Completion } from '../lib';
import { device, type Device } from '../lib/device';
import type { DType } from '../lib/tensor';
import { decode } from './cases';

type Numbers = Float32Array | Uint16Array | Int32Array;

/** The largest difference, relative to the largest magnitude in `wanted`. */
export function relativeError(got: ArrayLike<number>, wanted: ArrayLike<number>): number {
  if (got.length !== wanted.length) throw new Error(`${got.length} values, expected ${wanted.length}`);
  let difference = 0;
  let largest = 0;
  for (let i = 0; i < wanted.length; i++) {
    const d = Math.abs(got[i]! - wanted[i]!);
    if (!(d <= difference)) difference = d;
    largest = Math.max(largest, Math.abs(wanted[i]!));
  }
  return difference / (largest || 1);
}

// On a GPU, of the largest magnitude: f32 sums in another order; in half precision one step to the next number.
const rounding: Readonly<Record<DType, number>> = { f32: 1e-5, bf16: 2 ** -7, f16: 2 ** -10, i32: 0 };

/**
 * Expects what holds for a row whatever stands beside it and however its sequence is cut: the same bits on the
 * CPU; on a GPU the same within rounding, as there the order of a sum depends on how many rows there are
 * (docs/decisions/0003-state.md).
 */
export function expectSame(
  got: Numbers,
  wanted: Numbers,
  { on = device(), dtype = 'f32' }: { readonly on?: Device; readonly dtype?: DType } = {},
): void {
  if (on.id === 'cpu') expect(bytes(got).equals(bytes(wanted))).toBe(true);
  else expect(relativeError(decode(got, dtype), decode(wanted, dtype))).toBeLessThanOrEqual(rounding[dtype]);
}

// jest takes seconds to compare a million numbers.
const bytes = ({ buffer, byteOffset, byteLength }: Numbers) => Buffer.from(buffer, byteOffset, byteLength);

type Row = Pick<Completion, 'logprobs'> & Partial<Completion>;

/** The same of generations: the logprobs have the same bits on the CPU, all else is equal everywhere. */
export function expectSameRows(got: readonly Row[], wanted: readonly Row[], on = device()): void {
  if (on.id === 'cpu') return expect(got).toEqual(wanted);
  const rest = (rows: readonly Row[]) => rows.map((row) => ({ ...row, logprobs: row.logprobs.length }));
  expect(rest(got)).toEqual(rest(wanted));
  const [logprobs, expected] = [got, wanted].map((rows) => rows.flatMap((row) => row.logprobs));
  expected!.forEach((logprob, i) => expect(Math.abs(logprobs![i]! - logprob)).toBeLessThanOrEqual(1e-4));
}
