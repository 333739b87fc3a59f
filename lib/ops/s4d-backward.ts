/** The gradients of S4D's ops: those of a complex number are that of its real part and of its imaginary part. */
import { op } from '../op';
import { tooManyStates } from './scan-states';

/**
 * The gradients of `s4dDiscretize`, in f64. With `s = 1 + E` and `c = (s·ΔA - E)/(ΔA)²` by zero-order hold,
 * `s = q²` and `c = q²/2` with `q = 1/(1 - ΔA/2)` by the bilinear rule, and * for the conjugate,
 *
 *     dA = (Δ·s)*·dE + (C·B·Δ²·c)*·dW,   dΔ = Re((A·s)*·dE + (C·B·s)*·dW)
 */
export const s4dDiscretizeBackward = op('s4d_discretize_backward', {
  in: {
    logDt: 'f32[d]',
    logAReal: 'f32[d,n]',
    aImag: 'f32[d,n]',
    B: 'f32[d,n,2]?',
    C: 'f32[d,n,2]',
    dE: 'f32[d,n,2]?',
    dW: 'f32[d,n,2]?',
  },
  attrs: { bilinear: false },
  out: { dlogDt: 'f32[d]', dlogAReal: 'f32[d,n]', daImag: 'f32[d,n]', dB: '=B', dC: 'f32[d,n,2]' },
});

/** The gradients of `s4dKernel`: `dW = 2 (Σ_k dkernel[k]·(1+E)^k)*`, `dE = 2 (W·Σ_k k·dkernel[k]·(1+E)^(k-1))*`. */
export const s4dKernelBackward = op('s4d_kernel_backward', {
  in: { E: 'f32[d,n,2]', W: 'f32[d,n,2]', dkernel: 'f32[d,l]' },
  out: { dE: 'f32[d,n,2]', dW: 'f32[d,n,2]' },
  check: (size) => tooManyStates(size('n')!, 'E'),
});

/**
 * The gradients of `fftConv`: `du[t] = Σ_k kernel[k]·dy[t+k] + D·dy[t]` and `dkernel[k] = Σ_t dy[t]·u[t-k]`,
 * which are causal convolutions of the reversed dy. `dD` is the first tap's.
 */
export const fftConvBackward = op('fft_conv_backward', {
  in: { u: 'T[t,d]', kernel: 'f32[d,l]', D: 'f32[d]?', offsets: 'i32[s+1]', dy: 'T[t,d]' },
  out: { du: 'T[t,d]', dkernel: 'f32[d,l]', dD: '=D' },
  check: (size) => (size('l') === 0 && size('t')! > 0 ? 'kernel has no taps, expected 1 or more' : undefined),
});

/**
 * The gradients of `s4dScan` over sequences that start from zero. States are computed again from the
 * inputs, from the starts of chunks. Backwards in time, with * for the conjugate,
 *
 *     g[t] = 2 W*·dy[t] + (1 + E)*·g[t+1],   du = Σ_n Re g + D·dy
 *     dW = 2 Σ_t dy[t]·h[t]*,   dE = Σ_t g[t]·h[t-1]*
 */
export const s4dScanBackward = op('s4d_scan_backward', {
  in: {
    u: 'T[t,d]',
    E: 'f32[d,n,2]',
    W: 'f32[d,n,2]',
    D: 'f32[d]?',
    offsets: 'i32[s+1]',
    dy: 'T[t,d]',
  },
  out: { du: 'T[t,d]', dE: 'f32[d,n,2]', dW: 'f32[d,n,2]', dD: '=D' },
  check: (size) => tooManyStates(size('n')!, 'E'),
});
