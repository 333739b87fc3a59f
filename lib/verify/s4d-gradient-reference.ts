/** The gradients of S4D's ops, plainly and in f64. */
import { at, expm1, over, times, type Complex } from './s4d-reference';
import { row, values, type Attrs, type Inputs } from './values';

const conjugate = ([a, b]: Complex): Complex => [a, -b];
const plus = ([a, b]: Complex, [c, d]: Complex): Complex => [a + c, b + d];
const minus = (a: Complex, [c, d]: Complex): Complex => plus(a, [-c, -d]);

/** As docs/kernels/s4d.md has it, by A, B and C. */
function discretize(inputs: Inputs, { bilinear }: Attrs): Inputs {
  const { logDt, logAReal, aImag, B, C, dE, dW } = inputs;
  const [d, n] = logAReal!.shape as [number, number];
  const [dlogDt, dlogAReal, daImag] = [values(d), values(d, n), values(d, n)];
  const [dB, dC] = [B ? values(d, n, 2) : values(0), values(d, n, 2)];
  for (let c = 0; c < d; c++)
    for (let j = 0; j < n; j++) {
      const dt = Math.exp(logDt!.data[c]!);
      const step: Complex = [dt, 0];
      const A: Complex = [-Math.exp(row(logAReal!, c)[j]!), row(aImag!, c)[j]!];
      const z = times(step, A);
      const b: Complex = B ? at(B, c, j) : [1, 0];
      const cb = times(at(C!, c, j), b);
      const [e, w]: Complex[] = [dE ? at(dE, c, j) : [0, 0], dW ? at(dW, c, j) : [0, 0]];
      const against = (a: Complex, by: Complex) => times(conjugate(a), by);
      let input: Complex; // W / (C B), and the gradients of A and Δ
      let dA: Complex;
      let dTime: number;
      if (bilinear) {
        const q = over([1, 0], [1 - z[0] / 2, -z[1] / 2]);
        const qq = times(q, q);
        input = times(step, q);
        dA = plus(against(times(step, qq), e!), against(times(cb, times([dt * dt * 0.5, 0], qq)), w!));
        dTime = against(times(A, qq), e!)[0] + against(times(cb, qq), w!)[0];
      } else {
        const E = expm1(z);
        input = over(E, A);
        const whole = plus(e!, against(over(cb, A), w!)); // of E by all ways
        const grown = plus([1, 0], E);
        dA = minus(against(times(step, grown), whole), against(over(times(cb, E), times(A, A)), w!));
        dTime = against(times(A, grown), whole)[0];
      }
      dlogDt.data[c]! += dt * dTime;
      row(dlogAReal, c)[j] = A[0] * dA[0];
      row(daImag, c)[j] = dA[1];
      row(dC, c).set(against(times(b, input), w!), 2 * j);
      if (B) row(dB, c).set(against(times(at(C!, c, j), input), w!), 2 * j);
    }
  return { dlogDt, dlogAReal, daImag, dB, dC };
}

/** By polar powers: nothing is carried from one tap to the next. */
function kernel({ E, W, dkernel }: Inputs): Inputs {
  const [d, n] = E!.shape as [number, number];
  const [dE, dW] = [values(d, n, 2), values(d, n, 2)];
  for (let c = 0; c < d; c++)
    for (let j = 0; j < n; j++) {
      const [re, im] = at(E!, c, j);
      const [size, angle] = [Math.hypot(1 + re, im), Math.atan2(im, 1 + re)];
      const power = (k: number): Complex => [
        size ** k * Math.cos(k * angle),
        size ** k * Math.sin(k * angle),
      ];
      let [p, q]: [Complex, Complex] = [
        [0, 0],
        [0, 0],
      ];
      row(dkernel!, c).forEach((tap, k) => {
        p = plus(p, times([tap, 0], power(k)));
        if (k > 0) q = plus(q, times([k * tap, 0], power(k - 1)));
      });
      row(dW, c).set(conjugate(times([2, 0], p)), 2 * j);
      row(dE, c).set(conjugate(times(times([2, 0], at(W!, c, j)), q)), 2 * j);
    }
  return { dE, dW };
}

/** By the sums themselves. */
function convolve({ u, kernel: taps, D, offsets, dy }: Inputs): Inputs {
  const d = u!.shape[1]!;
  const [du, dkernel] = [values(...u!.shape), values(...taps!.shape)];
  const dD = values(D ? d : 0);
  for (let s = 0; s + 1 < offsets!.data.length; s++)
    for (let t = offsets!.data[s]!; t < offsets!.data[s + 1]!; t++)
      for (let c = 0; c < d; c++) {
        const given = dy!.data[t * d + c]!;
        const first = c * taps!.shape[1]!;
        for (let k = 0; k <= t - offsets!.data[s]!; k++) {
          dkernel.data[first + k]! += given * u!.data[(t - k) * d + c]!;
          du.data[(t - k) * d + c]! += given * taps!.data[first + k]!;
        }
        if (!D) continue;
        du.data[t * d + c]! += given * D.data[c]!;
        dD.data[c]! += given * u!.data[t * d + c]!;
      }
  return { du, dkernel, dD };
}

/** By h and g of every token, in flat loops: lengths are long. */
function scan({ u, E, W, D, offsets, dy }: Inputs): Inputs {
  const [d, n] = E!.shape as [number, number];
  const [x, given, ends] = [u!.data, dy!.data, offsets!.data];
  const du = values(...u!.shape);
  const [dE, dW, dD] = [values(d, n, 2), values(d, n, 2), values(D ? d : 0)];
  const states = new Float64Array(2 * (u!.shape[0]! + 1));
  for (let s = 0; s + 1 < ends.length; s++)
    for (let c = 0; c < d; c++) {
      const [begin, end] = [ends[s]!, ends[s + 1]!];
      for (let at = 2 * c * n; at < 2 * (c + 1) * n; at += 2) {
        const [re, im] = [1 + E!.data[at]!, E!.data[at + 1]!];
        const [outRe, outIm] = [2 * W!.data[at]!, 2 * W!.data[at + 1]!];
        let [h, k, g, f] = [0, 0, 0, 0]; // h + i k, and g + i f
        for (let t = begin; t < end; t++) {
          states[2 * t] = h; // before the token
          states[2 * t + 1] = k;
          const next = re * h - im * k + x[t * d + c]!;
          k = re * k + im * h;
          h = next;
        }
        for (let t = end - 1; t >= begin; t--) {
          const by = given[t * d + c]!;
          const next = re * g + im * f + outRe * by;
          f = re * f - im * g - outIm * by;
          g = next;
          du.data[t * d + c]! += g;
          dW.data[at]! += 2 * by * h;
          dW.data[at + 1]! -= 2 * by * k;
          h = states[2 * t]!;
          k = states[2 * t + 1]!;
          dE.data[at]! += g * h + f * k;
          dE.data[at + 1]! += f * h - g * k;
        }
      }
      for (let t = begin; t < end && D; t++) {
        du.data[t * d + c]! += given[t * d + c]! * D.data[c]!;
        dD.data[c]! += given[t * d + c]! * x[t * d + c]!;
      }
    }
  return { du, dE, dW, dD };
}

/** By op name, for the table in `reference.ts`. */
export const s4dGradientReferences: Readonly<Record<string, (inputs: Inputs, attrs: Attrs) => Inputs>> = {
  s4d_discretize_backward: discretize,
  s4d_kernel_backward: kernel,
  s4d_scan_backward: scan,
  fft_conv_backward: convolve,
};
