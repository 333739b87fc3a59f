import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { threads, type Device } from '../device';
import { packageRoot, packageVersion } from '../loader';
import type { DType } from '../tensor';
import type { Spread } from './measure';

/** What can be measured. */
export const benches = [
  'scan_fwd',
  'scan_steps',
  'conv_fwd',
  's4d_recurrent',
  's4d_convolutional',
  'prefill',
  'decode_step',
  'generate',
  'experts',
  'scan_bwd',
  'train_step',
] as const;
export type Bench = (typeof benches)[number];

/** One measurement. */
export interface Result {
  readonly bench: Bench;
  /** What was measured, as a row of the table names it. */
  readonly name: string;
  readonly dtype: DType;
  /** The sizes, in numbers. */
  readonly shape: Readonly<Record<string, number>>;
  readonly model?: string;
  /** Of the model's scan states, where it is not f32. */
  readonly stateDtype?: DType;
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
  /** Of the checkout that runs, with `-dirty` where files differ from it; an installed package's version. */
  readonly commit: string;
  readonly date: string;
}

export function origin(): Origin {
  const version = packageVersion();
  return { version, commit: commit() ?? `v${version}`, date: new Date().toISOString() };
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

/** A line of a results file, as bench/README.md describes it. `ms` is the median. */
export function jsonLine({ bench, device, dtype, model, stateDtype, shape, ms, ...line }: Line): string {
  const { figures, level, threads, version, commit, date } = line;
  const { median, ...spread } = ms;
  return `${JSON.stringify({
    ...{ bench, device, dtype, model, stateDtype, ...shape, ms: median, ...spread },
    ...{ figures, level, threads, version, commit, date },
  })}\n`;
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
  // A GPU's work does not depend on them.
  ['threads', ({ level, threads }) => (isGpu(level) ? undefined : String(threads))],
  ['ms', ({ ms }) => digits(ms.median)],
  ['p10', ({ ms }) => digits(ms.p10)],
  ['p90', ({ ms }) => digits(ms.p90)],
  figure('tokens/s', 'tokensPerSecond'),
  figure('ms/token ÷ shortest', 'tokenTimeToShortest'),
  figure('GFLOP/s', 'gflopPerSecond'),
  figure('Gexp/s', 'gigaExpPerSecond'),
  figure('% of exp bound', 'shareOfExp', 100),
  figure('MB', 'bytes', 1e-6),
  figure('GB/s', 'gbPerSecond'),
  figure('% of copy', 'shareOfCopy', 100),
  figure('% of read', 'shareOfRead', 100),
  figure('kernel ms', 'kernelMs'),
  figure('÷ recurrent', 'toRecurrent'),
  figure('chosen', 'chosen'),
  figure('ms in generate', 'generateMs'),
  figure('ms/step', 'stepMs'),
  figure('÷ step', 'toStep'),
  figure('ms to first token', 'promptMs'),
  figure('ms/step after it', 'afterPromptMs'),
  figure('÷ step', 'afterPromptToStep'),
  figure('routing ms', 'routingMs'),
  figure('loop ms', 'loopMs'),
  figure('loop ÷', 'toLoop'),
  figure('experts read', 'expertsRead'),
  figure('÷ copy', 'toCopy'),
  figure('peak MiB', 'peakBytes', 2 ** -20),
  figure('beyond weights', 'beyondWeightsBytes', 2 ** -20),
  figure('card MiB', 'cardBytes', 2 ** -20),
  figure('ops', 'ops'),
  figure('ns/op call', 'callNs'),
  figure('ns/op replayed', 'replayNs'),
  figure('% outside kernels', 'outsideKernels', 100),
  figure('their ms', 'theirMs'),
  figure('× as fast', 'timesAsFast'),
];

/** Whether a line's `level` is that of a GPU. */
export const isGpu = (level: string) => level.startsWith('compute capability');

/** Titles, then a row for each line; columns that would be empty are left out. */
export function tableRows(lines: readonly Line[]): string[][] {
  const used = columns.filter(([, value]) => lines.some((line) => value(line) !== undefined));
  return [used.map(([title]) => title), ...lines.map((line) => used.map(([, value]) => value(line) ?? ''))];
}
