import { capture } from '../capture';
import type { Device } from '../device';
import { selectiveScanPacked } from '../ops/scan';
import { selectiveScanBackward } from '../ops/scan-backward';
import { dtypeBytes, keep, scope, tensorsIn, type DType, type Tensor } from '../tensor';
import type { Bandwidth } from './bandwidth';
import { timeQueued } from './measure';
import type { Result } from './result';
import { evenOffsets, randomRows, timeRotating } from './rotation';

/** Sizes of one scan: z, D, the bias of Δ and softplus are on, B and C form one group. */
export interface ScanShape {
  readonly batch: number;
  readonly dim: number;
  readonly length: number;
  readonly state: number;
}

/** On the CPU: the 130m model at three lengths, a layer of the 2.8b model, a decode step of 64 sequences. */
export const scanShapes: readonly ScanShape[] = [
  { batch: 1, dim: 1536, length: 2048, state: 16 },
  { batch: 8, dim: 1536, length: 512, state: 16 },
  { batch: 1, dim: 5120, length: 2048, state: 16 },
  { batch: 64, dim: 1536, length: 1, state: 16 },
];

/** On a GPU: the ten shapes that its peers were measured with. */
export const peerScanShapes: readonly ScanShape[] = [
  [8, 1536, 2048],
  [8, 4096, 2048],
  [2, 8192, 4096],
  [64, 1536, 512],
  [256, 2048, 64],
  [1, 1536, 2048],
  [1, 5120, 8192],
  [1, 5120, 65536],
  [1, 1536, 131072],
  [1, 1536, 524288],
].map(([batch, dim, length]) => ({ batch: batch!, dim: dim!, length: length!, state: 16 }));

/** What a scan is measured against, and how. */
export interface ScanOptions {
  readonly bandwidth: Bandwidth;
  /** The device's exponentials a second, where it is known. */
  readonly expBound?: number | undefined;
  /** Sequences start from zero and leave no state, as the peers' do; otherwise as a model calls it. */
  readonly fresh?: boolean | undefined;
  readonly runs: number;
}

/** Bytes that any implementation moves: u, delta, z, B, C read, y written, the states read and written. */
export function scanBytes({ batch, dim, length, state }: ScanShape, dtype: DType, fresh = false): number {
  const perToken = dtypeBytes[dtype] * (4 * dim + 2 * state);
  const states = fresh ? 0 : 2 * batch * dim * state;
  return batch * length * perToken + 4 * (states + dim * (state + 2));
}

/** exp(δ·A) for each token, channel and state; those of softplus and silu come on top. */
export const scanExponentials = ({ batch, dim, length, state }: ScanShape) => batch * length * dim * state;

/** Times the fused op alone. */
export async function benchScan(
  device: Device,
  shape: ScanShape,
  dtype: DType,
  options: ScanOptions,
): Promise<Result> {
  const bytes = scanBytes(shape, dtype, options.fresh);
  const ms = await timeRotating(
    device,
    bytes,
    {
      make: () => scanInputs(device, shape, dtype, options.fresh),
      run: (inputs) => selectiveScanPacked({ ...inputs, deltaSoftplus: true }),
    },
    options.runs,
  );
  return scanResult('scan_fwd', shape, dtype, ms, bytes, options);
}

/** Bytes that any backward pass moves: u, delta, z, dy, B, C read, the gradients of all but dy written. */
export function scanBackwardBytes({ batch, dim, length, state }: ScanShape, dtype: DType): number {
  const perToken = dtypeBytes[dtype] * (7 * dim + 4 * state);
  return batch * length * perToken + 4 * 2 * dim * (state + 2);
}

/** Times the gradients of the scan alone, of sequences that start from zero. */
export async function benchScanBackward(
  device: Device,
  shape: ScanShape,
  dtype: DType,
  options: ScanOptions,
): Promise<Result> {
  const bytes = scanBackwardBytes(shape, dtype);
  const ms = await timeRotating(
    device,
    bytes,
    {
      make: () => ({
        ...scanInputs(device, shape, dtype, true),
        dy: randomRows(device, [shape.batch * shape.length, shape.dim], dtype, [-1, 1], 8),
      }),
      run: (inputs) => selectiveScanBackward({ ...inputs, deltaSoftplus: true }),
    },
    options.runs,
  );
  return scanResult('scan_bwd', shape, dtype, ms, bytes, options);
}

/** Steps beyond which the reference is not recorded: a graph has a node for each. */
export const mostSteps = 4096;

/**
 * The unfused reference: the same numbers from one call of the op for each token of the sequences,
 * with the state in memory in between. All calls are one recorded graph, so that the device and not
 * the host is measured.
 */
export async function benchScanSteps(
  device: Device,
  shape: ScanShape,
  dtype: DType,
  options: ScanOptions,
): Promise<Result> {
  const { batch, dim, length, state } = shape;
  const inputs = scope(() => {
    const made = { ...scanInputs(device, shape, dtype), offsets: evenOffsets(device, batch, 1) };
    for (const tensor of tensorsIn(made)) keep(tensor);
    return made;
  });
  try {
    const graph = capture(device, () => {
      for (let t = 0; t < length; t++) scope(() => void scanStep(inputs, shape, t));
    });
    try {
      const ms = await timeQueued(device, () => graph.replay(), options.runs);
      // The states are read and written at every step.
      const bytes = scanBytes({ batch: batch * length, dim, length: 1, state }, dtype);
      return scanResult('scan_steps', shape, dtype, ms, bytes, options);
    } finally {
      graph.dispose();
    }
  } finally {
    for (const tensor of tensorsIn(inputs)) tensor.dispose();
  }
}

type ScanInputs = ReturnType<typeof scanInputs>;

/** Token `t` of each sequence: rows that lie `length` apart. */
export function scanStep(inputs: ScanInputs, { batch, dim, length, state }: ScanShape, t: number): Tensor {
  const token = (x: Tensor, columns: number) =>
    x.reshape([batch, length * columns]).columns(t * columns, (t + 1) * columns);
  const group = (x: Tensor) => token(x, state).reshape([batch, 1, state]);
  return selectiveScanPacked({
    ...inputs,
    u: token(inputs.u, dim),
    delta: token(inputs.delta, dim),
    z: token(inputs.z, dim),
    B: group(inputs.B),
    C: group(inputs.C),
    deltaSoftplus: true,
  });
}

function scanResult(
  bench: 'scan_fwd' | 'scan_steps' | 'scan_bwd',
  shape: ScanShape,
  dtype: DType,
  ms: Result['ms'],
  bytes: number,
  { bandwidth, expBound }: ScanOptions,
): Result {
  const { batch, dim, length, state } = shape;
  const gbPerSecond = bytes / ms.median / 1e6;
  const exponentials = scanExponentials(shape);
  const gigaExpPerSecond = exponentials / ms.median / 1e6;
  return {
    bench,
    name: `${batch}×${dim}×${length}×${state}${bench === 'scan_steps' ? ', step by step' : ''}`,
    dtype,
    shape: { ...shape },
    ms,
    figures: {
      bytes,
      gbPerSecond,
      copyGbPerSecond: bandwidth.copy,
      shareOfCopy: gbPerSecond / bandwidth.copy,
      exponentials,
      gigaExpPerSecond,
      ...(expBound !== undefined && {
        boundGigaExpPerSecond: expBound / 1e9,
        shareOfExp: gigaExpPerSecond / (expBound / 1e9),
      }),
    },
  };
}

/** What a scan of this shape takes; random, the same each time. */
export function scanInputs(
  device: Device,
  { batch, dim, length, state }: ScanShape,
  dtype: DType,
  fresh = false,
) {
  const tokens = batch * length;
  let seed = 0;
  const floats = (rows: number, columns: number, least: number, most: number, type: DType = 'f32') =>
    randomRows(device, [rows, columns], type, [least, most], seed++);
  const activations = (columns: number) => floats(tokens, columns, -1, 1, dtype);
  return {
    u: activations(dim),
    delta: activations(dim),
    z: activations(dim),
    A: floats(dim, state, -state, -1),
    B: activations(state).reshape([tokens, 1, state]),
    C: activations(state).reshape([tokens, 1, state]),
    D: floats(dim, 1, 0, 1).reshape([dim]),
    deltaBias: floats(dim, 1, -6, -2).reshape([dim]),
    offsets: evenOffsets(device, batch, length),
    ...(!fresh && { state: floats(batch * dim, state, -1, 1).reshape([batch, dim, state]) }),
  };
}
