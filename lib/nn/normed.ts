import { derivedBy } from '../autograd/remat';
import { addRmsNorm, rmsNorm } from '../ops/norm';
import type { DType, Tensor } from '../tensor';

/** What a layer starts with: the residual, and what the layer before adds to it. */
export interface Entering {
  readonly x?: Tensor | undefined; // [t, dModel]
  readonly residual: Tensor; // f32[t, dModel]
  readonly normWeight: Tensor; // [dModel]
  readonly eps: number;
  /** Of what leaves. */
  readonly dtype: DType;
}

/**
 * `sum = residual + x`, or `residual` itself without `x`, and `y`, its RMS norm. Of the two only the sum is kept
 * for the way back.
 */
export function normed({ x, residual, normWeight: weight, eps, dtype }: Entering): {
  readonly y: Tensor;
  readonly sum: Tensor;
} {
  const { y, sum } = x
    ? addRmsNorm({ x, residual, weight, eps })
    : { y: rmsNorm({ x: residual, weight, eps, dtype }), sum: residual };
  return { y: derivedBy(y, rmsNorm, { x: sum, weight, eps, dtype: y.dtype }), sum };
}
