import { seeded } from '../nn/init';

const rounds = 4;

/** Mixes 32 bits (Murmur3's finalizer), so that each bit of the result depends on each of `x`. */
function mix(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/**
 * An order of the numbers below `size` (at most 2⁵²) that a seed repeats, one number at a time and without a
 * list of them: a Feistel network, walked until it is within `size` (Black and Rogaway 2002).
 */
export function permutation(size: number, seed: number): (index: number) => number {
  const half = Math.max(1, Math.ceil(Math.log2(Math.max(2, size)) / 2));
  const side = 2 ** half;
  const random = seeded(seed);
  const keys = Array.from({ length: rounds }, () => Math.floor(random() * 2 ** 32));
  const once = (x: number): number => {
    let [left, right] = [Math.floor(x / side), x % side];
    for (const key of keys) [left, right] = [right, (left ^ mix(right ^ key)) & (side - 1)];
    return left * side + right;
  };
  return (index) => {
    let x = index;
    do x = once(x);
    while (x >= size);
    return x;
  };
}
