/** Values of arguments that cannot be any number, or had better not be. */
export type Sizes = Readonly<Record<string, number>>;
export type Random = () => number;

// Taken out once: jest's globals are slow, and these are called for every value of every tensor.
const { cos, floor, imul, log, max, PI, sqrt } = Math;

/** A small generator of numbers in [0, 1) (Mulberry32): the same in every run. */
export function randomFrom(seed: number): Random {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let x = imul(a ^ (a >>> 15), 1 | a);
    x = (x + imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}
export const normal = (random: Random) => sqrt(-2 * log(1 - random())) * cos(2 * PI * random());

/** A whole number less than a size. */
export const below = (most: string) => (random: Random, sizes: Sizes) => floor(random() * sizes[most]!);
export type Fill = (random: Random, sizes: Sizes, index: number) => number;
/** The same everywhere. */
export const fixed =
  (value: number): Fill =>
  () =>
    value;

/** Weights whose sums of so many products are as large as one. */
export const narrow =
  (products: string): Fill =>
  (random, sizes) =>
    normal(random) / sqrt(max(sizes[products]!, 1));
