import type { Device } from '../device';
import { native } from '../native';

/** What the calls of one op took together. */
export interface OpTime {
  readonly op: string;
  readonly calls: number;
  readonly ms: number;
}

/**
 * The time of each op that `enqueue` queues, by the device's clock, slowest first. A stamp follows
 * each op, and its own cost is taken off. `enqueue` runs a few times before, unmeasured, so that
 * the queue has work for as long as the host needs to queue it all.
 */
export async function profileOps(device: Device, enqueue: () => Promise<unknown>): Promise<OpTime[]> {
  const names = new Map([...device.kernels].map(([name, { id }]) => [id, name]));
  const addon = native();
  const run = addon.run.bind(addon);
  const ops: string[] = [];
  const stamps: Promise<number>[] = [];
  const queued = Array.from({ length: 4 }, enqueue);
  const idle = [device.stamp(), device.stamp(), device.stamp(), device.stamp()];
  stamps.push(device.stamp());
  addon.run = (handle, kernel, ...args) => {
    run(handle, kernel, ...args);
    ops.push(names.get(kernel)!);
    stamps.push(device.stamp());
  };
  try {
    queued.push(enqueue());
  } finally {
    addon.run = run;
  }
  const [first, , , last] = await Promise.all(idle);
  const stampMs = (last! - first!) / 3;
  const times = await Promise.all(stamps);
  await Promise.all(queued);
  const sums = new Map<string, { calls: number; ms: number }>();
  ops.forEach((op, i) => {
    const sum = sums.get(op) ?? { calls: 0, ms: 0 };
    sum.calls++;
    sum.ms += Math.max(0, times[i + 1]! - times[i]! - stampMs);
    sums.set(op, sum);
  });
  return [...sums].map(([op, sum]) => ({ op, ...sum })).sort((a, b) => b.ms - a.ms);
}
