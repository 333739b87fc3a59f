import { execFileSync } from 'node:child_process';
import type { Device } from '../device';

/** What the driver's own tool says of a card. */
export interface Card {
  /** The highest clock of its multiprocessors, MHz. */
  readonly clock: number;
  /** Bytes in use on the card, by everybody. Memory that our pool keeps for reuse counts: a high-water mark. */
  readonly used: number;
}

/** Asks nvidia-smi; undefined on a CPU, without the tool, or where it knows no single card of this name. */
export function askCard(device: Device): Card | undefined {
  if (device.id === 'cpu') return undefined;
  try {
    const query = ['--query-gpu=index,name,clocks.max.sm,memory.used', '--format=csv,noheader,nounits'];
    const text = execFileSync('nvidia-smi', query, { encoding: 'utf8', stdio: 'pipe', timeout: 20_000 });
    return chooseCard(text, device.info.name, Number(device.id.replace('cuda:', '')));
  } catch {
    return undefined;
  }
}

/** The row of card `index`, if it bears `name`; otherwise (CUDA_VISIBLE_DEVICES renumbers) the only one that does. */
export function chooseCard(text: string, name: string, index: number): Card | undefined {
  const rows = text
    .trim()
    .split('\n')
    .map((line) => line.split(',').map((cell) => cell.trim()))
    .filter((cells) => cells[1] === name);
  const row = rows.find(([at]) => Number(at) === index) ?? (rows.length === 1 ? rows[0] : undefined);
  const [clock, used] = [Number(row?.[2]), Number(row?.[3])];
  return clock > 0 && used >= 0 ? { clock, used: used * 2 ** 20 } : undefined;
}

/**
 * Exponentials a second that the special-function units can give: 16 a clock and multiprocessor, on
 * all cards from compute capability 8.0 to 12.0. The clock is the card's highest, so the bound is one.
 */
export function expBound(device: Device, clockMHz: number | undefined): number | undefined {
  if (device.id === 'cpu' || clockMHz === undefined) return undefined;
  return device.info.units * 16 * clockMHz * 1e6;
}
