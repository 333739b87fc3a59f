import { join } from 'node:path';
import { Command } from 'commander';
import { device as openDevice } from '../device';
import { CausalLM, storedDtype } from '../generation/causal-lm';
import { readModelFolder } from '../generation/model-folder';
import { openCheckpoint, type Checkpoint } from '../io/checkpoint';
import { resolveModel } from '../io/hub';
import { readJson } from '../io/json';
import { loadTokenizer } from '../io/tokenizer';
import { findFamily } from '../models';
import type { CommonConfig } from '../models/family';
import { State } from '../models/state';
import { Weights } from '../nn/weights';
import { dtypeBytes } from '../tensor';
import { addHubOptions, modelArgument, type HubOptions } from './arguments';
import { exitCodes, interruption, UsageError } from './exit';
import { unusualIn, type Unusual } from './finite';
import { checkOutput } from './output-file';
import { Progress } from './progress';
import { showRouter } from './router';
import { count, note, oneLine, print, size, table } from './terminal';

interface Flags extends HubOptions {
  readonly tensors?: boolean;
  readonly check?: boolean;
  readonly json?: boolean;
  readonly router?: string;
  readonly prompt?: string;
  readonly ids?: boolean;
}

const help = `
Nothing is loaded, but for --router: only the files' headers are read, and with --check each
tensor once. A model that cannot be used is described as far as possible, and
the reason is given; the exit code is then 1.

Examples:
  $ selective-scan inspect ./mamba-130m
  $ selective-scan inspect state-spaces/mamba-130m-hf --tensors
  $ selective-scan inspect ./mamba-130m --check       # 1 if a weight is NaN or infinite
  $ selective-scan inspect ./mamba-130m --json | jq .parameters
  $ selective-scan inspect ./moe-mamba --router load.svg --prompt "Once upon a time"`;

export function inspectCommand(): Command {
  const command = new Command('inspect')
    .description('Show what a model consists of: configuration, tensors, parameters, memory.')
    .argument('<model>', modelArgument)
    .option('--tensors', 'list every tensor, not only the kinds')
    .option('--check', 'read all weights and warn of NaN and infinity')
    .option('--json', 'write one JSON object')
    .option('--router <file>', 'run a prompt and draw the load of each expert and layer, as SVG')
    .option('--prompt <text>', 'the prompt that --router runs')
    .option('--ids', 'the prompt is token ids (1,2,3): for models without a tokenizer');
  return addHubOptions(command).addHelpText('after', help).action(run);
}

async function run(name: string, flags: Flags): Promise<void> {
  const signal = interruption();
  const needsRouter = (['prompt', 'ids'] as const).find((flag) => flags[flag] !== undefined);
  if (flags.router !== undefined) await checkOutput('--router', flags.router);
  else if (needsRouter) throw new UsageError(`--${needsRouter} is for what --router runs, which is missing`);
  const progress = new Progress();
  let checkpoint: Checkpoint | undefined;
  try {
    const { revision, cacheDir, offline } = flags;
    const { onDownload } = progress.callbacks;
    const folder = await resolveModel(name, { revision, cacheDir, offline, signal, onProgress: onDownload });
    progress.stop();
    if (flags.router !== undefined) {
      await print(await showRouter(folder, { ...flags, router: flags.router }, { signal }));
      return;
    }
    // A folder without a usable config.json is described all the same.
    const json = await readJson(join(folder, 'config.json')).catch(() => undefined);
    checkpoint = await openCheckpoint(folder, json && findFamily(json)?.rename);
    const model = await examine(checkpoint);
    const unusual = flags.check ? await check(checkpoint, progress, signal) : undefined;
    progress.stop();
    await print(
      flags.json ? asJson(model, checkpoint, unusual) : describe(model, checkpoint, flags, unusual),
    );
    for (const { name, nan, infinite, first } of unusual ?? []) {
      note(
        `warning: ${oneLine(name)} holds ${count(nan)} NaN and ${count(infinite)} infinite values, the first at [${first}]`,
      );
    }
    if (model.reason !== undefined) note(`error: this model cannot be used: ${model.reason}`);
    if (model.reason !== undefined || unusual?.length) process.exitCode = exitCodes.failed;
  } finally {
    progress.stop();
    await checkpoint?.close();
  }
}

interface Examined {
  readonly config?: CommonConfig;
  /** Of its tokenizer, 0 without one. */
  readonly tokens?: number;
  readonly parameters?: number;
  /** Once loaded on the CPU. */
  readonly memoryBytes?: number;
  readonly stateBytesPerSequence?: number;
  /** Why the model cannot be used. */
  readonly reason?: string;
}

/** Builds the model and reads no weight: memory that nobody has written to takes no room. */
async function examine(checkpoint: Checkpoint): Promise<Examined> {
  const { folder } = checkpoint;
  let found: Examined = {};
  let weights: Weights | undefined;
  try {
    const { config, generationConfig } = await readModelFolder(folder);
    found = { config };
    found = { ...found, tokens: (await loadTokenizer(folder))?.vocabSize ?? 0 };
    const device = openDevice('cpu');
    const dtype = storedDtype(checkpoint);
    weights = new Weights({ device, dtype, checkpoint });
    const model = new CausalLM(config, { device, dtype, weights, extras: { generationConfig } });
    const bytes = [...model.parameters.values()].map((tensor) => tensor.size * dtypeBytes[tensor.dtype]);
    return {
      ...found,
      parameters: model.numParameters,
      memoryBytes: bytes.reduce((sum, n) => sum + n, 0),
      stateBytesPerSequence: State.bytesPerSequence(model.stateLayout),
    };
  } catch (error) {
    return { ...found, reason: (error as Error).message };
  } finally {
    weights?.dispose();
  }
}

async function check(checkpoint: Checkpoint, progress: Progress, signal: AbortSignal): Promise<Unusual[]> {
  const found: Unusual[] = [];
  let done = 0;
  for (const name of checkpoint.names()) {
    signal.throwIfAborted();
    const unusual = await unusualIn(checkpoint, name);
    if (unusual) found.push(unusual);
    const { begin, end } = checkpoint.info(name);
    progress.show('Checking', (done += end - begin), checkpoint.bytes);
  }
  return found;
}

/** The family's own configuration, without what `CommonConfig` carries along. */
function settings(config: CommonConfig): Record<string, unknown> {
  const { json: _json, modelType: _modelType, ...own } = config;
  return own;
}

function asJson(model: Examined, checkpoint: Checkpoint, unusual: readonly Unusual[] | undefined): string {
  const { config, tokens, reason, ...sizes } = model;
  const tensors = checkpoint.names().map((name) => {
    const { dtype, shape, begin, end } = checkpoint.info(name);
    return { name, dtype, shape, bytes: end - begin };
  });
  const all = {
    folder: checkpoint.folder,
    usable: reason === undefined,
    reason,
    family: config?.modelType,
    config: config && settings(config),
    tokenizerVocabSize: tokens,
    ...sizes,
    diskBytes: checkpoint.bytes,
    tensors,
    unusual,
  };
  return `${JSON.stringify(all, undefined, 2)}\n`;
}

function describe(
  model: Examined,
  checkpoint: Checkpoint,
  flags: Flags,
  unusual: readonly Unusual[] | undefined,
): string {
  const { config, tokens, parameters, memoryBytes, stateBytesPerSequence } = model;
  const names = checkpoint.names();
  const totals: (readonly [string, string | undefined])[] = [
    ['family', config?.modelType],
    ['parameters', parameters === undefined ? undefined : count(parameters)],
    ['on disk', `${size(checkpoint.bytes)} in ${names.length} tensors`],
    ['in memory', memoryBytes === undefined ? undefined : size(memoryBytes)],
    [
      'state',
      stateBytesPerSequence === undefined
        ? undefined
        : `${size(stateBytesPerSequence)} for each sequence, however long`,
    ],
    [
      'tokenizer',
      tokens === undefined
        ? undefined
        : tokens === 0
          ? config?.modelType === 'mambabyte'
            ? 'none: tokens are bytes'
            : 'none: prompts are token ids'
          : `${count(tokens)} tokens`,
    ],
    [
      'weights',
      unusual &&
        (unusual.length === 0
          ? 'all finite'
          : `not finite in ${unusual.length} tensor${unusual.length === 1 ? '' : 's'}`),
    ],
  ];
  const known = totals.filter((row): row is readonly [string, string] => row[1] !== undefined);
  const rows = flags.tensors ? tensorRows(checkpoint) : kindRows(checkpoint);
  return [
    `${oneLine(checkpoint.folder)}\n\n${table(known)}`,
    ...(config ? [`Configuration\n${table(flatten(settings(config)))}`] : []),
    `${flags.tensors ? 'Tensors' : 'Tensors by kind'}\n${table(rows, flags.tensors ? [3] : [0, 4])}`,
  ].join('\n');
}

/** `{ mixer: { dState: 16 } }` as the row `mixer.dState  16`. */
function flatten(value: Record<string, unknown>, prefix = ''): (readonly [string, string])[] {
  return Object.entries(value).flatMap(([name, item]) => {
    const isRecord = typeof item === 'object' && item !== null && !Array.isArray(item);
    if (isRecord) return flatten(item as Record<string, unknown>, `${prefix}${name}.`);
    return item === undefined ? [] : [[`${prefix}${name}`, oneLine(JSON.stringify(item))] as const];
  });
}

function tensorRows(checkpoint: Checkpoint): string[][] {
  const rows = checkpoint.names().map((name) => {
    const { dtype, shape, begin, end } = checkpoint.info(name);
    return [oneLine(name), dtype, `[${shape.join(', ')}]`, size(end - begin)];
  });
  return [['name', 'dtype', 'shape', 'size'], ...rows];
}

/** Tensors that differ in the number of their layer only are of one kind. */
function kindRows(checkpoint: Checkpoint): string[][] {
  const kinds = new Map<string, { row: readonly string[]; number: number; bytes: number }>();
  for (const name of checkpoint.names()) {
    const { dtype, shape, begin, end } = checkpoint.info(name);
    const row = [oneLine(name.replace(/(?<=\.)\d+(?=\.)/g, '*')), dtype, `[${shape.join(', ')}]`];
    const kind = kinds.get(row.join()) ?? { row, number: 0, bytes: 0 };
    kind.number++;
    kind.bytes += end - begin;
    kinds.set(row.join(), kind);
  }
  const rows = [...kinds.values()].map(({ row, number, bytes }) => [`${number}`, ...row, size(bytes)]);
  return [['', 'name', 'dtype', 'shape', 'size'], ...rows];
}
