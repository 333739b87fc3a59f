import type { Call, InputGradients, Variable } from '../autograd/tape';
import { op } from '../op';
import type { Tensor } from '../tensor';
import { cast } from './elementwise';
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
  vjp: (call): InputGradients => productGradients(call, call.grad['y']!),
});

/** The gradients of a product's operands, from that of the product. */
function productGradients({ args, inputs, room, sum }: Call, dy: Tensor): InputGradients {
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
}

/**
 * `sum = residual + x · weightᵀ + bias`, all of it in f32: what a layer adds to the residual is not
 * rounded on the way. Many rows at once on CUDA: one kernel, as `matmul` alone.
 */
export const matmulAdd = op('matmul_add', {
  in: { x: 'T[m,k]', weight: 'W[n,k]', bias: 'f32[n]?', residual: 'f32[m,n]' },
  out: { sum: 'f32[m,n]' },
  saves: ['x', 'weight'],
  vjp: (call): InputGradients => {
    const { grad, inputs } = call;
    const dsum = grad['sum']!;
    const dtype = inputs['x']?.dtype ?? 'f32';
    const dy = dtype === 'f32' ? dsum : cast({ x: dsum, dtype });
    return { ...productGradients(call, dy), residual: inputs['residual'] && dsum };
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
