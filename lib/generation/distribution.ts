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
  const x = Float64Array.from(logits);
  if (penalty !== 1 && marks.seen)
    x.forEach((value, id) => marks.seen!(id) && (x[id] = value > 0 ? value / penalty : value * penalty));
  for (const id of marks.held ?? []) x[id] = -Infinity;
  let best = 0;
  for (let i = 1; i < x.length; i++) if (x[i]! > x[best]!) best = i;
  if (temperature === 0) return x.map((_, id) => (id === best ? 1 : 0));
  const largest = x[best]!;
  const weights = x.map((value) => Math.exp((value - largest) / temperature));
  if (topK > 0 || topP < 1) keepLikeliest(weights, topK, topP);
  let total = 0;
  for (let i = 0; i < weights.length; i++) {
    if (weights[i]! < minP) weights[i] = 0; // the likeliest has weight 1
    total += weights[i]!;
  }
  return weights.map((weight) => weight / total);
}

/** Sets to 0 all weights but those that top-k, and of these top-p, leaves; of equal ones the first ids stay. */
function keepLikeliest(weights: Float64Array, topK: number, topP: number): void {
  const order = Int32Array.from(weights.keys())
    .filter((id) => weights[id]! > 0)
    .sort((a, b) => weights[b]! - weights[a]! || a - b);
  const most = topK > 0 ? Math.min(topK, order.length) : order.length;
  let total = 0;
  for (let i = 0; i < most; i++) total += weights[order[i]!]!;
  let kept = 0;
  let count = 0;
  while (count < most && (count === 0 || topP >= 1 || kept < topP * total)) kept += weights[order[count++]!]!;
  for (let i = count; i < order.length; i++) weights[order[i]!] = 0;
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
