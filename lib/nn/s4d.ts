import { isRecording } from '../autograd/tape';
import { DeviceError } from '../errors';
import { fftConv, s4dDiscretize, s4dKernel, s4dScan } from '../ops/s4d';
import { keep, scope, type Tensor } from '../tensor';
import * as init from './init';
import { chooseExecution, type S4DMode } from './s4d-cost';
import type { Weights } from './weights';

export const s4dInits = ['lin', 'inv', 'real'] as const;
export const s4dRules = ['zoh', 'bilinear'] as const;

/** The sizes and rules of an S4D layer (Gu et al. 2022), in the paper's names. */
export interface S4DConfig {
  readonly dModel: number;
  /** N: the real size of a channel's state, held as N/2 complex numbers; even, at most 512. */
  readonly dState: number;
  /** Where A starts: S4D-Lin, S4D-Inv or S4D-Real. */
  readonly init: (typeof s4dInits)[number];
  readonly discretization: (typeof s4dRules)[number];
  /** Δ starts log-uniform between these. */
  readonly dtMin: number;
  readonly dtMax: number;
}

/** Packed sequences, and where their states live; without `state` they start from nothing. */
export interface S4DBatch {
  readonly offsets: Tensor; // i32[s+1]
  readonly slots?: Tensor; // i32[s]
  /** f32[p, dModel, dState/2, 2], updated. */
  readonly state?: Tensor;
  /** Tokens of the longest sequence, where that is known; all tokens otherwise. */
  readonly longest?: number;
  readonly mode: S4DMode;
}

/**
 * S4D between its input and its activation: `y = SSM(u) + D·u` for each channel, with parameters by
 * the names of the published minimal layer (`log_dt`, `log_A_real`, `A_imag`, `C`, `D`).
 */
export class S4DMixer {
  readonly #config: S4DConfig;
  readonly #logDt: Tensor; // [d]
  readonly #logAReal: Tensor; // [d, n]
  readonly #aImag: Tensor; // [d, n]
  readonly #C: Tensor; // [d, n, 2]
  readonly #D: Tensor; // [d]
  #system: { readonly E: Tensor; readonly W: Tensor } | undefined;

  constructor(w: Weights, config: S4DConfig) {
    const { dModel: d, dState, dtMin, dtMax } = config;
    const n = dState / 2;
    const A = init.s4dDiagonal[config.init](n);
    this.#config = config;
    this.#logDt = w.get('log_dt', [d], init.logUniformLog(dtMin, dtMax));
    this.#logAReal = w.get('log_A_real', [d, n], A.logReal);
    this.#aImag = w.get('A_imag', [d, n], A.imag);
    this.#C = w.get('C', [d, n, 2], init.normal(Math.SQRT1_2)); // complex, of variance 1
    this.#D = w.get('D', [d], init.normal(1));
  }

  /** Once the parameters are loaded or changed: the discrete system, which every call needs. */
  ready(): void {
    this.dispose();
    const { E, W } = this.#discretize();
    this.#system = { E: keep(E), W: keep(W) };
  }

  #discretize() {
    return s4dDiscretize({
      logDt: this.#logDt,
      logAReal: this.#logAReal,
      aImag: this.#aImag,
      C: this.#C,
      bilinear: this.#config.discretization === 'bilinear',
    });
  }

  /**
   * u [t, d] to [t, d]. A state makes it a recurrence in every mode: the last state costs as much as
   * that by any way.
   * @throws DeviceError where `mode` asks for a convolution and the device has no FFTs.
   */
  forward(u: Tensor, { offsets, slots, state, longest, mode }: S4DBatch): Tensor {
    // While gradients are recorded it follows from the parameters, and not from what is kept.
    const { E, W } = isRecording() ? this.#discretize() : this.#system!;
    const [tokens, d] = u.shape as [number, number];
    const l = Math.min(longest ?? tokens, tokens);
    const shape = { sequences: offsets.shape[0]! - 1, tokens, longest: l, d, n: this.#config.dState / 2 };
    const inTraining = isRecording() && u.device.fft.found ? 'convolutional' : 'recurrent';
    const chosen = mode === 'auto' && isRecording() ? inTraining : chooseExecution(mode, u.device, shape);
    if (state || chosen === 'recurrent') return s4dScan({ u, E, W, D: this.#D, offsets, slots, state });
    if (!u.device.fft.found) throw new DeviceError(`S4D: mode is convolutional; ${u.device.fft.text}`);
    return scope(() => fftConv({ u, kernel: s4dKernel({ E, W, l }), D: this.#D, offsets }));
  }

  dispose(): void {
    this.#system?.E.dispose();
    this.#system?.W.dispose();
  }
}
