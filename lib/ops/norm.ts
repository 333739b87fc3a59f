import type { Call, InputGradients } from '../autograd/tape';
import { op } from '../op';
import { Tensor, type DType } from '../tensor';
import { add, cast } from './elementwise';
import { columnSums, matmulInputGradient, matmulWeightGradient } from './matmul-backward';
import { addRmsNormBackward, layerNormBackward, rmsNormBackward } from './norm-backward';

/**
 * `y = x · rsqrt(mean(x²) + eps) · weight` over the last dimension (Zhang and Sennrich 2019, eq. 4).
 * `dtype` sets that of `y`, by default that of `x`.
 */
export const rmsNorm = op('rms_norm', {
  in: { x: 'T[t,d]', weight: 'f32[d]' },
  attrs: { eps: 1e-5 },
  out: { y: 'Y[t,d]' },
  saves: ['x', 'weight'],
  vjp: ({ args, grad, room }): InputGradients => {
    const { dx, dweight } = rmsNormBackward({
      ...normOf(args),
      weight: args['weight'] as Tensor,
      dy: grad['y']!,
      out: { dweight: room('weight') },
    });
    return { x: dx, weight: dweight };
  },
});

const normOf = (args: Call['args']) => ({ x: args['x'] as Tensor, eps: args['eps'] as number | undefined });

/** The gradients of `residual + x` where only that was used. */
const sumGradients = (dsum: Tensor, dtype: DType) => ({
  x: dtype === 'f32' ? dsum : cast({ x: dsum, dtype }),
  residual: dsum,
});

/** `sum = residual + x`, kept in f32, and `y`, the RMS norm of `sum`. */
export const addRmsNorm = op('add_rms_norm', {
  in: { x: 'T[t,d]', residual: 'f32[t,d]', weight: 'f32[d]' },
  attrs: { eps: 1e-5 },
  out: { y: 'T[t,d]', sum: 'f32[t,d]' },
  saves: ['sum', 'weight'],
  vjp: ({ args, results, grad: { y: dy, sum: dsum }, inputs, room }): InputGradients => {
    if (!dy) return sumGradients(dsum!, inputs['x']?.dtype ?? 'f32');
    const { dx, dresidual, dweight } = addRmsNormBackward({
      sum: results['sum']!,
      weight: args['weight'] as Tensor,
      eps: args['eps'] as number | undefined,
      ...{ dy, dsum },
      out: { dweight: room('weight') },
    });
    return { x: dx, residual: dresidual, weight: dweight };
  },
});

/**
 * The start of a layer in one call: `sum = residual + x` in f32, or `residual` itself without `x`;
 * `normed`, the RMS norm of `sum` by `normWeight`; `y = normed · weightᵀ + bias`. The same bits as
 * `addRmsNorm` and `matmul`; for one row of halves one kernel on CUDA. `dtype` sets that of
 * `y`, by default that of `x`; without `x` that of `normed` too, by default that of `weight`. On the way back
 * `normed` is not kept, but left by the norm's gradients.
 */
export const normMatmul = op('norm_matmul', {
  in: { x: 'T[t,d]?', residual: 'f32[t,d]', normWeight: 'f32[d]', weight: 'W[n,d]', bias: 'f32[n]?' },
  attrs: { eps: 1e-5 },
  out: { y: 'Y[t,n]', sum: 'f32[t,d]', normed: 'T[t,d]' },
  saves: ['sum', 'normWeight', 'weight'],
  vjp: ({ args, results, grad, inputs, room, sum: sumOf }): InputGradients => {
    const { y: dy, sum: dsum } = grad;
    const [weight, sum] = [args['weight'] as Tensor, results['sum']!];
    const dtype =
      inputs['x']?.dtype ?? grad['normed']?.dtype ?? (args['dtype'] as DType | undefined) ?? weight.dtype;
    const fromY = dy && matmulInputGradient({ dy, weight, dtype });
    const dnormed = fromY && grad['normed'] ? add(fromY, grad['normed']) : (fromY ?? grad['normed']);
    if (!dnormed) return sumGradients(dsum!, dtype);
    const normed = dy && inputs['weight'] && Tensor.empty(sum.shape, dtype, sum.device);
    const { dx, dresidual, dweight } = addRmsNormBackward({
      ...{ sum, dsum, normed, dy: dnormed },
      weight: args['normWeight'] as Tensor,
      eps: args['eps'] as number | undefined,
      out: { dweight: room('normWeight') },
    });
    const weightGradient = (dy: Tensor, x: Tensor) => {
      const { plus, out } = sumOf('weight');
      return matmulWeightGradient({ dy, x, plus, dtype: inputs['weight']!.dtype, out: { dweight: out } });
    };
    return {
      x: dx,
      residual: dresidual,
      normWeight: dweight,
      weight: dy && normed && weightGradient(dy, normed),
      bias: dy && inputs['bias'] && columnSums({ x: dy, out: { sum: room('bias') } }),
    };
  },
});

/** `y = (x - mean) / sqrt(variance + eps) · weight + bias` over the last dimension (Ba et al. 2016). */
export const layerNorm = op('layer_norm', {
  in: { x: 'T[t,d]', weight: 'f32[d]?', bias: 'f32[d]?' },
  attrs: { eps: 1e-5 },
  out: { y: 'Y[t,d]' },
  saves: ['x', 'weight'],
  vjp: ({ args, grad, inputs, room }): InputGradients => {
    const { dx, dweight, dbias } = layerNormBackward({
      ...normOf(args),
      weight: args['weight'] as Tensor | undefined,
      dy: grad['y']!,
      out: { dweight: room('weight'), dbias: room('bias') },
    });
    return { x: dx, weight: dweight, bias: inputs['bias'] && dbias };
  },
});
