import { capture } from '../capture';
import type { Device } from '../device';
import { cast, zeroSlots } from '../ops/elementwise';
import { matmul } from '../ops/matmul';
import { keep, scope, Tensor } from '../tensor';
import { timeQueued } from './measure';

/** What memory gives with the threads that are set, in GB/s (10⁹ bytes). */
export interface Bandwidth {
  /** Reading one array and writing another; both count. */
  readonly copy: number;
  /** Reading one array: the product of a large matrix with one vector. */
  readonly read: number;
}

/** Beyond any cache: 256 MiB for a CPU, 1 GiB for a GPU. */
const shapeFor = (device: Device) => [device.id === 'cpu' ? 16384 : 65536, 4096] as const;
const runs = 7;

/** Measures what memory gives now. A ceiling: the fast end of the runs counts. */
export async function measureBandwidth(device: Device): Promise<Bandwidth> {
  const shape = shapeFor(device);
  const bytes = 4 * shape[0] * shape[1];
  const matrix = written(device, shape);
  const vector = Tensor.from(new Float32Array(shape[1]), [1, shape[1]], { device });
  const rate = async (moved: number, run: () => Tensor) => {
    const graph = capture(device, run);
    const { p10 } = await timeQueued(device, () => graph.replay(), runs);
    graph.dispose();
    return moved / p10 / 1e6;
  };
  try {
    return {
      copy: await rate(2 * bytes, () => cast({ x: matrix })),
      read: await rate(bytes, () => matmul({ x: vector, weight: matrix })),
    };
  } finally {
    matrix.dispose();
    vector.dispose();
  }
}

/** Memory that was never written to would not be read from memory. */
function written(device: Device, shape: readonly [number, number]): Tensor {
  const matrix = keep(Tensor.empty(shape, 'f32', device));
  const rows = Int32Array.from({ length: shape[0] }, (_, i) => i);
  scope(() => zeroSlots({ pool: matrix, slots: Tensor.from(rows, [shape[0]], { device }) }));
  return matrix;
}
