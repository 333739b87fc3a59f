/** What the gradients of `matmul` and `embedding` are made of. */
import type { Call, Variable } from '../autograd/tape';
import { op } from '../op';
import type { Tensor } from '../tensor';

/**
 * `dx = dy · weight + plus`, rounded once: the gradient of `matmul` with respect to x. `plus`, which is 0 where it is
 * left out, may be what is given as `out.dx`.
 */
export const matmulInputGradient = op('matmul_input_gradient', {
  in: { dy: 'T[m,n]', weight: 'W[n,k]', plus: 'Y[m,k]?' },
  out: { dx: 'Y[m,k]' },
  strided: ['dx'],
});

/** `dweight = dyᵀ · x + plus`, summed in f32: the gradient of `matmul` with respect to its weight; `plus` as above. */
export const matmulWeightGradient = op('matmul_weight_gradient', {
  in: { dy: 'T[m,n]', x: 'X[m,k]', plus: 'Y[n,k]?' },
  out: { dweight: 'Y[n,k]' },
  strided: ['dweight'],
});

/** The sum of all rows: the gradient of a bias. Always in one order. */
export const columnSums = op('column_sums', { in: { x: 'T[t,d]' }, out: { sum: 'f32[d]' } });

/**
 * `dweight[id] = Σ dy[i]` over all i with `ids[i] = id`, in the order of i, and zeros in rows that no
 * id names, or what `plus` has there, which is added everywhere: the gradient of `embedding` and of `takeRows`.
 * `rows` is the number of rows of the table; `plus` may be what is given as `out.dweight`.
 */
export const embeddingBackward = op('embedding_backward', {
  in: { dy: 'T[t,d]', ids: 'i32[t]', plus: 'Y[v,d]?' },
  attrs: { rows: 1 },
  out: { dweight: 'Y[rows,d]' },
  strided: ['dweight'],
  check: (size) => {
    const [rows, v] = [size('rows')!, size('v')];
    if (rows < 0) return `rows is ${rows}, expected 0 or more`;
    return v === undefined || v === rows
      ? undefined
      : `plus has ${v} rows, expected ${rows}: rows is ${rows}`;
  },
});

/** The gradient of a table from which rows were taken. */
export const rowsGradient = (
  ids: Tensor,
  dy: Tensor,
  { shape, dtype }: Variable,
  { plus, out }: ReturnType<Call['sum']>,
): Tensor => embeddingBackward({ dy, ids, plus, rows: shape[0]!, dtype, out: { dweight: out } });
