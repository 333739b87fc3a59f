/** Numbers that are the same in every run. */
export type Sizes = Readonly<Record<string, number>>;
export type Random = () => number;

// Taken out once: jest's globals are slow, and these are called for every value of every tensor.
const { cos, imul, log, PI, sqrt } = Math;

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
