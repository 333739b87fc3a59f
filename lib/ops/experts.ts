import { op } from '../op';

/**
 * Rows of `x`, each times the weight of its expert: `y[p] = x[row] · weight[i]ᵀ + bias[i]` for the
 * places `offsets[i]` to `offsets[i+1]`, and 0 for those after the last. `row` is `order[p] / k`, the
 * token of an assignment, or p itself where k is 0: then x is in the experts' order already. Only
 * experts that have rows are read. Sums are f32; on the CPU the bits are those of `matmul`.
 */
export const expertMatmul = op('expert_matmul', {
  in: { x: 'T[t,d]', weight: 'W[e,n,d]', bias: 'f32[e,n]?', order: 'i32[a]', offsets: 'i32[e+1]' },
  attrs: { k: 0 },
  out: { y: 'Y[a,n]' },
  check: (size) => {
    const rows = size('t')! * (size('k')! || 1);
    return size('k')! >= 0 && rows === size('a')
      ? undefined
      : `order has ${size('a')} places, expected ${rows}: k, which is ${size('k')}, for each row of x`;
  },
});

/** `y[i] = Σ_j weights[i,j] · x[place[i · k + j]]` in the order of j, without those whose place is -1. */
export const expertCombine = op('expert_combine', {
  in: { x: 'T[a,d]', place: 'i32[a]', weights: 'f32[t,k]' },
  out: { y: 'T[t,d]' },
  check: (size) =>
    size('a') === size('t')! * size('k')!
      ? undefined
      : `x has ${size('a')} rows, expected ${size('t')! * size('k')!}: one for each weight`,
});

/** `f(x) · factor`; `kind` says which f: 0 is ReLU, 1 GELU (the exact one, by erf), 2 SiLU, 3 the sigmoid. */
export const activate = op('activate', {
  in: { x: 'T[t,d]', factor: 'T[t,d]?' },
  attrs: { kind: 0 },
  out: { y: 'T[t,d]' },
  check: (size) =>
    [0, 1, 2, 3].includes(size('kind')!) ? undefined : `kind is ${size('kind')}, expected 0, 1, 2 or 3`,
});
