/** Parts of a Mamba mixer that are one step on the way back, for training. */
import { together } from '../autograd/together';
import type { Call, InputGradients } from '../autograd/tape';
import { matmul } from '../ops/matmul';
import { columnSums, matmulInputGradient, matmulWeightGradient } from '../ops/matmul-backward';
import { causalConv1dPacked, convolutionOf, scanGradients, selectiveScanPacked } from '../ops/scan';
import { causalConv1dBackward, convProjectBackward } from '../ops/scan-backward';
import { Tensor } from '../tensor';

/** The gradient of a product's matrix, if it is wanted. */
function matrixGradient({ inputs, sum }: Call, dy: Tensor, x: Tensor): Tensor | undefined {
  const wanted = inputs['projection'];
  if (!wanted) return undefined;
  const { plus, out } = sum('projection');
  return matmulWeightGradient({ dy, x, plus, dtype: wanted.dtype, out: { dweight: out } });
}

/**
 * `u = act(conv(x))` and `product = u · projectionᵀ`, `act` being silu or nothing. The gradient of u that comes from the
 * product is made where the convolution's are made of it.
 */
export const convProject = together(
  {
    name: 'conv_project',
    saves: ['x', 'weight', 'bias', 'offsets', 'projection', 'u'],
    vjp: (call): InputGradients => {
      const [u, projection] = [call.results['u']!, call.args['projection'] as Tensor];
      const { u: dy, product: dproduct } = call.grad;
      const own = dproduct && matrixGradient(call, dproduct, u);
      const conv = convolutionOf(call);
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
    readonly silu: boolean;
    readonly projection: Tensor; // [k, d]
  }) => {
    const u = causalConv1dPacked(conv);
    return { u, product: matmul({ x: u, weight: projection }) };
  },
);

/**
 * `scan(..) · projectionᵀ + projectionBias`. The scan's result is not kept, but left by its gradients, for the
 * matrix's.
 */
export const scanProject = together(
  {
    name: 'scan_project',
    saves: ['u', 'delta', 'A', 'B', 'C', 'D', 'z', 'deltaBias', 'offsets', 'projection'],
    vjp: (call): InputGradients => {
      const { args, inputs, room } = call;
      const dy = call.grad['y']!;
      const { shape, dtype, device } = args['u'] as Tensor;
      const dscan = matmulInputGradient({ dy, weight: args['projection'] as Tensor, dtype });
      const y = inputs['projection'] && Tensor.empty(shape, dtype, device);
      return {
        ...scanGradients(call, dscan, y),
        projection: y && matrixGradient(call, dy, y),
        projectionBias:
          inputs['projectionBias'] && columnSums({ x: dy, out: { sum: room('projectionBias') } }),
      };
    },
  },
  ({
    projection,
    projectionBias: bias,
    ...scan
  }: {
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
  }) => ({ y: matmul({ x: selectiveScanPacked(scan), weight: projection, bias }) }),
);
