import { derivedBy } from '../autograd/remat';
import { isRecording } from '../autograd/tape';
import { addRmsNorm, normMatmul, rmsNorm } from '../ops/norm';
import type { DType, Tensor } from '../tensor';
import type { Linear } from './linear';

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

/**
 * The same with `y` as the norm's product with a layer's first matrix. As one op where its kernel is
 * short enough for their number to count, for one row, and where gradients are recorded: nothing of the norm is
 * computed again for the matrix's.
 */
export function normedProduct(
  entering: Entering,
  first: Linear,
): { readonly y: Tensor; readonly sum: Tensor } {
  if (entering.residual.shape[0] === 1 || isRecording()) {
    const { weight, bias } = first;
    const { y, sum, normed: between } = normMatmul({ ...entering, weight, bias });
    between.dispose();
    return { y, sum };
  }
  const { y: between, sum } = normed(entering);
  const y = first.forward(between);
  between.dispose();
  return { y, sum };
}
