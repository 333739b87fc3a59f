/** The optimizer's ops, plainly and in f64: all of them update in place. */
import { sum, values, type Attrs, type Inputs } from './values';

function planStep({ squares, loss, learningRate, scaler }: Inputs, attrs: Attrs): Inputs {
  const { maxNorm, beta1, beta2, interval } = attrs as Readonly<Record<string, number>>;
  const control = values(5);
  const at = scaler!.data;
  const norm = Math.sqrt(squares!.data[0]!) / at[0]!;
  const mean = loss!.data[0]! / at[0]!;
  const take = Number.isFinite(norm) && Number.isFinite(mean);
  const clip = maxNorm! > 0 && norm > maxNorm! ? maxNorm! / (norm + 1e-6) : 1;
  const factor = take ? clip / at[0]! : 0;
  at[4] = norm;
  at[5] = mean;
  squares!.data[0] = take || interval! > 0 ? 0 : NaN;
  loss!.data[0] = 0;
  at[take ? 2 : 3]! += 1;
  control.data.set([
    Number(take),
    factor,
    learningRate!.data[0]!,
    1 - beta1! ** at[2]!,
    1 - beta2! ** at[2]!,
  ]);
  if (!(interval! > 0)) return { control };
  at[1] = take ? at[1]! + 1 : 0;
  if (!take) at[0]! /= 2;
  if (at[1] >= interval!) at.set([at[0]! * (at[0]! < 2 ** 24 ? 2 : 1), 0]);
  return { control };
}

function adamw({ parameter, m, v, gradient, control, copy }: Inputs, attrs: Attrs): Inputs {
  const { beta1, beta2, eps, decay } = attrs as Readonly<Record<string, number>>;
  const [take, factor, rate, first, second] = control!.data as unknown as [
    number,
    number,
    number,
    number,
    number,
  ];
  if (!take) return {};
  gradient!.data.forEach((raw, i) => {
    const g = raw * factor;
    m!.data[i] = beta1! * m!.data[i]! + (1 - beta1!) * g;
    v!.data[i] = beta2! * v!.data[i]! + (1 - beta2!) * g * g;
    const step = m!.data[i] / first / (Math.sqrt(v!.data[i] / second) + eps!);
    parameter!.data[i] = parameter!.data[i]! * (1 - rate * decay!) - rate * step;
    if (copy) copy.data[i] = parameter!.data[i]!;
  });
  return {};
}

/** By op name. */
export const optimizerReferences: Readonly<Record<string, (inputs: Inputs, attrs: Attrs) => Inputs>> = {
  add_squares: ({ x, sum: total }) => {
    total!.data[0]! += sum(x!.data.map((v) => v * v));
    return {};
  },
  plan_step: planStep,
  adamw,
  move_average: ({ average, x }, { decay }) => {
    average!.data.forEach((v, i) => (average!.data[i] = v + (x!.data[i]! - v) * (1 - Number(decay))));
    return {};
  },
};
