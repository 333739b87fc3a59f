import type { RowOptions } from './options';

/** What `sample` knows of a place beside its logits. */
export interface PlaceMarks {
  /** Ids that a repetition penalty falls on. */
  readonly seen?: (id: number) => boolean;
  /** Ids that may not be drawn. */
  readonly held?: readonly number[];
}

/**
 * The probabilities that `sample` draws with: repetition penalty, temperature, top-k, top-p and min-p in
 * this order, each on what the one before has left.
 */
export function distribution(
  logits: Float32Array,
  options: RowOptions,
  marks: PlaceMarks = {},
): Float64Array {
  const { temperature, topK, topP, minP, repetitionPenalty: penalty } = options;
  const x = Float64Array.from(logits); // plain loops: vocabularies are large
  if (penalty !== 1 && marks.seen)
    for (let id = 0; id < x.length; id++)
      if (marks.seen(id)) x[id] = x[id]! > 0 ? x[id]! / penalty : x[id]! * penalty;
  for (const id of marks.held ?? []) x[id] = -Infinity;
  let best = 0;
  for (let id = 1; id < x.length; id++) if (x[id]! > x[best]!) best = id;
  if (temperature === 0) {
    x.fill(0);
    x[best] = 1;
    return x;
  }
  const largest = x[best]!;
  let total = 0;
  for (let id = 0; id < x.length; id++) total += x[id] = Math.exp((x[id]! - largest) / temperature);
  if (topK > 0 || topP < 1) keepLikeliest(x, total, topK, topP);
  total = 0;
  for (let id = 0; id < x.length; id++) {
    if (x[id]! < minP) x[id] = 0; // the likeliest has weight 1
    total += x[id]!;
  }
  for (let id = 0; id < x.length; id++) x[id]! /= total;
  return x;
}

/**
 * Sets to 0 all weights, `total` together, but those that top-k, and of these top-p, leaves; of equal ones the
 * first ids stay. Only as many of the largest as are needed are put in order.
 */
function keepLikeliest(weights: Float64Array, total: number, topK: number, topP: number): void {
  for (let least = 2 ** -6; ; least *= 2 ** -6) {
    const large = weights.filter((weight) => weight > least).sort(); // rising
    const n = large.length;
    const all = least === 0 || n === weights.length;
    if (topK > 0 && n < topK && !all) continue;
    const most = topK > 0 ? Math.min(topK, n) : n;
    if (topK > 0) total = large.subarray(n - most).reduceRight((sum, weight) => sum + weight, 0);
    let mass = 0;
    let count = 0;
    while (count < most && (count === 0 || topP >= 1 || mass < topP * total)) mass += large[n - ++count]!;
    if (!all && topK === 0 && mass < topP * total) continue;
    return keepFrom(
      weights,
      large[n - count]!,
      count - large.subarray(n - count).filter((w) => w > large[n - count]!).length,
    );
  }
}

/** Sets to 0 what is smaller than `least`, and all but the first `ties` of those that equal it. */
function keepFrom(weights: Float64Array, least: number, ties: number): void {
  for (let id = 0; id < weights.length; id++)
    if (weights[id]! < least || (weights[id] === least && ties-- <= 0)) weights[id] = 0;
}

/** log of the softmax of `logits` at `id`. */
export function logProbability(logits: Float32Array, id: number): number {
  let largest = -Infinity;
  for (const value of logits) largest = Math.max(largest, value);
  let total = 0;
  for (const value of logits) total += Math.exp(value - largest);
  return logits[id]! - largest - Math.log(total);
}

/**
 * A number in [0, 1) from 53 bits of Philox 4x32-10 (Salmon et al. 2011) under a 64-bit seed, as `sample`
 * has it for stream 0: other streams are numbers that it never uses.
 */
export function randomAt(seed: bigint, position: number, stream: number): number {
  const c = [position >>> 0, stream >>> 0, 0, 0];
  let [low, high] = [Number(seed & 0xffffffffn), Number((seed >> 32n) & 0xffffffffn)];
  for (let round = 0; round < 10; round++) {
    const a = BigInt(c[0]!) * 0xd2511f53n;
    const b = BigInt(c[2]!) * 0xcd9e8d57n;
    const [aHigh, aLow, bHigh, bLow] = [a >> 32n, a, b >> 32n, b].map((x) => Number(x & 0xffffffffn));
    [c[0], c[1], c[2], c[3]] = [
      (bHigh! ^ c[1]! ^ low) >>> 0,
      bLow! >>> 0,
      (aHigh! ^ c[3]! ^ high) >>> 0,
      aLow! >>> 0,
    ];
    low = (low + 0x9e3779b9) >>> 0;
    high = (high + 0xbb67ae85) >>> 0;
  }
  return Number(((BigInt(c[0]!) << 32n) | BigInt(c[1]!)) >> 11n) * 2 ** -53;
}
