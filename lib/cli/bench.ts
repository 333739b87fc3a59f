import { appendFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { Command, InvalidArgumentError, Option } from 'commander';
import { measureBandwidth } from '../bench/bandwidth';
import { benchDecode, breakDown } from '../bench/decode';
import { openModel, presets } from '../bench/model';
import { barsOf, plot } from '../bench/plot';
import { benchPrefill, prefillOps } from '../bench/prefill';
import type { OpTime } from '../bench/profile';
import { digits, machine, origin, tableRows, type Line, type Result } from '../bench/result';
import { benchScan, scanShapes, type ScanShape } from '../bench/scan';
import { device as openDevice, setThreads, threads, type Device } from '../device';
import type { FloatFormat } from '../io/convert';
import { interruption } from './exit';
import { print, table } from './terminal';

interface CommonFlags {
  readonly device?: string;
  readonly dtype?: FloatFormat;
  readonly threads?: readonly number[];
  readonly runs: number;
  readonly json?: boolean;
  readonly output?: string;
  readonly plot?: string;
}
type ScanFlags = CommonFlags & { readonly [K in keyof ScanShape]?: readonly number[] };
interface ModelFlags extends CommonFlags {
  readonly model: string;
  readonly batch: readonly number[];
  readonly breakdown?: boolean;
}
type PrefillFlags = ModelFlags & { readonly lengths: readonly number[] };
type DecodeFlags = ModelFlags & { readonly steps: number };

/** `1,2,8`: whole numbers from 1. */
function wholes(text: string): readonly number[] {
  const values = text.split(',').map(Number);
  if (values.some((value) => !Number.isSafeInteger(value) || value < 1)) {
    throw new InvalidArgumentError('It is not a list of whole numbers from 1 on, such as 1 or 1,2,4.');
  }
  return values;
}

function whole(text: string): number {
  const [value, ...more] = wholes(text);
  if (more.length > 0) throw new InvalidArgumentError('It is a list; one number is expected.');
  return value!;
}

/** An option that takes such a list, `values` by default. */
const listOption = (flags: string, description: string, values: readonly number[]) =>
  new Option(flags, description).argParser(wholes).default(values, values.join());

function threadCounts(text: string): readonly number[] {
  const values = wholes(text);
  if (values.some((value) => value > 256))
    throw new InvalidArgumentError('At most 256 threads are possible.');
  return values;
}

const common = (command: Command, runs: number) =>
  command
    .addOption(
      new Option('--dtype <dtype>', 'of activations (scan) or weights').choices(['f32', 'bf16', 'f16']),
    )
    .option('--device <name>', 'cpu, cuda or cuda:<index> (default: cpu)')
    .option(
      '--threads <list>',
      'numbers of threads, such as 1,2,4 (default: one for each core)',
      threadCounts,
    )
    .option('--runs <n>', 'timed runs after warm-up', whole, runs)
    .option('--json', 'write JSON, one object a line, instead of a table')
    .option('--output <file>', 'append the JSON lines to a file')
    .option('--plot <file>', 'draw the results as SVG');

const addModel = (command: Command) =>
  command
    .option(
      '--model <model>',
      `${Object.keys(presets).join(', ')} (random weights), a folder or a hub id`,
      '130m',
    )
    .option('--breakdown', 'also show the time of each kind of op');

const help = `
Times are medians, beside them the 10th and the 90th percentile; a GB is 10^9 bytes. Bandwidth is measured in
the same run with the same threads. Nothing else should run on the machine meanwhile.

Examples:
  $ selective-scan bench scan --threads 1,2
  $ selective-scan bench prefill --model 370m --dtype bf16 --lengths 512,2048
  $ selective-scan bench decode --breakdown
  $ selective-scan bench decode --json --output decode.jsonl --plot decode.svg`;

export function benchCommand(): Command {
  const scan = common(new Command('scan').description('Time the selective scan alone.'), 20)
    .option('--batch <list>', 'sequences', wholes)
    .option('--dim <list>', 'channels', wholes)
    .option('--length <list>', 'tokens of each sequence', wholes)
    .option('--state <list>', 'state size', wholes)
    .addHelpText(
      'after',
      '\nWithout sizes: shapes of the 130m and 2.8b models. With lists: all combinations.',
    )
    .action(scans);
  const prefill = common(addModel(new Command('prefill').description('Time reading a prompt.')), 5)
    .addOption(listOption('--lengths <list>', 'tokens of each prompt', [512, 2048]))
    .addOption(listOption('--batch <list>', 'prompts together', [1]))
    .action(prefills);
  const decode = common(addModel(new Command('decode').description('Time generating, token by token.')), 5)
    .addOption(listOption('--batch <list>', 'sequences together', [1, 8]))
    .option('--steps <n>', 'tokens of each sequence in a run', whole, 64)
    .action(decodes);
  return new Command('bench')
    .description('Measure speed on this machine: the scan alone, prompts, generation.')
    .addCommand(scan)
    .addCommand(prefill)
    .addCommand(decode)
    .addHelpText('after', help);
}

async function scans(flags: ScanFlags): Promise<void> {
  const session = new Session(flags);
  const { batch, dim, length, state } = flags;
  const shapes = batch || dim || length || state ? combinations(flags) : scanShapes;
  for (const count of session.threadCounts) {
    setThreads(count);
    const bandwidth = await measureBandwidth(session.device);
    for (const shape of shapes) {
      await session.add(await benchScan(session.device, shape, flags.dtype ?? 'f32', bandwidth, flags.runs));
    }
  }
  await session.finish(
    'Selective scan (batch × channels × tokens × state)',
    'exponentials per second, 10⁹',
    'gigaExpPerSecond',
  );
}

function combinations({ batch = [1], dim = [1536], length = [2048], state = [16] }: ScanFlags): ScanShape[] {
  return batch.flatMap((batch) =>
    dim.flatMap((dim) => length.flatMap((length) => state.map((state) => ({ batch, dim, length, state })))),
  );
}

async function prefills(flags: PrefillFlags): Promise<void> {
  const session = new Session(flags);
  const model = await openModel(flags.model, session.device, flags.dtype);
  for (const count of session.threadCounts) {
    setThreads(count);
    for (const batch of flags.batch) {
      for (const length of flags.lengths) {
        await session.add(await benchPrefill(model, flags.model, { batch, length }, flags.runs));
        if (flags.breakdown) session.addOps(await prefillOps(model, { batch, length }));
      }
    }
  }
  await session.finish('Reading a prompt (sequences × tokens)', 'tokens per second', 'tokensPerSecond');
  model.dispose();
}

async function decodes(flags: DecodeFlags): Promise<void> {
  const session = new Session(flags);
  const model = await openModel(flags.model, session.device, flags.dtype);
  for (const count of session.threadCounts) {
    setThreads(count);
    const bandwidth = await measureBandwidth(session.device);
    for (const batch of flags.batch) {
      const result = await benchDecode(
        model,
        flags.model,
        { batch, steps: flags.steps },
        bandwidth,
        flags.runs,
      );
      if (!flags.breakdown) await session.add(result);
      else {
        const { figures, ops } = await breakDown(model, batch, flags.steps, flags.runs);
        await session.add({ ...result, figures: { ...result.figures, ...figures } });
        session.addOps(ops);
      }
    }
  }
  await session.finish('Generating', 'tokens per second, all sequences together', 'tokensPerSecond');
  model.dispose();
}

/** One command's results: written as they come, then shown as a table and a plot. */
class Session {
  readonly device: Device;
  readonly threadCounts: readonly number[];
  readonly #flags: CommonFlags;
  readonly #origin = origin();
  readonly #signal = interruption();
  readonly #lines: Line[] = [];
  #ops = '';

  constructor(flags: CommonFlags) {
    this.#flags = flags;
    this.device = openDevice(flags.device);
    this.threadCounts = flags.threads ?? [threads()];
    if (flags.output !== undefined) appendFileSync(flags.output, ''); // fails now rather than later
  }

  async add(result: Result): Promise<void> {
    const line = { ...result, ...machine(this.device), ...this.#origin };
    this.#lines.push(line);
    const json = `${JSON.stringify(line)}\n`;
    if (this.#flags.output !== undefined) appendFileSync(this.#flags.output, json);
    if (this.#flags.json) await print(json);
    this.#signal.throwIfAborted();
  }

  /** The ops of what was added last. */
  addOps(ops: readonly OpTime[]): void {
    const { name, threads } = this.#lines.at(-1)!;
    const total = ops.reduce((sum, { ms }) => sum + ms, 0);
    const rows = ops.map(({ op, calls, ms }) => [op, String(calls), digits(ms), digits((100 * ms) / total)]);
    this.#ops += `\n  ${name}, ${threads} threads\n${table([['op', 'calls', 'ms', '%'], ...rows], [1, 2, 3])}`;
  }

  /** `figure` is what the plot shows. */
  async finish(title: string, axis: string, figure: string): Promise<void> {
    const rows = tableRows(this.#lines);
    if (!this.#flags.json) await print(`${table(rows, [...rows[0]!.keys()].slice(2))}${this.#ops}`);
    if (this.#flags.plot === undefined) return;
    await writeFile(this.#flags.plot, await plot(barsOf(this.#lines, title, axis, figure)));
  }
}
