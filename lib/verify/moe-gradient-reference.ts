/** The gradients of routing and experts, plainly and in f64. */
import { activations, erf } from './moe-reference';
import { values, type Attrs, type Inputs } from './values';

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

const slopes: readonly ((x: number) => number)[] = [
  (x) => (x > 0 ? 1 : 0),
  (x) => (1 + erf(x / Math.SQRT2)) / 2 + (x * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI),
  (x) => sigmoid(x) * (1 + x * (1 - sigmoid(x))),
  (x) => sigmoid(x) * (1 - sigmoid(x)),
];

function activate({ x, factor, dy }: Inputs, { kind }: Attrs): Inputs {
  const [f, slope] = [activations[kind as number]!, slopes[kind as number]!];
  const given = dy!.data;
  const dfactor = factor ? { shape: factor.shape, data: x!.data.map((v, i) => given[i]! * f(v)) } : values(0);
  const dx = x!.data.map((v, i) => given[i]! * (factor?.data[i] ?? 1) * slope(v));
  return { dx: { shape: x!.shape, data: dx }, dfactor };
}

/** By op name, for the table in `reference.ts`. */
export const moeGradientReferences: Readonly<Record<string, (inputs: Inputs, attrs: Attrs) => Inputs>> = {
  activate_backward: activate,
};
