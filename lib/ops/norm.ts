import { op } from '../op';

/**
 * `y = x · rsqrt(mean(x²) + eps) · weight` over the last dimension (Zhang and Sennrich 2019, eq. 4).
 * `dtype` sets that of `y`, by default that of `x`.
 */
export const rmsNorm = op('rms_norm', {
  in: { x: 'T[t,d]', weight: 'f32[d]' },
  attrs: { eps: 1e-5 },
  out: { y: 'Y[t,d]' },
});

/** `sum = residual + x`, kept in f32, and `y`, the RMS norm of `sum`. */
export const addRmsNorm = op('add_rms_norm', {
  in: { x: 'T[t,d]', residual: 'f32[t,d]', weight: 'f32[d]' },
  attrs: { eps: 1e-5 },
  out: { y: 'T[t,d]', sum: 'f32[t,d]' },
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
});

/** `y = (x - mean) / sqrt(variance + eps) · weight + bias` over the last dimension (Ba et al. 2016). */
export const layerNorm = op('layer_norm', {
  in: { x: 'T[t,d]', weight: 'f32[d]?', bias: 'f32[d]?' },
  attrs: { eps: 1e-5 },
  out: { y: 'Y[t,d]' },
});
