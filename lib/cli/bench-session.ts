import { appendFileSync, statSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { compared, counterpart, ratioSummary, readMeasured, type Measured } from '../bench/compare';
import { openModel } from '../bench/model';
import type { OpTime } from '../bench/profile';
import { digits, jsonLine, machine, origin, tableRows, type Line, type Result } from '../bench/result';
import { device as openDevice, setThreads, threads, type Device } from '../device';
import type { CausalLM } from '../generation/causal-lm';
import type { FloatFormat } from '../io/convert';
import type { CommonFlags, ModelFlags } from './bench-flags';
import { interruption } from './exit';
import { asUsage } from './exit';
import { checkOutput } from './output-file';
import { note, oneLine, print, table } from './terminal';

/** One command's results: written as they come, then shown as a table and a plot. */
export class Session {
  readonly device: Device;
  readonly dtypes: readonly FloatFormat[];
  readonly lines: Line[] = [];
  readonly #flags: CommonFlags;
  readonly #output: string | undefined;
  readonly #others: readonly Measured[];
  readonly #used = new Set<Measured>();
  readonly #origin = origin();
  readonly #signal = interruption();
  #ops = '';

  private constructor(
    flags: CommonFlags,
    bench: string,
    onGpu: readonly FloatFormat[],
    others: readonly Measured[],
  ) {
    this.#flags = flags;
    this.#others = others;
    this.device = openDevice(flags.device);
    this.dtypes = flags.dtype ?? (this.isGpu ? onGpu : ['f32']);
    this.#output = flags.output && fileIn(flags.output, bench);
    if (this.#output !== undefined) appendFileSync(this.#output, ''); // fails now rather than later
    const { name } = this.device.info;
    const strange = new Set(others.map(({ device }) => device).filter((device) => device !== name));
    for (const device of strange) {
      note(
        `warning: --compare: times of ${oneLine(device)}, here ${name}; a ratio tells of both cards and code`,
      );
    }
  }

  /** `bench` names the file in an output folder; `onGpu` are the dtypes that a GPU is asked for by default. */
  static async open(flags: CommonFlags, bench: string, onGpu: readonly FloatFormat[]): Promise<Session> {
    if (flags.output !== undefined) await checkOutput('--output', fileIn(flags.output, bench), true);
    if (flags.plot !== undefined) await checkOutput('--plot', flags.plot, true);
    const others =
      flags.compare === undefined ? [] : await readMeasured(flags.compare).catch(asUsage('--compare'));
    return new Session(flags, bench, onGpu, others);
  }

  get isGpu(): boolean {
    return this.device.id !== 'cpu';
  }

  /** Calls `work` with each number of threads that was asked for. */
  async eachThreads(work: () => Promise<void>): Promise<void> {
    for (const count of this.#flags.threads ?? [threads()]) {
      setThreads(count);
      await work();
    }
  }

  /** Calls `work` with each model in each dtype, and with each number of threads. */
  async eachModel(
    { model: names, stateDtype }: ModelFlags,
    work: (model: CausalLM, name: string) => Promise<void>,
  ): Promise<void> {
    for (const name of names) {
      for (const dtype of this.dtypes) {
        const model = await openModel(name, this.device, { dtype, stateDtype });
        try {
          await this.eachThreads(() => work(model, name));
        } finally {
          model.dispose();
          this.device.trim();
        }
      }
    }
  }

  async add(result: Result): Promise<void> {
    const own = { ...result, ...machine(this.device), ...this.#origin };
    const other = counterpart(own, this.#others);
    if (other) this.#used.add(other);
    const line = compared(own, other);
    this.lines.push(line);
    const json = jsonLine(line);
    if (this.#output !== undefined) appendFileSync(this.#output, json);
    if (this.#flags.json) await print(json);
    this.#signal.throwIfAborted();
  }

  /** The ops of what was added last. */
  addOps(ops: readonly OpTime[]): void {
    const { name, dtype, threads } = this.lines.at(-1)!;
    const total = ops.reduce((sum, { ms }) => sum + ms, 0);
    const rows = ops.map(({ op, calls, ms }) => [op, String(calls), digits(ms), digits((100 * ms) / total)]);
    const where = this.isGpu ? dtype : `${threads} threads`;
    this.#ops += `\n  ${name}, ${where}\n${table([['op', 'calls', 'ms', '%'], ...rows], [1, 2, 3])}`;
  }

  /** Shows everything; `draw` makes the plot. */
  async finish(draw: (lines: readonly Line[]) => Promise<string>): Promise<void> {
    const rows = tableRows(this.lines);
    if (!this.#flags.json) await print(`${table(rows, [...rows[0]!.keys()].slice(2))}${this.#ops}`);
    if (this.#flags.compare !== undefined) this.#noteRatios();
    if (this.#flags.plot !== undefined) await writeFile(this.#flags.plot, await draw(this.lines));
  }

  #noteRatios(): void {
    for (const summary of ratioSummary(this.lines)) note(`compared: ${summary}`);
    const without = this.lines.filter(({ figures }) => figures['theirMs'] === undefined).length;
    if (without > 0) note(`compared: ${without} of ${this.lines.length} have no counterpart in the file`);
    for (const source of new Set([...this.#used].map(({ source }) => source))) {
      note(`compared with: ${oneLine(source)}`);
    }
  }
}

/** `path`, or the bench's file in it where it is a folder. */
function fileIn(path: string, bench: string): string {
  return statSync(path, { throwIfNoEntry: false })?.isDirectory() ? join(path, `${bench}.jsonl`) : path;
}
