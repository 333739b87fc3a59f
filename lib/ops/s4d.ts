import type { InputGradients } from '../autograd/tape';
import { op } from '../op';
import type { Tensor } from '../tensor';
import { fftConvBackward, s4dDiscretizeBackward, s4dKernelBackward, s4dScanBackward } from './s4d-backward';
import { tooManyStates } from './scan-states';

/**
 * S4D's parameters as a discrete system (Gu et al. 2022, section 3 and listing 1), one complex number
 * for each of n conjugate pairs: with `A = -exp(logAReal) + i·aImag`, `Δ = exp(logDt)`, B = 1 where it
 * is not given,
 *
 *     E = Ā - 1,   W = C·B̄
 *
 * by zero-order hold `Ā = exp(ΔA)`, `B̄ = (Ā - 1)/A·B`; by the bilinear rule (`bilinear`)
 * `Ā = (1 + ΔA/2)/(1 - ΔA/2)`, `B̄ = Δ/(1 - ΔA/2)·B`. Computed in f64. E and not Ā: Ā of slow decay is
 * near 1, and in f32 would lose its rate. The last dimension is (real, imaginary).
 */
export const s4dDiscretize = op('s4d_discretize', {
  in: {
    logDt: 'f32[d]',
    logAReal: 'f32[d,n]',
    aImag: 'f32[d,n]',
    B: 'f32[d,n,2]?',
    C: 'f32[d,n,2]',
  },
  attrs: { bilinear: false },
  out: { E: 'f32[d,n,2]', W: 'f32[d,n,2]' },
  saves: ['logDt', 'logAReal', 'aImag', 'B', 'C'],
  vjp: ({ args, grad }): InputGradients => {
    const given = (name: string) => args[name] as Tensor;
    const d = s4dDiscretizeBackward({
      logDt: given('logDt'),
      logAReal: given('logAReal'),
      aImag: given('aImag'),
      B: args['B'] as Tensor | undefined,
      C: given('C'),
      dE: grad['E'],
      dW: grad['W'],
      bilinear: args['bilinear'] as boolean | undefined,
    });
    return { logDt: d.dlogDt, logAReal: d.dlogAReal, aImag: d.daImag, B: d.dB, C: d.dC };
  },
});

/**
 * The discrete system as a recurrence over packed sequences, O(1) a step:
 *
 *     h = h + E·h + u,   y = 2 Re(Σ_n W·h) + D·u
 *
 * h is the state of the S4D layer divided by B̄, which is part of W. `offsets`, `slots` and `state` are
 * those of `selectiveScanPacked`; the state is complex, (real, imaginary). Arithmetic and state are f32.
 * On the CPU full, chunked and step by step give the same bits.
 */
export const s4dScan = op('s4d_scan', {
  in: {
    u: 'T[t,d]',
    E: 'f32[d,n,2]',
    W: 'f32[d,n,2]',
    D: 'f32[d]?',
    offsets: 'i32[s+1]',
    slots: 'i32[s]?',
    state: 'f32[p,d,n,2]?!',
  },
  out: { y: 'T[t,d]' },
  check: (size) => tooManyStates(size('n')!, 'E'),
  saves: ['u', 'E', 'W', 'D', 'offsets'],
  vjp: ({ args, grad }): InputGradients => {
    const { du, dE, dW, dD } = s4dScanBackward({
      u: args['u'] as Tensor,
      E: args['E'] as Tensor,
      W: args['W'] as Tensor,
      D: args['D'] as Tensor | undefined,
      offsets: args['offsets'] as Tensor,
      dy: grad['y']!,
    });
    return { u: du, E: dE, W: dW, D: dD };
  },
});

/**
 * The same system's answer to an impulse, by Vandermonde's product (Gu et al. 2022, eq. 5):
 * `kernel[k] = 2 Re(Σ_n W·(1 + E)^k)`, k from 0 to l - 1. Powers are made in f64, sums in f32.
 */
export const s4dKernel = op('s4d_kernel', {
  in: { E: 'f32[d,n,2]', W: 'f32[d,n,2]' },
  attrs: { l: 0 },
  out: { kernel: 'f32[d,l]' },
  check: (size) => tooManyStates(size('n')!, 'E'),
  saves: ['E', 'W'],
  vjp: ({ args, grad }): InputGradients => {
    const { dE, dW } = s4dKernelBackward({
      E: args['E'] as Tensor,
      W: args['W'] as Tensor,
      dkernel: grad['kernel']!,
    });
    return { E: dE, W: dW };
  },
});

/**
 * Causal convolution of each packed sequence, which has at most l tokens, with a kernel for each
 * channel: `y[t] = Σ_k kernel[k]·u[t-k] + D·u[t]`, by FFTs of at least twice the length of the longest
 * sequence on the CPU, of l on CUDA, in f32. What is not finite spoils its sequence's whole channel.
 * On CUDA it needs cuFFT: without it the next read rejects with what to install.
 */
export const fftConv = op('fft_conv', {
  in: { u: 'T[t,d]', kernel: 'f32[d,l]', D: 'f32[d]?', offsets: 'i32[s+1]' },
  out: { y: 'T[t,d]' },
  saves: ['u', 'kernel', 'D', 'offsets'],
  vjp: ({ args, grad }): InputGradients => {
    const { du, dkernel, dD } = fftConvBackward({
      u: args['u'] as Tensor,
      kernel: args['kernel'] as Tensor,
      D: args['D'] as Tensor | undefined,
      offsets: args['offsets'] as Tensor,
      dy: grad['y']!,
    });
    return { u: du, kernel: dkernel, D: dD };
  },
});
