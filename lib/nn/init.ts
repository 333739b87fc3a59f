/** How fresh parameters are drawn: each fills an array, from a generator that a seed repeats. */
export type Random = () => number;
export type Init = (out: Float32Array, random: Random) => void;

/** sfc32 (Doty-Humphrey): uniform in [0, 1), seeded. */
export function seeded(seed: number): Random {
  let a = seed >>> 0;
  let b = Math.floor(seed / 2 ** 32) >>> 0;
  let c = 0x9e3779b9;
  let counter = 1;
  const next = () => {
    const t = (((a + b) | 0) + counter) | 0;
    counter = (counter + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = ((c << 21) | (c >>> 11)) + t;
    return (t >>> 0) / 2 ** 32;
  };
  for (let i = 0; i < 12; i++) next();
  return next;
}

export const zeros: Init = (out) => out.fill(0);
export const ones: Init = (out) => out.fill(1);

/** Uniform in [-bound, bound]. */
export const uniform =
  (bound: number): Init =>
  (out, random) => {
    for (let i = 0; i < out.length; i++) out[i] = (random() * 2 - 1) * bound;
  };

/** Normal with mean 0, by Box and Muller's transform. */
export const normal =
  (deviation: number): Init =>
  (out, random) => {
    for (let i = 0; i < out.length; i += 2) {
      const radius = deviation * Math.sqrt(-2 * Math.log(1 - random()));
      const angle = 2 * Math.PI * random();
      out[i] = radius * Math.cos(angle);
      if (i + 1 < out.length) out[i + 1] = radius * Math.sin(angle);
    }
  };

/** What a linear layer with `inputs` inputs starts from by default: uniform in ±1/√inputs. */
export const linear = (inputs: number): Init => uniform(1 / Math.sqrt(inputs));

/** S4D-Real (Gu et al. 2022, eq. 9): A = -(1, 2, ..., n) in each row, kept as log(-A). */
export const s4dRealLog =
  (n: number): Init =>
  (out) => {
    for (let i = 0; i < out.length; i++) out[i] = Math.log((i % n) + 1);
  };

/**
 * Δ's bias (Gu and Dao 2023, section 3.6): softplus of it is log-uniform in [min, max], and at least
 * `floor`.
 */
export const inverseSoftplusOfLogUniform =
  (min: number, max: number, floor: number): Init =>
  (out, random) => {
    for (let i = 0; i < out.length; i++) {
      const dt = Math.max(floor, Math.exp(random() * (Math.log(max) - Math.log(min)) + Math.log(min)));
      out[i] = dt + Math.log(-Math.expm1(-dt));
    }
  };

/** log Δ of S4D (Gu et al. 2022, section 4.4): uniform in [log min, log max]. */
export const logUniformLog =
  (min: number, max: number): Init =>
  (out, random) => {
    for (let i = 0; i < out.length; i++) out[i] = random() * (Math.log(max) - Math.log(min)) + Math.log(min);
  };

/**
 * The diagonals of S4D for n conjugate pairs, N = 2n (Gu et al. 2022, section 4.2): S4D-Lin
 * `A_j = -1/2 + iπj`, S4D-Inv `-1/2 + i(N/π)(N/(2j + 1) - 1)`, S4D-Real `-(j + 1)`.
 */
export const s4dDiagonal: Readonly<
  Record<'lin' | 'inv' | 'real', (n: number) => { readonly logReal: Init; readonly imag: Init }>
> = {
  lin: (n) => ({ logReal: (out) => out.fill(Math.log(0.5)), imag: byState(n, (j) => Math.PI * j) }),
  inv: (n) => ({
    logReal: (out) => out.fill(Math.log(0.5)),
    imag: byState(n, (j) => ((2 * n) / Math.PI) * ((2 * n) / (2 * j + 1) - 1)),
  }),
  real: (n) => ({ logReal: s4dRealLog(n), imag: zeros }),
};
const byState =
  (n: number, value: (j: number) => number): Init =>
  (out) => {
    for (let i = 0; i < out.length; i++) out[i] = value(i % n);
  };
