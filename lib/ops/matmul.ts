import type { Call, InputGradients } from '../autograd/tape';
import { op } from '../op';
import type { Tensor } from '../tensor';
import { cast } from './elementwise';
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
  vjp: ({ args, grad, inputs }): InputGradients => productGradients(args, inputs, grad['y']!),
});

/** The gradients of a product's operands, from that of the product. */
const productGradients = (args: Call['args'], inputs: Call['inputs'], dy: Tensor): InputGradients => ({
  x: inputs['x'] && matmulInputGradient({ dy, weight: args['weight'] as Tensor, dtype: inputs['x'].dtype }),
  weight:
    inputs['weight'] && matmulWeightGradient({ dy, x: args['x'] as Tensor, dtype: inputs['weight'].dtype }),
  bias: inputs['bias'] && columnSums({ x: dy }),
});

/**
 * `sum = residual + x · weightᵀ + bias`, all of it in f32: what a layer adds to the residual is not
 * rounded on the way. Many rows at once on CUDA: one kernel, as `matmul` alone.
 */
export const matmulAdd = op('matmul_add', {
  in: { x: 'T[m,k]', weight: 'W[n,k]', bias: 'f32[n]?', residual: 'f32[m,n]' },
  out: { sum: 'f32[m,n]' },
  saves: ['x', 'weight'],
  vjp: ({ args, grad: { sum: dsum }, inputs }): InputGradients => {
    const dtype = inputs['x']?.dtype ?? 'f32';
    const dy = dtype === 'f32' ? dsum! : cast({ x: dsum!, dtype });
    return { ...productGradients(args, inputs, dy), residual: inputs['residual'] && dsum };
  },
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
