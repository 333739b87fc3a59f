import { noGrad } from '../autograd/grad';
import { isRecording, note, track, variableOf } from '../autograd/tape';
import { accumulate, mul, scale } from '../ops/elementwise';
import { crossEntropyGradient } from '../ops/loss';
import { matmul } from '../ops/matmul';
import { columnSums, matmulInputGradient, matmulWeightGradient } from '../ops/matmul-backward';
import { keep, scope, Tensor } from '../tensor';

export interface LinearCrossEntropy {
  /** [t, d]: what the logits are made of. */
  readonly x: Tensor;
  /** [v, d] */
  readonly weight: Tensor;
  /** f32[v] */
  readonly bias?: Tensor | undefined;
  /** i32[t]; -100 is left out. */
  readonly labels: Tensor;
  /** f32[1]: times the sum of the losses; for a mean its inverse count. */
  readonly factor: Tensor;
  /** Bytes of logits that are held at a time. */
  readonly most?: number;
}

/** Rows enough for matrix products at full speed, and little beside what the layers keep. */
const mostBytes = 512 << 20;

const matrix = (tensor: Tensor) => (tensor.shape.length === 2 ? tensor : tensor.reshape([1, tensor.size]));

/**
 * `factor · Σ cross-entropy(x · weightᵀ + bias, labels)`, f32[1], without all logits at once: some rows
 * at a time, in the dtype of x, whose gradients are computed together with their losses.
 */
export function linearCrossEntropy(given: LinearCrossEntropy): Tensor {
  const { x, weight, bias, labels, factor, most = mostBytes } = given;
  const [t, v] = [x.shape[0]!, weight.shape[0]!];
  const least = Math.max(1, Math.floor(most / (v * (x.dtype === 'f32' ? 4 : 2))));
  const rows = Math.ceil(t / Math.ceil(t / least)); // parts of one size
  const of = (tensor: Tensor | undefined) => (isRecording() && tensor ? variableOf(tensor) : undefined);
  const variables = { x: of(x), weight: of(weight), bias: of(bias) };
  const dx = variables.x && keep(Tensor.empty(x.shape, x.dtype, x.device));
  let dweight: Tensor | undefined;
  let dbias: Tensor | undefined;
  const loss = noGrad(() =>
    scope(() => {
      const losses = Tensor.empty([t], 'f32', x.device);
      for (let begin = 0; begin < t; begin += rows)
        scope(() => {
          const end = Math.min(t, begin + rows);
          const [part, out] = [x.rows(begin, end), losses.rows(begin, end)];
          const logits = matmul({ x: part, weight, bias });
          crossEntropyGradient({
            logits,
            labels: labels.rows(begin, end),
            scale: factor,
            out: { loss: out },
          });
          if (dx) matmulInputGradient({ dy: logits, weight, out: { dx: dx.rows(begin, end) } });
          if (variables.weight) {
            const { dtype } = variables.weight;
            const sum = { plus: dweight, out: { dweight } };
            dweight = keep(matmulWeightGradient({ dy: logits, x: part, dtype, ...sum }));
          }
          if (!variables.bias) return;
          const sums = columnSums({ x: logits });
          if (dbias) accumulate({ x: matrix(sums), sum: matrix(dbias) });
          else dbias = keep(sums);
        });
      const sum = columnSums({ x: losses.reshape([t, 1]) });
      return mul(matrix(sum), matrix(factor)).reshape([1]);
    }),
  );
  const inputs = Object.fromEntries(Object.entries(variables).filter(([, variable]) => variable));
  if (Object.keys(inputs).length === 0) return loss;
  const gradients = { x: dx, weight: dweight, bias: dbias };
  note({
    opName: 'linear_cross_entropy',
    // They are those of the value itself; on the way back they only meet the gradient of it.
    vjp: ({ grad }) => {
      for (const gradient of Object.values(gradients))
        if (gradient) scale({ x: matrix(gradient), factor: grad['loss']! });
      return gradients;
    },
    args: gradients,
    results: {},
    inputs: inputs as Record<string, NonNullable<(typeof variables)['x']>>,
    outputs: { loss: track(loss) },
  });
  return loss;
}
