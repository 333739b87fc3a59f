/** Parts of a Mamba mixer that are one step on the way back, for training. */
import { together } from '../autograd/together';
import type { Call, InputGradients } from '../autograd/tape';
import { cast } from '../ops/elementwise';
import { matmul, matmulAdd } from '../ops/matmul';
import { columnSums, matmulInputGradient, matmulWeightGradient } from '../ops/matmul-backward';
import { rmsNorm } from '../ops/norm';
import { addRmsNormBackward } from '../ops/norm-backward';
import { causalConv1dPacked, convolutionOf, scanGradients, selectiveScanPacked } from '../ops/scan';
import { causalConv1dBackward, convProjectBackward } from '../ops/scan-backward';
import { Tensor } from '../tensor';

/** The gradient of a product's matrix, the input of that name, if it is wanted. */
function matrixGradient({ inputs, sum }: Call, name: string, dy: Tensor, x: Tensor): Tensor | undefined {
  const wanted = inputs[name];
  if (!wanted) return undefined;
  const { plus, out } = sum(name);
  return matmulWeightGradient({ dy, x, plus, dtype: wanted.dtype, out: { dweight: out } });
}

/** The same of a product's bias. */
const biasGradient = ({ inputs, room }: Call, name: string, dy: Tensor): Tensor | undefined =>
  inputs[name] && columnSums({ x: dy, out: { sum: room(name) } });

/**
 * `u = silu(conv(x))` and `product = u · projectionᵀ`. The gradient of u that comes from the
 * product is made where the convolution's are made of it.
 */
export const convProject = together(
  {
    name: 'conv_project',
    saves: ['x', 'weight', 'bias', 'offsets', 'projection', 'u'],
    vjp: (call): InputGradients => {
      const [u, projection] = [call.results['u']!, call.args['projection'] as Tensor];
      const { u: dy, product: dproduct } = call.grad;
      const own = dproduct && matrixGradient(call, 'projection', dproduct, u);
      const conv = { ...convolutionOf(call), silu: true };
      const { dx, dweight, dbias } =
        dy && dproduct
          ? convProjectBackward({ ...conv, dy, dproduct, projection })
          : causalConv1dBackward({
              ...conv,
              dy: dy ?? matmulInputGradient({ dy: dproduct!, weight: projection, dtype: u.dtype }),
            });
      return { x: dx, weight: dweight, bias: dbias, projection: own };
    },
  },
  ({
    projection,
    ...conv
  }: {
    readonly x: Tensor; // [t, d]
    readonly weight: Tensor; // [d, w]
    readonly bias: Tensor | undefined; // [d]
    readonly offsets: Tensor;
    readonly slots: Tensor;
    readonly projection: Tensor; // [k, d]
  }) => {
    const u = causalConv1dPacked({ ...conv, silu: true });
    return { u, product: matmul({ x: u, weight: projection }) };
  },
);

interface ScanProject {
  readonly u: Tensor; // [t, d]
  readonly delta: Tensor; // [t, d]
  readonly A: Tensor; // [d, n]
  readonly B: Tensor; // [t, g, n]
  readonly C: Tensor; // [t, g, n]
  readonly D: Tensor; // [d]
  readonly z: Tensor; // [t, d]
  readonly deltaBias: Tensor; // [d]
  readonly offsets: Tensor;
  readonly slots: Tensor;
  readonly deltaSoftplus: boolean;
  readonly projection: Tensor; // [m, d]
  readonly projectionBias: Tensor | undefined; // [m]
}

const ofScan = ['u', 'delta', 'A', 'B', 'C', 'D', 'z', 'deltaBias', 'offsets', 'projection'];

/** From the gradient of the product. The scan's result is not kept, but left by its gradients, for the matrix's. */
function scanProjectGradients(call: Call, dy: Tensor): InputGradients {
  const { args, inputs } = call;
  const { shape, dtype, device } = args['u'] as Tensor;
  const dscan = matmulInputGradient({ dy, weight: args['projection'] as Tensor, dtype });
  const y = inputs['projection'] && Tensor.empty(shape, dtype, device);
  return {
    ...scanGradients(call, dscan, y),
    projection: y && matrixGradient(call, 'projection', dy, y),
    projectionBias: biasGradient(call, 'projectionBias', dy),
  };
}

/** `y = scan(..) · projectionᵀ + projectionBias`. */
export const scanProject = together(
  { name: 'scan_project', saves: ofScan, vjp: (call) => scanProjectGradients(call, call.grad['y']!) },
  ({ projection, projectionBias: bias, ...scan }: ScanProject) => ({
    y: matmul({ x: selectiveScanPacked(scan), weight: projection, bias }),
  }),
);

/**
 * From a layer's scan to the next one's first product: `sum = residual + ` what `scanProject` gives, which is not rounded on
 * the way, and `y = norm(sum) · nextᵀ + nextBias`. The norm's gradients leave its result, and the gradient of the sum
 * in the dtype of the products.
 */
export const scanToNext = together(
  {
    name: 'scan_to_next',
    saves: [...ofScan, 'normWeight', 'next', 'sum'],
    vjp: (call): InputGradients => {
      const { args, results, inputs, room } = call;
      const { y: dy, sum: dsum } = call.grad;
      const sum = results['sum']!;
      const { dtype } = args['u'] as Tensor;
      if (!dy) {
        const rounded = dtype === 'f32' ? dsum! : cast({ x: dsum!, dtype });
        return { ...scanProjectGradients(call, rounded), residual: dsum };
      }
      const normed = inputs['next'] && Tensor.empty(sum.shape, dtype, sum.device);
      const { dx, dresidual, dweight } = addRmsNormBackward({
        ...{ sum, dsum, normed },
        weight: args['normWeight'] as Tensor,
        eps: args['eps'] as number,
        dy: matmulInputGradient({ dy, weight: args['next'] as Tensor, dtype }),
        out: { dweight: room('normWeight') },
      });
      const next = normed && matrixGradient(call, 'next', dy, normed);
      const nextBias = biasGradient(call, 'nextBias', dy);
      normed?.dispose();
      return { ...scanProjectGradients(call, dx), residual: dresidual, normWeight: dweight, next, nextBias };
    },
  },
  ({
    projection,
    projectionBias,
    residual,
    normWeight: weight,
    eps,
    next,
    nextBias,
    ...scan
  }: ScanProject & {
    readonly residual: Tensor; // f32[t, m]
    readonly normWeight: Tensor; // [m]
    readonly eps: number;
    readonly next: Tensor; // [e, m]
    readonly nextBias: Tensor | undefined; // [e]
  }) => {
    const x = selectiveScanPacked(scan);
    const sum = matmulAdd({ x, weight: projection, bias: projectionBias, residual });
    const normed = rmsNorm({ x: sum, weight, eps, dtype: x.dtype });
    return { y: matmul({ x: normed, weight: next, bias: nextBias }), sum };
  },
);
