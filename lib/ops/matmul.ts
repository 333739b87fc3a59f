import type { InputGradients } from '../autograd/tape';
import { op } from '../op';
import type { Tensor } from '../tensor';
import { columnSums, embeddingBackward, matmulInputGradient, matmulWeightGradient } from './matmul-backward';

/**
 * `y = x · weightᵀ + bias`, accumulated in f32. The weight keeps its own dtype and is never expanded
 * as a whole; `dtype` sets that of `y`, by default that of `x`. On the CPU a row of `y` has the same
 * bits whatever other rows stand beside it.
 */
export const matmul = op('matmul', {
  in: { x: 'T[m,k]', weight: 'W[n,k]', bias: 'f32[n]?' },
  out: { y: 'Y[m,n]' },
  saves: ['x', 'weight'],
  vjp: ({ args, grad: { y: dy }, inputs }): InputGradients => ({
    x:
      inputs['x'] &&
      matmulInputGradient({ dy: dy!, weight: args['weight'] as Tensor, dtype: inputs['x'].dtype }),
    weight:
      inputs['weight'] &&
      matmulWeightGradient({ dy: dy!, x: args['x'] as Tensor, dtype: inputs['weight'].dtype }),
    bias: inputs['bias'] && columnSums({ x: dy! }),
  }),
});

/** Rows of `weight` by id. An id out of range fails the next read. `dtype` sets that of `y`. */
export const embedding = op('embedding', {
  in: { ids: 'i32[t]', weight: 'W[v,d]' },
  out: { y: 'Y[t,d]' },
  saves: ['ids'],
  vjp: ({ args, grad: { y: dy }, inputs: { weight } }): InputGradients => ({
    weight: embeddingBackward({
      dy: dy!,
      ids: args['ids'] as Tensor,
      rows: weight!.shape[0]!,
      dtype: weight!.dtype,
    }),
  }),
});
