import type { Call, InputGradients } from '../autograd/tape';
import { op } from '../op';
import type { Tensor } from '../tensor';
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

/** The gradients of `residual + x`, from those of it and of its norm; `room` for the weight's, if it has one. */
function sumGradients(
  sum: Tensor,
  weight: Tensor,
  eps: number | undefined,
  dtype: Tensor['dtype'],
  room: () => Tensor | undefined,
  dy?: Tensor,
  dsum?: Tensor,
) {
  if (dy) return addRmsNormBackward({ sum, weight, dy, dsum, eps, out: { dweight: room() } });
  return { dx: dtype === 'f32' ? dsum! : cast({ x: dsum!, dtype }), dresidual: dsum!, dweight: undefined };
}

/** `sum = residual + x`, kept in f32, and `y`, the RMS norm of `sum`. */
export const addRmsNorm = op('add_rms_norm', {
  in: { x: 'T[t,d]', residual: 'f32[t,d]', weight: 'f32[d]' },
  attrs: { eps: 1e-5 },
  out: { y: 'T[t,d]', sum: 'f32[t,d]' },
  saves: ['sum', 'weight'],
  vjp: ({ args, results, grad, inputs, room }): InputGradients => {
    const dtype = inputs['x']?.dtype ?? 'f32';
    const { dx, dresidual, dweight } = sumGradients(
      results['sum']!,
      args['weight'] as Tensor,
      args['eps'] as number | undefined,
      dtype,
      () => room('weight'),
      grad['y'],
      grad['sum'],
    );
    return { x: dx, residual: dresidual, weight: dweight };
  },
});

/**
 * The start of a layer in one call: `sum = residual + x` in f32, or `residual` itself without `x`;
 * `normed`, the RMS norm of `sum` by `normWeight`; `y = normed · weightᵀ + bias`. The same bits as
 * `addRmsNorm` and `matmul`; for one row of halves one kernel on CUDA. `dtype` sets that of
 * `y`, by default that of `x`; without `x` that of `normed` too, by default that of `weight`.
 */
export const normMatmul = op('norm_matmul', {
  in: { x: 'T[t,d]?', residual: 'f32[t,d]', normWeight: 'f32[d]', weight: 'W[n,d]', bias: 'f32[n]?' },
  attrs: { eps: 1e-5 },
  out: { y: 'Y[t,n]', sum: 'f32[t,d]', normed: 'T[t,d]' },
  saves: ['sum', 'normed', 'normWeight', 'weight'],
  vjp: ({ args, results, grad: { y: dy, sum: dsum, normed }, inputs, room }): InputGradients => {
    const weight = args['weight'] as Tensor;
    const { dtype } = results['normed']!;
    const fromY = dy && matmulInputGradient({ dy, weight, dtype });
    const dnormed = fromY && normed ? add(fromY, normed) : (fromY ?? normed);
    const { dx, dresidual, dweight } = sumGradients(
      results['sum']!,
      args['normWeight'] as Tensor,
      args['eps'] as number | undefined,
      dtype,
      () => room('normWeight'),
      dnormed,
      dsum,
    );
    return {
      x: dx,
      residual: dresidual,
      normWeight: dweight,
      weight:
        dy &&
        inputs['weight'] &&
        matmulWeightGradient({ dy, x: results['normed']!, dtype: inputs['weight'].dtype }),
      bias: dy && inputs['bias'] && columnSums({ x: dy }),
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
