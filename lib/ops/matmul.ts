import type { InputGradients, Variable } from '../autograd/tape';
import { op } from '../op';
import type { Tensor } from '../tensor';
import { columnSums, matmulInputGradient, matmulWeightGradient, rowsGradient } from './matmul-backward';

/**
 * `y = x · weightᵀ + bias`, accumulated in f32. The weight keeps its own dtype and is never expanded
 * as a whole; `dtype` sets that of `y`, by default that of `x`. On the CPU a row of `y` has the same
 * bits whatever other rows stand beside it.
 */
export const matmul = op('matmul', {
  in: { x: 'T[m,k]', weight: 'W[n,k]', bias: 'f32[n]?' },
  out: { y: 'Y[m,n]' },
  saves: ['x', 'weight'],
  vjp: ({ args, grad, inputs, room, sum }): InputGradients => {
    const dy = grad['y']!;
    const xGradient = ({ dtype }: Variable) => {
      const { plus, out } = sum('x');
      return matmulInputGradient({ dy, weight: args['weight'] as Tensor, plus, dtype, out: { dx: out } });
    };
    const weightGradient = ({ dtype }: Variable) => {
      const { plus, out } = sum('weight');
      return matmulWeightGradient({ dy, x: args['x'] as Tensor, plus, dtype, out: { dweight: out } });
    };
    return {
      x: inputs['x'] && xGradient(inputs['x']),
      weight: inputs['weight'] && weightGradient(inputs['weight']),
      bias: inputs['bias'] && columnSums({ x: dy, out: { sum: room('bias') } }),
    };
  },
});

/** Rows of `weight` by id. An id out of range fails the next read. `dtype` sets that of `y`. */
export const embedding = op('embedding', {
  in: { ids: 'i32[t]', weight: 'W[v,d]' },
  out: { y: 'Y[t,d]' },
  saves: ['ids'],
  vjp: ({ args, grad, inputs, sum }): InputGradients => ({
    weight: rowsGradient(args['ids'] as Tensor, grad['y']!, inputs['weight']!, sum('weight')),
  }),
});
