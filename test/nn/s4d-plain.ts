/** S4D plainly, in f64, from its continuous parameters: the convolution's own sum, and no recurrence. */
import { normal, randomFrom } from '../../lib/verify/cases';

// Taken out once: jest's globals are slow.
const { atan2, cos, exp, expm1, hypot, log, sin } = Math;

type Numbers = Float32Array | Float64Array;

export interface PlainSystem {
  readonly d: number;
  readonly n: number; // conjugate pairs
  readonly bilinear: boolean;
  readonly log_dt: Numbers; // [d]
  readonly log_A_real: Numbers; // [d, n]
  readonly A_imag: Numbers; // [d, n]
  readonly C: Numbers; // [d, n, 2]
  readonly D: Numbers; // [d]
}

/** The taps of channel c: 2 Re(Σ C B̄ Ā^k), each power from its logarithm. */
export function plainKernel(system: PlainSystem, c: number, length: number): Float64Array {
  const { n, bilinear, log_dt, log_A_real, A_imag, C } = system;
  const dt = exp(log_dt[c]!);
  const taps = new Float64Array(length);
  for (let j = 0; j < n; j++) {
    const [a, b] = [-exp(log_A_real[c * n + j]!), A_imag[c * n + j]!];
    const size = a * a + b * b;
    // log Ā, and B̄ as (real, imaginary).
    let [rate, angle] = [dt * a, dt * b];
    let re: number;
    let im: number;
    if (bilinear) {
      const [p, q] = [1 - rate / 2, -angle / 2];
      const below = p * p + q * q;
      [re, im] = [(dt * p) / below, (-dt * q) / below];
      const above: [number, number] = [1 + rate / 2, angle / 2];
      [rate, angle] = [log(hypot(...above)) - log(below) / 2, atan2(above[1], above[0]) - atan2(q, p)];
    } else {
      const [x, y] = [expm1(rate) * cos(angle) - 2 * sin(angle / 2) ** 2, exp(rate) * sin(angle)];
      [re, im] = [(x * a + y * b) / size, (y * a - x * b) / size];
    }
    const [cr, ci] = [C[2 * (c * n + j)]!, C[2 * (c * n + j) + 1]!];
    const [wr, wi] = [cr * re - ci * im, cr * im + ci * re];
    for (let k = 0; k < length; k++) {
      const power = exp(rate * k);
      taps[k]! += 2 * power * (wr * cos(angle * k) - wi * sin(angle * k));
    }
  }
  return taps;
}

/** y of channel c at the places `at`, for u [length, d]. */
export function plainAt(system: PlainSystem, u: Numbers, c: number, at: readonly number[]): number[] {
  const { d, D } = system;
  const taps = plainKernel(system, c, Math.max(...at) + 1);
  return at.map((t) => {
    let sum = D[c]! * u[t * d + c]!;
    for (let k = 0; k <= t; k++) sum += taps[k]! * u[(t - k) * d + c]!;
    return sum;
  });
}

export function randomSystem(
  d: number,
  n: number,
  init: 'lin' | 'real',
  bilinear: boolean,
  seed = 1,
): PlainSystem {
  const random = randomFrom(seed);
  const fill = (length: number, value: (i: number) => number) =>
    Float32Array.from({ length }, (_, i) => value(i));
  return {
    d,
    n,
    bilinear,
    log_dt: fill(d, () => Math.log(1e-3) + Math.log(100) * random()),
    log_A_real: fill(d * n, (i) => (init === 'real' ? Math.log((i % n) + 1) : Math.log(0.5))),
    A_imag: fill(d * n, (i) => (init === 'real' ? 0 : Math.PI * (i % n))),
    C: fill(2 * d * n, () => Math.SQRT1_2 * normal(random)),
    D: fill(d, () => normal(random)),
  };
}

export function noise(length: number, seed = 2): Float32Array {
  const random = randomFrom(seed);
  return Float32Array.from({ length }, () => normal(random));
}
