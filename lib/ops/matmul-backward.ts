/** What the gradients of `matmul` and `embedding` are made of. */
import { op } from '../op';

/** `dx = dy · weight`: the gradient of `matmul` with respect to x. */
export const matmulInputGradient = op('matmul_input_gradient', {
  in: { dy: 'T[m,n]', weight: 'W[n,k]' },
  out: { dx: 'Y[m,k]' },
});

/** `dweight = dyᵀ · x`, summed in f32: the gradient of `matmul` with respect to its weight. */
export const matmulWeightGradient = op('matmul_weight_gradient', {
  in: { dy: 'T[m,n]', x: 'X[m,k]' },
  out: { dweight: 'Y[n,k]' },
});

/** The sum of all rows: the gradient of a bias. Always in one order. */
export const columnSums = op('column_sums', { in: { x: 'T[t,d]' }, out: { sum: 'f32[d]' } });

/**
 * `dweight[id] = Σ dy[i]` over all i with `ids[i] = id`, in the order of i, and zeros in rows that no
 * id names: the gradient of `embedding` and of `takeRows`. `rows` is the number of rows of the table.
 */
export const embeddingBackward = op('embedding_backward', {
  in: { dy: 'T[t,d]', ids: 'i32[t]' },
  attrs: { rows: 1 },
  out: { dweight: 'Y[rows,d]' },
  check: (size) => (size('rows')! < 0 ? `rows is ${size('rows')}, expected 0 or more` : undefined),
});
