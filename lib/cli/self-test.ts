import type { Device } from '../device';
import { selectiveScanPacked } from '../ops/scan';
import { scope, Tensor } from '../tensor';

const tokens = 33;
const channels = 17;
const states = 16;

/** Numbers between -1 and 1 without a pattern, the same ones each time. */
function values(count: number, phase: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => Math.sin((i + 1) * 12.9898 + phase));
}

/** The scan's definition, in f64: `h = exp(δ·A)·h + δ·B·u`, `y = C·h`. */
function plainScan(
  u: Float32Array,
  delta: Float32Array,
  A: Float32Array,
  B: Float32Array,
  C: Float32Array,
): number[] {
  const y = Array<number>(tokens * channels).fill(0); // [t, d]
  for (let d = 0; d < channels; d++) {
    for (let n = 0; n < states; n++) {
      let h = 0;
      for (let t = 0; t < tokens; t++) {
        const at = t * channels + d;
        h = Math.exp(delta[at]! * A[d * states + n]!) * h + delta[at]! * B[t * states + n]! * u[at]!;
        y[at]! += C[t * states + n]! * h;
      }
    }
  }
  return y;
}

/** Runs one small scan on `device`; gives the largest difference from a plain loop, relative to the largest value. */
export async function scanError(device: Device): Promise<number> {
  const u = values(tokens * channels, 1);
  const delta = values(tokens * channels, 2).map(Math.abs);
  const A = values(channels * states, 3).map((x) => -1 - Math.abs(x));
  const B = values(tokens * states, 4);
  const C = values(tokens * states, 5);
  const tensor = (data: Float32Array, ...shape: number[]) => Tensor.from(data, shape, { device });
  const y = scope(() =>
    selectiveScanPacked({
      u: tensor(u, tokens, channels),
      delta: tensor(delta, tokens, channels),
      A: tensor(A, channels, states),
      B: tensor(B, tokens, 1, states),
      C: tensor(C, tokens, 1, states),
      offsets: Tensor.from(Int32Array.of(0, tokens), [2], { device }),
    }),
  );
  const got = await y.data();
  y.dispose();
  const expected = plainScan(u, delta, A, B, C);
  const largest = Math.max(...expected.map(Math.abs));
  return Math.max(...expected.map((value, i) => Math.abs(value - got[i]!))) / largest;
}
