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

/** `y = (x - mean) / sqrt(variance + eps) · weight + bias` over the last dimension (Ba et al. 2016). */
export const layerNorm = op('layer_norm', {
  in: { x: 'T[t,d]', weight: 'f32[d]?', bias: 'f32[d]?' },
  attrs: { eps: 1e-5 },
  out: { y: 'Y[t,d]' },
});
