/** S4D's ops, plainly and in f64. */
import { row, values, type Attrs, type Inputs, type Values } from './values';

export type Complex = readonly [number, number];
export const times = ([a, b]: Complex, [c, d]: Complex): Complex => [a * c - b * d, a * d + b * c];
export const over = ([a, b]: Complex, [c, d]: Complex): Complex => {
  const size = c * c + d * d;
  return [(a * c + b * d) / size, (b * c - a * d) / size];
};
/** e^z - 1, also for small z. */
export const expm1 = ([x, y]: Complex): Complex => [
  Math.expm1(x) * Math.cos(y) - 2 * Math.sin(y / 2) ** 2,
  Math.exp(x) * Math.sin(y),
];
export const at = (x: Values, c: number, j: number): Complex => [row(x, c)[2 * j]!, row(x, c)[2 * j + 1]!];

function discretize({ logDt, logAReal, aImag, B, C }: Inputs, { bilinear }: Attrs): Inputs {
  const [d, n] = logAReal!.shape as [number, number];
  const E = values(d, n, 2);
  const W = values(d, n, 2);
  for (let c = 0; c < d; c++)
    for (let j = 0; j < n; j++) {
      const dt = Math.exp(logDt!.data[c]!);
      const A: Complex = [-Math.exp(row(logAReal!, c)[j]!), row(aImag!, c)[j]!];
      const z = times([dt, 0], A);
      const below: Complex = [1 - z[0] / 2, -z[1] / 2];
      const e = bilinear ? over(z, below) : expm1(z);
      const input = bilinear ? over([dt, 0], below) : over(e, A);
      row(E, c).set(e, 2 * j);
      row(W, c).set(times(times(input, B ? at(B, c, j) : [1, 0]), at(C!, c, j)), 2 * j);
    }
  return { E, W };
}

function scan({ u, E, W, D, offsets, slots, state }: Inputs): Inputs {
  const [d, n] = E!.shape as [number, number];
  const y = values(...u!.shape);
  for (let s = 0; s + 1 < offsets!.data.length; s++) {
    const slot = slots ? slots.data[s]! : s;
    for (let c = 0; c < d; c++) {
      const kept = state && slot >= 0 ? row(state, slot).subarray(2 * c * n, 2 * (c + 1) * n) : undefined;
      const h = kept ?? new Float64Array(2 * n);
      const [e, weights] = [row(E!, c), row(W!, c)];
      for (let t = offsets!.data[s]!; t < offsets!.data[s + 1]!; t++) {
        const input = u!.data[t * d + c]!;
        let total = (D?.data[c] ?? 0) * input;
        for (let j = 0; j < 2 * n; j += 2) {
          const [re, im, x, y] = [1 + e[j]!, e[j + 1]!, h[j]!, h[j + 1]!];
          h[j] = re * x - im * y + input;
          h[j + 1] = re * y + im * x;
          total += 2 * (weights[j]! * h[j]! - weights[j + 1]! * h[j + 1]!);
        }
        y.data[t * d + c] = total;
      }
    }
  }
  return { y };
}

/** By polar powers: nothing is carried from one tap to the next. */
function kernel({ E, W }: Inputs, { l }: Attrs): Inputs {
  const [d, n] = E!.shape as [number, number];
  const taps = values(d, l as number);
  for (let c = 0; c < d; c++)
    for (let j = 0; j < n; j++) {
      const [re, im] = at(E!, c, j);
      const size = Math.hypot(1 + re, im);
      const angle = Math.atan2(im, 1 + re);
      for (let k = 0; k < (l as number); k++) {
        const power: Complex = [size ** k * Math.cos(k * angle), size ** k * Math.sin(k * angle)];
        row(taps, c)[k]! += 2 * times(at(W!, c, j), power)[0];
      }
    }
  return { kernel: taps };
}

/** By the sum itself. */
function convolve({ u, kernel: taps, D, offsets }: Inputs): Inputs {
  const d = u!.shape[1]!;
  const y = values(...u!.shape);
  for (let s = 0; s + 1 < offsets!.data.length; s++)
    for (let t = offsets!.data[s]!; t < offsets!.data[s + 1]!; t++)
      for (let c = 0; c < d; c++) {
        let total = (D?.data[c] ?? 0) * u!.data[t * d + c]!;
        const first = c * taps!.shape[1]!;
        for (let k = 0; k <= t - offsets!.data[s]!; k++)
          total += taps!.data[first + k]! * u!.data[(t - k) * d + c]!;
        y.data[t * d + c] = total;
      }
  return { y };
}

/** By op name, for the table in `reference.ts`. */
export const s4dReferences: Readonly<Record<string, (inputs: Inputs, attrs: Attrs) => Inputs>> = {
  s4d_discretize: discretize,
  s4d_scan: scan,
  s4d_kernel: kernel,
  fft_conv: convolve,
};
