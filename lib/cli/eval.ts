import { createReadStream } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { Command } from 'commander';
import { setThreads } from '../device';
import { FormatError } from '../errors';
import { evaluate, type Evaluation } from '../evaluation/evaluate';
import { checkUtf8 } from '../evaluation/tokens';
import { AutoModelForCausalLM, type CausalLM, type PretrainedOptions } from '../generation/causal-lm';
import { ByteTokenizer } from '../io/bytes';
import { addHubOptions, modelArgument, number, type HubOptions } from './arguments';
import { interruption, UsageError } from './exit';
import { Progress } from './progress';
import { count, oneLine, print, table } from './terminal';

interface Flags extends HubOptions {
  readonly context?: number;
  readonly stride?: number;
  readonly bytes?: boolean;
  readonly json?: boolean;
  readonly device?: string;
  readonly dtype?: PretrainedOptions['dtype'];
  readonly threads?: number;
}

const help = `
Bits per byte compare models whatever their tokens are: the nats of all tokens,
over ln 2 and the bytes of the text. A file is read in one state from its
beginning to its end; with --context in windows, each of which begins afresh. Files are
read as they are scored, so they may be larger than memory.

Examples:
  $ selective-scan eval ./mambabyte-353m book.txt
  $ selective-scan eval ./mamba-130m *.txt --context 2048 --stride 1024
  $ selective-scan eval JunxiongWang/MambaByte_PG19_353M book.txt --bytes --json`;

export function evalCommand(): Command {
  const command = new Command('eval')
    .description('How well a model predicts files: bits per byte.')
    .argument('<model>', modelArgument)
    .argument('<file...>', 'text, or anything for a model of bytes; - is stdin')
    .optionsGroup('How it is scored:')
    .option('--context <n>', 'predict from at most so many tokens (default: from all before)', number)
    .option('--stride <n>', 'tokens from one window to the next (default: half of --context)', number)
    .option('--bytes', 'the tokens of this model are bytes, though its config.json does not say so')
    .option('--json', 'write one JSON object a line: each file, then the total')
    .optionsGroup('Where it runs:')
    .option('--device <name>', 'cpu, cuda or cuda:<index> (default: SELECTIVE_SCAN_DEVICE, or cpu)')
    .option('--dtype <name>', 'of the weights: auto, f32, bf16 or f16 (default: as stored)')
    .option('--threads <n>', 'CPU threads (default: SELECTIVE_SCAN_THREADS, or all cores)', number);
  return addHubOptions(command).addHelpText('after', help).action(run);
}

interface Source {
  readonly name: string;
  /** Bytes; undefined where nobody knows. */
  readonly size: number | undefined;
}

async function run(name: string, files: readonly string[], flags: Flags): Promise<void> {
  const signal = interruption();
  if (flags.threads !== undefined) setThreads(flags.threads);
  if (files.filter((file) => file === '-').length > 1)
    throw new UsageError('stdin (-) can be read once only');
  const sources = await Promise.all(files.map(sourceOf));
  const progress = new Progress();
  let model: CausalLM | undefined;
  try {
    const { device, dtype, bytes, revision, cacheDir, offline } = flags;
    model = await AutoModelForCausalLM.fromPretrained(name, {
      ...{ device, dtype, bytes, revision, cacheDir, offline, signal },
      ...progress.callbacks,
    });
    if (model.tokenizer && !(model.tokenizer instanceof ByteTokenizer))
      for (const { name, size } of sources)
        // Found later, it would cost what was scored before. What is no file can be read once only.
        if (size !== undefined) await named(name, checkUtf8(bytesOf(name), signal));
    const results: Evaluation[] = [];
    for (const source of sources) {
      const result = await evaluateFile(model, source, flags, progress, signal);
      results.push(result);
      if (flags.json) await print(`${JSON.stringify({ file: source.name, ...result })}\n`);
    }
    progress.stop();
    if (flags.json) await print(`${JSON.stringify({ total: true, ...total(results) })}\n`);
    else await print(describe(sources, results));
  } finally {
    progress.stop();
    model?.dispose();
  }
}

async function sourceOf(name: string): Promise<Source> {
  if (name === '-') return { name, size: undefined };
  const stats = await stat(name).catch((error: NodeJS.ErrnoException) => {
    const reason = error.code === 'ENOENT' ? 'file does not exist' : `file cannot be read; ${error.message}`;
    throw new UsageError(`${oneLine(name)}: ${reason}`, { cause: error });
  });
  if (stats.isDirectory()) throw new UsageError(`${oneLine(name)}: is a folder, expected a file`);
  if (!stats.isFile() && !stats.isFIFO())
    throw new UsageError(`${oneLine(name)}: is not a regular file, nor a pipe`); // a device may have no end
  // Found later, it would cost what was scored before. (Those of /proc have no size either.)
  if (stats.isFile() && stats.size === 0 && (await readFile(name)).length === 0)
    throw new UsageError(`${oneLine(name)}: text is empty, expected something to predict`);
  return { name, size: stats.isFile() ? stats.size : undefined };
}

async function evaluateFile(
  model: CausalLM,
  { name, size }: Source,
  { context, stride }: Flags,
  progress: Progress,
  signal: AbortSignal,
): Promise<Evaluation> {
  const onProgress = (done: number) => {
    if (size !== undefined) progress.show(`Reading ${name}`, Math.min(done, size), size);
  };
  return named(name, evaluate(model, bytesOf(name), { context, stride, signal, onProgress }));
}

const bytesOf = (name: string) =>
  name === '-' ? process.stdin : createReadStream(name, { highWaterMark: 1 << 20 });

/** The library does not know which file it was given. */
function named<R>(name: string, work: Promise<R>): Promise<R> {
  return work.catch((error: Error) => {
    if (!/^evaluate: text /.test(error.message)) throw error;
    throw new FormatError(`${oneLine(name)}: ${error.message.slice('evaluate: '.length)}`, { cause: error });
  });
}

/** All files together: of each the bytes and nats count as they are. */
function total(results: readonly Evaluation[]): Evaluation {
  const add = (key: keyof Evaluation) => results.reduce((sum, result) => sum + result[key], 0);
  const [nats, predicted, predictedBytes] = [add('nats'), add('predicted'), add('predictedBytes')];
  return {
    bytes: add('bytes'),
    tokens: add('tokens'),
    predicted,
    predictedBytes,
    nats,
    bitsPerByte: nats / Math.LN2 / predictedBytes,
    perplexity: Math.exp(nats / predicted),
  };
}

function describe(sources: readonly Source[], results: readonly Evaluation[]): string {
  const row = (name: string, { bytes, tokens, bitsPerByte, perplexity }: Evaluation) => [
    oneLine(name),
    count(bytes),
    count(tokens),
    bitsPerByte.toFixed(4),
    perplexity.toFixed(3),
  ];
  const rows = results.map((result, i) => row(sources[i]!.name, result));
  const all = results.length > 1 ? [row('all', total(results))] : [];
  const head = ['file', 'bytes', 'tokens', 'bits per byte', 'perplexity'];
  return table([head, ...rows, ...all], [1, 2, 3, 4]);
}
