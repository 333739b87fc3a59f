import type { Device } from '../device';
import { native } from '../native';

/** What the calls of one op took together. */
export interface OpTime {
  readonly op: string;
  readonly calls: number;
  readonly ms: number;
}

/** Each op counts with the fastest of so many rounds: what else the machine does only adds. */
const rounds = 5;

/**
 * The time of each op that `enqueue` queues, by the device's clock, slowest first. A stamp follows
 * each op, and its own cost is taken off.
 */
export async function profileOps(device: Device, enqueue: () => Promise<unknown>): Promise<OpTime[]> {
  let fastest: readonly OpTime[] = [];
  for (let round = 0; round < rounds; round++) {
    const calls = await timeCalls(device, enqueue);
    fastest = calls.map((call, i) => ({ ...call, ms: Math.min(call.ms, fastest[i]?.ms ?? Infinity) }));
  }
  const sums = new Map<string, OpTime>();
  for (const { op, ms } of fastest) {
    const sum = sums.get(op) ?? { op, calls: 0, ms: 0 };
    sums.set(op, { op, calls: sum.calls + 1, ms: sum.ms + ms });
  }
  return [...sums.values()].sort((a, b) => b.ms - a.ms);
}

/** Each call in order. `enqueue` runs a few times before, so that the queue never waits for the host. */
async function timeCalls(device: Device, enqueue: () => Promise<unknown>): Promise<OpTime[]> {
  const names = new Map([...device.kernels].map(([name, { id }]) => [id, name]));
  const addon = native();
  const run = addon.run.bind(addon);
  const ops: string[] = [];
  const queued = Array.from({ length: 4 }, enqueue);
  const idle = Array.from({ length: 8 }, () => device.stamp());
  const stamps = [device.stamp()];
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
  const gaps = (times: readonly number[]) => times.slice(1).map((time, i) => time - times[i]!);
  const stampMs = Math.min(...gaps(await Promise.all(idle)));
  const times = gaps(await Promise.all(stamps));
  await Promise.all(queued);
  return ops.map((op, i) => ({ op, calls: 1, ms: Math.max(0, times[i]! - stampMs) }));
}
