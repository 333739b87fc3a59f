import { op } from '../op';

/**
 * `y = x · weightᵀ + bias`, accumulated in f32. The weight keeps its own dtype and is never expanded
 * as a whole; `dtype` sets that of `y`, by default that of `x`. On the CPU a row of `y` has the same
 * bits whatever other rows stand beside it.
 */
export const matmul = op('matmul', {
  in: { x: 'T[m,k]', weight: 'W[n,k]', bias: 'f32[n]?' },
  out: { y: 'Y[m,n]' },
});

/** Rows of `weight` by id. An id out of range fails the next read. `dtype` sets that of `y`. */
export const embedding = op('embedding', {
  in: { ids: 'i32[t]', weight: 'W[v,d]' },
  out: { y: 'Y[t,d]' },
});
