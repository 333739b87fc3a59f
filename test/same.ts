/** How near two answers to the same question have to be. */
import type { Completion } from '../lib';
import { device, type Device } from '../lib/device';
import type { DType } from '../lib/tensor';
import { decode } from '../lib/verify/cases';
import { relativeError } from '../lib/verify/measure';
import { roundingOn } from '../lib/verify/pieces';

export { relativeError };

type Numbers = Float32Array | Uint16Array | Int32Array;

/**
 * Expects what holds for a row whatever stands beside it and however its sequence is cut: the same bits on the
 * CPU; on a GPU the same within rounding, as there the order of a sum depends on how many rows there are
 * (docs/decisions/0003-state.md), or within `within`, where that is more.
 */
export function expectSame(
  got: Numbers,
  wanted: Numbers,
  {
    on = device(),
    dtype = 'f32',
    within = 0,
  }: { readonly on?: Device; readonly dtype?: DType; readonly within?: number } = {},
): void {
  if (on.id === 'cpu') expect(bytes(got).equals(bytes(wanted))).toBe(true);
  else
    expect(relativeError(decode(got, dtype), decode(wanted, dtype))).toBeLessThanOrEqual(
      Math.max(roundingOn(on, dtype), within),
    );
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
