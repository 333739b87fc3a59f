import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { threads, type Device } from '../device';
import { packageRoot } from '../loader';
import type { DType } from '../tensor';
import type { Spread } from './measure';

/** One measurement: a line of a results file. */
export interface Result {
  readonly bench: 'scan' | 'prefill' | 'decode';
  /** What was measured, as a row of the table names it. */
  readonly name: string;
  readonly dtype: DType;
  /** The sizes, in numbers. */
  readonly shape: Readonly<Record<string, number>>;
  readonly model?: string;
  readonly ms: Spread;
  /** What follows from the time; units stand in the names. */
  readonly figures: Readonly<Record<string, number>>;
}

/** A result, where it was measured, and with what. */
export type Line = Result & Origin & ReturnType<typeof machine>;

/** The device as it is set now. */
export function machine(device: Device) {
  const { name, detail } = device.info;
  return { device: name, level: detail, threads: threads() };
}

export interface Origin {
  readonly version: string;
  /** Of the checkout that runs; undefined in an installed package. */
  readonly commit: string | undefined;
  readonly date: string;
}

export function origin(): Origin {
  const { version } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as {
    version: string;
  };
  return { version, commit: commit(), date: new Date().toISOString() };
}

function commit(): string | undefined {
  // In node_modules git would answer for the project around it.
  if (!existsSync(join(packageRoot, '.git'))) return undefined;
  try {
    const question = ['describe', '--always', '--dirty', '--exclude=*'];
    return execFileSync('git', question, { cwd: packageRoot, encoding: 'utf8', stdio: 'pipe' }).trim();
  } catch {
    return undefined; // no git on this machine
  }
}

/** Three significant digits, without an exponent. */
export function digits(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  return Math.abs(value) >= 100
    ? Math.round(value).toLocaleString('en')
    : String(Number(value.toPrecision(3)));
}

type Column = readonly [title: string, value: (line: Line) => string | undefined];

const figure = (title: string, key: string, scale = 1): Column => [
  title,
  ({ figures }) => (figures[key] === undefined ? undefined : digits(figures[key] * scale)),
];

const columns: readonly Column[] = [
  ['', ({ name }) => name],
  ['dtype', ({ dtype }) => dtype],
  ['threads', (line) => String(line.threads)],
  ['ms', ({ ms }) => digits(ms.median)],
  ['p10', ({ ms }) => digits(ms.p10)],
  ['p90', ({ ms }) => digits(ms.p90)],
  figure('tokens/s', 'tokensPerSecond'),
  figure('GFLOP/s', 'gflopPerSecond'),
  figure('Gexp/s', 'gigaExpPerSecond'),
  figure('MB', 'bytes', 1e-6),
  figure('GB/s', 'gbPerSecond'),
  figure('% of copy', 'shareOfCopy', 100),
  figure('% of read', 'shareOfRead', 100),
  figure('ops', 'ops'),
  figure('ns/op call', 'callNs'),
  figure('ns/op replayed', 'replayNs'),
  figure('% outside kernels', 'outsideKernels', 100),
];

/** Titles, then a row for each line; columns that would be empty are left out. */
export function tableRows(lines: readonly Line[]): string[][] {
  const used = columns.filter(([, value]) => lines.some((line) => value(line) !== undefined));
  return [used.map(([title]) => title), ...lines.map((line) => used.map(([, value]) => value(line) ?? ''))];
}
