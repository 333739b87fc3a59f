import { capture } from '../capture';
import type { Device } from '../device';
import { seeded } from '../nn/init';
import { cast, takeRows } from '../ops/elementwise';
import { keep, scope, Tensor, tensorsIn, type DType } from '../tensor';
import { timeQueued, type Spread } from './measure';

/** Beyond the L2 of any card; and so that a graph's launch, some microseconds, is few of those that its runs take. */
const leastBytes = 2 ** 30;
const mostSets = 64;

/** How many sets of operands one timing goes round, so that a GPU's L2 holds none when its turn comes. */
export function setsOf(device: Device, bytes: number): number {
  return device.id === 'cpu' ? 1 : Math.min(mostSets, Math.max(1, Math.ceil(leastBytes / bytes)));
}

/**
 * Milliseconds that `run` takes on one of the sets that `make` makes; `bytes` is what one run moves.
 * All sets' runs are one graph, so that short kernels follow one another without the host.
 */
export async function timeRotating<S>(
  device: Device,
  bytes: number,
  { make, run }: { readonly make: () => S; readonly run: (operands: S) => unknown },
  runs: number,
): Promise<Spread> {
  const count = setsOf(device, bytes);
  const sets: S[] = [];
  try {
    for (let i = 0; i < count; i++) {
      const made = scope(make);
      for (const tensor of tensorsIn(made)) keep(tensor);
      sets.push(made);
    }
    // The results live as long as the graph: each run writes to memory of its own.
    const graph = capture(device, () => sets.map(run));
    try {
      const ms = await timeQueued(device, () => graph.replay(), runs);
      const { median, p10, p90 } = ms;
      return { ...ms, median: median / count, p10: p10 / count, p90: p90 / count };
    } finally {
      graph.dispose();
      for (const tensor of tensorsIn(graph.result)) tensor.dispose();
    }
  } finally {
    for (const tensor of tensorsIn(sets)) tensor.dispose();
  }
}

/** Distinct rows to draw from: JavaScript fills these, the device makes the rest of them. */
const drawnElements = 2 ** 18;

/** Uniform random numbers in [least, most]: few rows are drawn, and repeated in random order. */
export function randomRows(
  device: Device,
  [rows, columns]: readonly [number, number],
  dtype: DType,
  [least, most]: readonly [number, number],
  seed: number,
): Tensor {
  const random = seeded(seed);
  const drawn = Math.min(rows, Math.max(1, Math.ceil(drawnElements / columns)));
  const values = Float32Array.from({ length: drawn * columns }, () => least + (most - least) * random());
  return scope(() => {
    const floats = Tensor.from(values, [drawn, columns], { device });
    const x = dtype === 'f32' ? floats : cast({ x: floats, dtype });
    if (drawn === rows) return x;
    const order = Int32Array.from({ length: rows }, () => Math.floor(random() * drawn));
    return takeRows({ x, rows: Tensor.from(order, [rows], { device }) });
  });
}

/** i32[batch + 1]: where sequences of `length` tokens begin and end. */
export function evenOffsets(device: Device, batch: number, length: number): Tensor {
  const offsets = Int32Array.from({ length: batch + 1 }, (_, i) => i * length);
  return Tensor.from(offsets, [batch + 1], { device });
}
