import type { Device } from '../device';
import { Tensor } from '../tensor';

/** Short calls before those that count, so that JavaScript is compiled as in a process that serves. */
export const warmUps = 30;

/** Repeated timings of one thing. */
export interface Spread {
  readonly median: number;
  readonly p10: number;
  readonly p90: number;
  readonly runs: number;
}

/** The value below which the fraction `q` of `values` lies, interpolated. */
export function quantile(values: readonly number[], q: number): number {
  if (values.length === 0) throw new RangeError('quantile: values is empty, expected at least one');
  const sorted = [...values].sort((a, b) => a - b);
  const at = q * (sorted.length - 1);
  const below = sorted[Math.floor(at)]!;
  return below + (sorted[Math.ceil(at)]! - below) * (at - Math.floor(at));
}

export function spread(values: readonly number[]): Spread {
  return {
    median: quantile(values, 0.5),
    p10: quantile(values, 0.1),
    p90: quantile(values, 0.9),
    runs: values.length,
  };
}

/** Waits for what is queued. @throws DeviceError when some of it failed: its time means nothing. */
async function checkDone(device: Device): Promise<void> {
  const probe = Tensor.from([0], [1], { device });
  await probe.data().finally(() => probe.dispose());
}

/** Milliseconds by the device's clock that `work` takes, in `runs` runs after one that is not counted. */
export async function timeRuns(device: Device, work: () => unknown, runs: number): Promise<Spread> {
  const times: number[] = [];
  for (let run = -1; run < runs; run++) {
    const begin = device.stamp();
    await work();
    const time = (await device.stamp()) - (await begin);
    if (run >= 0) times.push(time);
  }
  await checkDone(device);
  return spread(times);
}

/** Short work is repeated until a timing lasts this long, so that neither clock nor queue shows. */
const leastMs = 10;

/** Milliseconds, by the device's clock, of what `enqueue` queues. */
export async function timeQueued(device: Device, enqueue: () => void, runs: number): Promise<Spread> {
  const timing = async (repeat: number) => {
    const begin = device.stamp();
    for (let i = 0; i < repeat; i++) enqueue();
    const end = device.stamp();
    return ((await end) - (await begin)) / repeat;
  };
  await timing(1);
  await checkDone(device);
  const repeat = Math.max(1, Math.ceil(leastMs / Math.max(await timing(1), 1e-4)));
  const times: number[] = [];
  for (let run = 0; run < runs; run++) times.push(await timing(repeat));
  await checkDone(device);
  return spread(times);
}
