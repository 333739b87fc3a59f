import type { Device } from '../device';
import { causalConv1dPacked } from '../ops/scan';
import { dtypeBytes, type DType } from '../tensor';
import type { Bandwidth } from './bandwidth';
import type { Result } from './result';
import { evenOffsets, randomRows, timeRotating } from './rotation';

/** Sizes of one causal convolution with bias and silu; sequences start afresh. */
export interface ConvShape {
  readonly batch: number;
  readonly dim: number;
  readonly length: number;
  readonly width: number;
}

export const convShapes: readonly ConvShape[] = [
  { batch: 1, dim: 1536, length: 2048, width: 4 },
  { batch: 8, dim: 1536, length: 512, width: 4 },
];

/** Those that the peer was measured with. */
export const peerConvShapes: readonly ConvShape[] = [
  { batch: 8, dim: 1536, length: 2048, width: 4 },
  { batch: 8, dim: 4096, length: 2048, width: 4 },
  { batch: 1, dim: 5120, length: 65536, width: 4 },
];

/** Bytes that any implementation moves: x read, y written, weight and bias. */
export const convBytes = ({ batch, dim, length, width }: ConvShape, dtype: DType) =>
  2 * dtypeBytes[dtype] * batch * length * dim + 4 * dim * (width + 1);

/** Times the convolution alone. */
export async function benchConv(
  device: Device,
  shape: ConvShape,
  dtype: DType,
  { bandwidth, runs }: { readonly bandwidth: Bandwidth; readonly runs: number },
): Promise<Result> {
  const { batch, dim, length, width } = shape;
  const bytes = convBytes(shape, dtype);
  const ms = await timeRotating(
    device,
    bytes,
    {
      make: () => ({
        x: randomRows(device, [batch * length, dim], dtype, [-1, 1], 0),
        weight: randomRows(device, [dim, width], 'f32', [-0.5, 0.5], 1),
        bias: randomRows(device, [dim, 1], 'f32', [-0.5, 0.5], 2).reshape([dim]),
        offsets: evenOffsets(device, batch, length),
      }),
      run: (inputs) => causalConv1dPacked({ ...inputs, silu: true }),
    },
    runs,
  );
  const gbPerSecond = bytes / ms.median / 1e6;
  return {
    bench: 'conv_fwd',
    name: `${batch}×${dim}×${length}, ${width} wide`,
    dtype,
    shape: { ...shape },
    ms,
    figures: {
      bytes,
      gbPerSecond,
      copyGbPerSecond: bandwidth.copy,
      shareOfCopy: gbPerSecond / bandwidth.copy,
    },
  };
}
