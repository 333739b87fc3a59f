import { capture } from '../capture';
import type { Device } from '../device';
import { seeded } from '../nn/init';
import { cast } from '../ops/elementwise';
import { selectiveScanPacked } from '../ops/scan';
import { dtypeBytes, scope, sizeOf, Tensor, type DType } from '../tensor';
import type { Bandwidth } from './bandwidth';
import { timeQueued } from './measure';
import type { Result } from './result';

/** Sizes of one scan: z, D, the bias of Δ and softplus are on, B and C form one group. */
export interface ScanShape {
  readonly batch: number;
  readonly dim: number;
  readonly length: number;
  readonly state: number;
}

/** The 130m model at three lengths, a layer of the 2.8b model, and a decode step of 64 sequences. */
export const scanShapes: readonly ScanShape[] = [
  { batch: 1, dim: 1536, length: 2048, state: 16 },
  { batch: 8, dim: 1536, length: 512, state: 16 },
  { batch: 1, dim: 5120, length: 2048, state: 16 },
  { batch: 64, dim: 1536, length: 1, state: 16 },
];

/** Bytes that any implementation moves: u, delta, z, B, C read, y written, the states read and written. */
export function scanBytes({ batch, dim, length, state }: ScanShape, dtype: DType): number {
  const tokens = batch * length;
  return (
    dtypeBytes[dtype] * tokens * (4 * dim + 2 * state) + 4 * (2 * batch * dim * state + dim * (state + 2))
  );
}

/** exp(δ·A) for each token, channel and state; those of softplus and silu come on top. */
export const scanExponentials = ({ batch, dim, length, state }: ScanShape) => batch * length * dim * state;

/** Times the scan alone, as the model calls it. */
export async function benchScan(
  device: Device,
  shape: ScanShape,
  dtype: DType,
  bandwidth: Bandwidth,
  runs: number,
): Promise<Result> {
  const { batch, dim, length, state } = shape;
  const graph = scope(() => {
    const inputs = scanInputs(device, shape, dtype);
    return capture(device, () => selectiveScanPacked({ ...inputs, deltaSoftplus: true }));
  });
  const ms = await timeQueued(device, () => graph.replay(), runs);
  graph.dispose();
  const bytes = scanBytes(shape, dtype);
  const gbPerSecond = bytes / ms.median / 1e6;
  return {
    bench: 'scan',
    name: `${batch}×${dim}×${length}×${state}`,
    dtype,
    shape: { ...shape },
    ms,
    figures: {
      bytes,
      gbPerSecond,
      copyGbPerSecond: bandwidth.copy,
      shareOfCopy: gbPerSecond / bandwidth.copy,
      gigaExpPerSecond: scanExponentials(shape) / ms.median / 1e6,
    },
  };
}

function scanInputs(device: Device, { batch, dim, length, state }: ScanShape, dtype: DType) {
  const random = seeded(0);
  const floats = (shape: readonly number[], least: number, most: number) =>
    Tensor.from(
      Float32Array.from({ length: sizeOf(shape) }, () => least + (most - least) * random()),
      shape,
      { device },
    );
  const tokens = batch * length;
  const activations = (columns: number) => cast({ x: floats([tokens, columns], -1, 1), dtype });
  return {
    u: activations(dim),
    delta: activations(dim),
    z: activations(dim),
    A: floats([dim, state], -state, -1),
    B: activations(state).reshape([tokens, 1, state]),
    C: activations(state).reshape([tokens, 1, state]),
    D: floats([dim], 0, 1),
    deltaBias: floats([dim], -6, -2),
    offsets: Tensor.from(
      Int32Array.from({ length: batch + 1 }, (_, i) => i * length),
      [batch + 1],
      { device },
    ),
    state: floats([batch, dim, state], -1, 1),
  };
}
