/** The gradients of the norms; statistics are computed again from the input. */
import { op } from '../op';

/** The gradients of `rmsNorm`: with `r = rsqrt(mean(x²) + eps)` and `g = dy · weight`,
 * `dx = r · (g - x · r² · mean(g · x))` and `dweight = Σ_t dy · x · r`. */
export const rmsNormBackward = op('rms_norm_backward', {
  in: { x: 'X[t,d]', weight: 'f32[d]', dy: 'T[t,d]' },
  attrs: { eps: 1e-5 },
  out: { dx: 'X[t,d]', dweight: 'f32[d]' },
});

/**
 * The gradients of `addRmsNorm`: `dresidual = dsum + `the norm's dx, in f32, and `dx` the same in T. Where `normed`
 * is given, the norm's result is left there, for what else is made of it on the way back.
 */
export const addRmsNormBackward = op('add_rms_norm_backward', {
  in: { sum: 'f32[t,d]', weight: 'f32[d]', dy: 'T[t,d]', dsum: 'f32[t,d]?', normed: 'T[t,d]?!' },
  attrs: { eps: 1e-5 },
  out: { dx: 'T[t,d]', dresidual: 'f32[t,d]', dweight: 'f32[d]' },
});

/** The gradients of `layerNorm`; those of what it had no weight or bias for are of no use. */
export const layerNormBackward = op('layer_norm_backward', {
  in: { x: 'X[t,d]', weight: 'f32[d]?', dy: 'T[t,d]' },
  attrs: { eps: 1e-5 },
  out: { dx: 'X[t,d]', dweight: 'f32[d]', dbias: 'f32[d]' },
});
