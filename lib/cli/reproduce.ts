import { join } from 'node:path';
import { Argument, Command, InvalidArgumentError, Option } from 'commander';
import { device as openDevice, setThreads } from '../device';
import { writeAtomically, writeFully } from '../io/atomic';
import { lockFolder } from '../io/lock';
import { packageVersion } from '../loader';
import { follow, type CourseResult } from '../tasks/course';
import { inductionHeads } from '../tasks/induction-heads';
import { drawResults } from '../tasks/plot';
import { remarks, resultsOf, tableRows, type Results } from '../tasks/results';
import { selectiveCopying } from '../tasks/selective-copying';
import { mostSeed, type Layers, type Task } from '../tasks/task';
import { stepsIn } from '../training/checkpoints';
import { number } from './arguments';
import { whole, wholes } from './bench-flags';
import { endings, interruption, UsageError } from './exit';
import { checkFolder, checkOutput } from './output-file';
import { note, print, table } from './terminal';

const tasks: readonly Task[] = [inductionHeads, selectiveCopying];

interface Flags {
  readonly layers: readonly Layers[];
  readonly steps?: number;
  readonly rows?: number;
  readonly length?: number;
  readonly learningRate?: number;
  readonly testLengths?: readonly number[];
  readonly testSequences: number;
  readonly seed?: number;
  readonly output?: string;
  readonly json?: boolean;
  readonly plot?: string;
  readonly device?: string;
  readonly threads?: number;
}

const help = `
The tasks of Gu and Dao 2023 (section 4.1), trained here and tested, beside the
paper's figures. Models have two layers of D = 64, Mamba's or, as the contrast, S4D's.

  induction-heads    Random tokens, among them once a trigger; when it comes again at the
                     end, what followed it? Trained at 256 tokens, tested up to 2^20. More
                     --steps go on with a training that has ended.
  selective-copying  Sixteen tokens among 4,096 of noise, to be said in their order. Begins
                     with shorter sequences, 64 tokens, whatever the layers are.

In the output folder each training has its checkpoints and its log; after Ctrl-C or SIGTERM the
same command goes on where it ended. At the end results.json and results.svg are there. On a CPU, make it small:
  $ selective-scan reproduce induction-heads --length 32 --steps 3000 --layers mamba \\
      --test-lengths 32,64,128

Examples:
  $ selective-scan reproduce induction-heads --device cuda
  $ selective-scan reproduce selective-copying --device cuda --layers mamba --json`;

export function reproduceCommand(): Command {
  return new Command('reproduce')
    .description("Train and test the Mamba paper's synthetic tasks, beside its figures.")
    .addArgument(new Argument('<task>', 'which one').choices(tasks.map(({ name }) => name)))
    .optionsGroup('What is trained:')
    .addOption(
      new Option('--layers <list>', 'some of mamba, s4d')
        .argParser(layerList)
        .default(['mamba', 's4d'], 'mamba,s4d'),
    )
    .option('--steps <n>', `steps in all (default: ${defaults('steps')})`, whole)
    .option('--rows <n>', `sequences of a step (default: ${defaults('rows')})`, whole)
    .option('--length <n>', "tokens of each (default: the paper's, 256 and 4096)", whole)
    .option('--learning-rate <x>', `of Adam (default: ${defaults('learningRate')})`, number)
    .option('--seed <n>', `of parameters and sequences (default: ${defaults('seed')})`, number)
    .optionsGroup('How it is tested:')
    .option('--test-lengths <list>', "(default: the paper's, or --length)", wholes)
    .option('--test-sequences <n>', 'of each length; of the longest, 16', whole, 64)
    .optionsGroup('Output:')
    .option('--output <folder>', 'checkpoints, logs and results (default: ./<task>)')
    .option('--plot <file>', 'draw the results there too, as SVG')
    .option('--json', 'write the results as one JSON object instead of a table')
    .optionsGroup('Where it runs:')
    .option('--device <name>', 'cpu, cuda or cuda:<index> (default: SELECTIVE_SCAN_DEVICE, or cpu)')
    .option('--threads <n>', 'CPU threads (default: SELECTIVE_SCAN_THREADS, or all cores)', number)
    .addHelpText('after', help)
    .action(run);
}

/** What `--help` says of a default that tasks have their own of. */
function defaults(name: 'steps' | 'rows' | 'learningRate' | 'seed'): string {
  return [...new Set(tasks.map(({ recipe }) => recipe[name]))].join(' and ');
}

function layerList(text: string): readonly Layers[] {
  const values = text.split(',');
  if (values.every((value): value is Layers => value === 'mamba' || value === 's4d'))
    return [...new Set(values)];
  throw new InvalidArgumentError('It is not a list of some of mamba, s4d.');
}

async function run(name: string, flags: Flags): Promise<void> {
  const signal = interruption(endings);
  const task = tasks.find((task) => task.name === name)!;
  check(task, flags);
  if (flags.plot !== undefined) await checkOutput('--plot', flags.plot);
  const folder = flags.output ?? task.name;
  await checkFolder('--output', folder);
  const lock = await lockFolder(folder, (message) => note(`warning: ${message}`));
  try {
    await trainAndTest(task, folder, flags, signal);
  } finally {
    await lock.release();
  }
}

async function trainAndTest(task: Task, folder: string, flags: Flags, signal: AbortSignal): Promise<void> {
  await checkSteps(folder, flags.layers, flags.steps ?? task.recipe.steps);
  if (flags.threads !== undefined) setThreads(flags.threads);
  const device = openDevice(flags.device);
  const { steps, rows, learningRate, seed } = flags;
  const recipe = {
    ...task.recipe,
    ...(steps !== undefined && { steps }),
    ...(rows !== undefined && { rows }),
    ...(learningRate !== undefined && { learningRate }),
    ...(seed !== undefined && { seed }),
  };
  const length = flags.length ?? task.length;
  const runs: CourseResult[] = [];
  for (const layers of flags.layers) {
    const result = await follow(task, {
      ...{ layers, device, signal, length, recipe },
      testLengths: flags.testLengths ?? (flags.length === undefined ? task.testLengths : [length]),
      testSequences: flags.testSequences,
      seed: recipe.seed,
      folder: join(folder, layers),
      onProgress: ({ step, steps, loss }) =>
        shown(`${layers}: step ${step} of ${steps}, loss ${loss.toFixed(4)}`),
      onWarning: (message) => note(`warning: ${message}`),
    });
    runs.push(result);
  }
  shown('');
  await finish(task, resultsOf(task, packageVersion(), runs), folder, flags);
}

/** What would only be known after a training. */
function check(task: Task, { seed = 0, length, testLengths = [], rows, steps }: Flags): void {
  if (!Number.isInteger(seed) || seed < 0 || seed > mostSeed)
    throw new UsageError(`--seed is ${seed}, expected a whole number from 0 to ${mostSeed}`);
  for (const [flag, lengths] of [
    ['--length', length === undefined ? [] : [length]],
    ['--test-lengths', testLengths],
  ] as const)
    for (const tokens of lengths)
      if (tokens < task.shortest || tokens > 2 ** 24)
        throw new UsageError(`${flag} has ${tokens}, expected ${task.shortest} to ${2 ** 24} tokens`);
  if ((rows ?? 1) * (length ?? task.length) > 2 ** 28)
    throw new UsageError(`--rows is ${rows}, expected at most ${2 ** 28} tokens in a step`);
  if ((steps ?? 1) > 1e9) throw new UsageError(`--steps is ${steps}, expected at most 1e9`);
}

/** Figures of a longer training are none of a shorter one. */
async function checkSteps(folder: string, layers: readonly Layers[], steps: number): Promise<void> {
  for (const each of layers) {
    const done = await stepsIn(join(folder, each));
    if (done > steps)
      throw new UsageError(
        `--steps is ${steps}, expected ${done} or more; so many are done in ${join(folder, each)}, take another --output for fewer`,
      );
  }
}

async function finish(task: Task, results: Results, folder: string, { json, plot }: Flags): Promise<void> {
  const drawing = drawResults(results, task.title);
  const text = `${JSON.stringify(results, undefined, 2)}\n`;
  const write = (path: string, content: string) =>
    writeAtomically(path, (file) => writeFully(file, Buffer.from(content)));
  await write(join(folder, 'results.json'), text);
  await write(join(folder, 'results.svg'), drawing);
  if (plot !== undefined) await write(plot, drawing);
  if (json) return print(text);
  const rows = tableRows(results);
  await print(`${task.title}: answers that are right, in per cent\n\n${table(rows, [...rows[0]!.keys()])}\n`);
  await print(`${remarks(results).join('\n')}\n`);
}

/** Where a training is, in place, for whoever watches. */
function shown(what: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\u001b[2K${what}`);
}
