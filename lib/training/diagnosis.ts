import { matrix, noGrad } from '../autograd/grad';
import type { Model } from '../models/model';
import { cast, fill, scale } from '../ops/elementwise';
import { addSquares } from '../ops/optimizer';
import { keep, scope, Tensor } from '../tensor';
import { countLabels, type TrainingBatch } from './batch';
import type { Parameters } from './parameters';
import type { Passes } from './step';

/** f32[1]: NaN where any element of `tensor` is not finite, 0 otherwise. */
function probe(tensor: Tensor, zero: Tensor): Tensor {
  const sum = keep(Tensor.from([0], [1], { device: tensor.device }));
  scope(() => {
    const x = cast({ x: matrix(tensor), dtype: 'f32' });
    scale({ x, factor: zero });
    addSquares({ x: x.reshape([x.size]), sum });
  });
  return sum;
}

const isFloat = ({ dtype, size }: Tensor) => dtype !== 'i32' && size > 0;

/**
 * The name of the first tensor that is not finite: a parameter, or what an op of the forward or backward
 * pass made of finite ones. The passes of the step after `steps` others run once more, op by op, and each
 * result is looked at on the device; nothing of it is there in an ordinary step.
 */
export async function firstNotFinite(
  model: Model,
  { leaves }: Parameters,
  passes: Passes,
  batches: readonly TrainingBatch[],
  steps: number,
): Promise<string | undefined> {
  for (const [name, tensor] of model.parameters) {
    const values = (await tensor.data()) as Float32Array;
    if (!values.every(Number.isFinite)) return `parameter ${name}`;
  }
  const names = new Map<unknown, string>();
  for (const { name, parameter, copy } of leaves)
    for (const tensor of [parameter, copy]) if (tensor) names.set(tensor, name);

  const zero = Tensor.from([0], [1], { device: model.device });
  const count = countLabels(batches);
  try {
    for (const [part, batch] of batches.entries()) {
      const probes: { readonly name: string; readonly sum: Tensor }[] = [];
      let last: string | undefined; // the parameter that was used last says where in the model we are
      const observer = {
        // What a kernel leaves alone is 0 then, and not whatever was there.
        before: (results: readonly Tensor[]) =>
          noGrad(() => results.filter(isFloat).forEach((x) => fill({ x: matrix(x) }))),
        after: (
          opName: string,
          args: Readonly<Record<string, unknown>>,
          written: Readonly<Record<string, Tensor>>,
        ) => {
          const own = Object.values(args).flatMap((arg) => names.get(arg) ?? []);
          last = own.at(-1) ?? last;
          const where = own.length > 0 ? ` with ${own.join(' and ')}` : last ? `, after ${last}` : '';
          for (const [name, tensor] of Object.entries(written))
            if (isFloat(tensor))
              probes.push({ name: `${name} of ${opName}${where}`, sum: noGrad(() => probe(tensor, zero)) });
        },
      };
      try {
        passes.observe(observer, batch, count, steps, part);
        for (const { name, sum } of probes) if (!Number.isFinite((await sum.data())[0])) return name;
      } finally {
        for (const { sum } of probes) sum.dispose();
      }
    }
    return undefined;
  } finally {
    zero.dispose();
  }
}
