/** The gradients of the ops along sequences, which start from zero. */
import { op } from '../op';
import { scanComplaint } from './scan-states';

/**
 * The gradients of `selectiveScanPacked`. States are not given: they are computed again from the
 * inputs, kept at the boundaries of chunks only, and walked back chunk by chunk. With
 * `g = dy · silu(z)`, and `δ`, `h` as in the scan,
 *
 *     dh_t = C_t · g_t + exp(δ_{t+1}·A) · dh_{t+1}
 *
 * and from it the others by the chain rule. Sums are f32, always in one order. Where `y` is given, the scan's result
 * is left there, but for the order of its sums.
 */
export const selectiveScanBackward = op('selective_scan_backward', {
  in: {
    u: 'T[t,d]',
    delta: 'T[t,d]',
    A: 'f32[d,n]',
    B: 'T[t,g,n]|f32[d,n]',
    C: 'T[t,g,n]|f32[d,n]',
    D: 'f32[d]?',
    z: 'T[t,d]?',
    deltaBias: 'f32[d]?',
    offsets: 'i32[s+1]',
    dy: 'T[t,d]',
    y: 'T[t,d]?!',
  },
  attrs: { deltaSoftplus: false },
  out: {
    du: 'T[t,d]',
    ddelta: 'T[t,d]',
    dA: 'f32[d,n]',
    dB: '=B',
    dC: '=C',
    dD: '=D',
    dz: '=z',
    ddeltaBias: '=deltaBias',
  },
  strided: ['dB', 'dC', 'dz'],
  check: scanComplaint,
});

/** The gradients of `causalConv1dPacked`; what its silu was applied to is computed again. */
export const causalConv1dBackward = op('causal_conv1d_backward', {
  in: { x: 'T[t,d]', weight: 'f32[d,w]', bias: 'f32[d]?', offsets: 'i32[s+1]', dy: 'T[t,d]' },
  attrs: { silu: false },
  out: { dx: 'T[t,d]', dweight: 'f32[d,w]', dbias: '=bias' },
  strided: ['dx'],
  check: (size) => (size('w') === 0 ? 'weight has no taps, expected 1 or more' : undefined),
});

/**
 * The same where the convolution's result was also multiplied, by `projection`ᵀ: `dy` is the gradient that came another
 * way, to which `dproduct · projection` is added. The sum may be rounded to T; of halves on CUDA it is made in f32, where
 * it is used: see docs/kernels/backward.md for the sizes.
 */
export const convProjectBackward = op('conv_project_backward', {
  in: {
    x: 'T[t,d]',
    weight: 'f32[d,w]',
    bias: 'f32[d]?',
    offsets: 'i32[s+1]',
    dy: 'T[t,d]',
    dproduct: 'T[t,k]',
    projection: 'W[k,d]',
  },
  attrs: { silu: false },
  out: { dx: 'T[t,d]', dweight: 'f32[d,w]', dbias: '=bias' },
  strided: ['dx'],
  check: (size) => (size('w') === 0 ? 'weight has no taps, expected 1 or more' : undefined),
});
