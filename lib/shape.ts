import { kindOf } from './arguments';

/** Number of elements of a shape. */
export function sizeOf(shape: readonly number[]): number {
  let product = 1;
  for (let i = 0; i < shape.length; i++) product *= shape[i]!;
  return product;
}

/** @throws TypeError, RangeError for what is no shape of a tensor. */
export function checkShape(call: string, shape: readonly number[]): void {
  if (!Array.isArray(shape))
    throw new TypeError(`${call}: shape is ${kindOf(shape)}, expected an array of whole numbers`);
  let elements = 1;
  for (let i = 0; i < shape.length; i++) {
    const size = shape[i] as number;
    if (!Number.isSafeInteger(size) || size < 0) {
      throw new RangeError(`${call}: shape is [${shape.join(',')}], expected whole numbers, 0 or more`);
    }
    if (size > 0) elements *= size;
  }
  if (shape.length < 1 || shape.length > 4) {
    throw new RangeError(`${call}: shape is [${shape.join(',')}], expected 1 to 4 dimensions`);
  }
  if (elements > 2 ** 48) {
    throw new RangeError(`${call}: shape is [${shape.join(',')}], expected at most 2^48 elements`);
  }
}

/** Neighbours, `end` not included. */
export type Range = readonly [begin: number, end: number];
