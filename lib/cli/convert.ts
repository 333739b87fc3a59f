import { existsSync } from 'node:fs';
import { mkdtemp, readdir, realpath, rename, rm, rmdir, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { Command, Option } from 'commander';
import { device as openDevice } from '../device';
import { CausalLM, storedDtype } from '../generation/causal-lm';
import { readModelFolder } from '../generation/model-folder';
import { makeFolder } from '../io/folder';
import { openCheckpoint, type Checkpoint } from '../io/checkpoint';
import { convertedChunks, type FloatFormat } from '../io/convert';
import { resolveModel } from '../io/hub';
import { writeModel } from '../models/save';
import { Weights } from '../nn/weights';
import { addHubOptions, modelArgument, type HubOptions } from './arguments';
import { interruption, UsageError } from './exit';
import { Progress } from './progress';
import { count, oneLine, print, size } from './terminal';

interface Flags extends HubOptions {
  readonly dtype: 'auto' | FloatFormat;
  readonly force?: boolean;
  readonly bytes?: boolean;
}

const help = `
Reads pytorch_model.bin without running anything of it, original state-spaces
checkpoints too, and writes model.safetensors, config.json and the tokenizer's
files as transformers reads them. The folder appears when all of it is written;
memory stays small however large the model is.

Examples:
  $ selective-scan convert state-spaces/mamba-130m ./mamba-130m
  $ selective-scan convert ./mamba-130m ./mamba-130m-bf16 --dtype bf16`;

export function convertCommand(): Command {
  const command = new Command('convert')
    .description('Write a model of any format as safetensors, as transformers reads it.')
    .argument('<model>', modelArgument)
    .argument('<folder>', 'where to write it; made where there is none')
    .addOption(
      new Option('--dtype <name>', 'of the matrices; auto keeps what is stored')
        .choices(['auto', 'f32', 'bf16', 'f16'])
        .default('auto'),
    )
    .option('--bytes', 'the tokens of this Mamba are bytes: writes a mambabyte')
    .option('--force', 'write into a folder that is not empty, over the files of the same names');
  return addHubOptions(command).addHelpText('after', help).action(run);
}

async function run(model: string, target: string, flags: Flags): Promise<void> {
  const signal = interruption();
  const progress = new Progress();
  const folder = resolve(target);
  await checkTarget(folder, target, flags.force);
  const { revision, cacheDir, offline } = flags;
  const { onDownload } = progress.callbacks;
  let checkpoint: Checkpoint | undefined;
  try {
    const source = await resolveModel(model, { revision, cacheDir, offline, signal, onProgress: onDownload });
    if (existsSync(folder) && (await realpath(folder)) === (await realpath(source))) {
      throw new UsageError(`${oneLine(target)} is the model's own folder, expected another one`);
    }
    const { stored, config, generationConfig, isOfBytes } = await readModelFolder(source, flags.bytes);
    checkpoint = await openCheckpoint(source, stored.rename);
    const extras = { generationConfig, tokenizerFolder: isOfBytes ? undefined : source };
    const dtype = flags.dtype === 'auto' ? storedDtype(checkpoint) : flags.dtype;
    // Building the model checks every name and shape; memory that nobody writes to takes no room.
    const weights = new Weights({ device: openDevice('cpu'), dtype, checkpoint });
    try {
      const { parameters } = new CausalLM(config, { device: openDevice('cpu'), dtype, weights, extras });
      const read = reader(checkpoint, progress, signal);
      await appear(folder, (path) =>
        writeModel(path, config, parameters, extras, (name, tensor) =>
          read(name, tensor.dtype as FloatFormat),
        ),
      );
      const bytes = await stat(join(folder, 'model.safetensors'));
      progress.stop();
      await print(`${oneLine(target)}: ${count(parameters.size)} tensors, ${size(bytes.size)}\n`);
    } finally {
      weights.dispose();
    }
  } finally {
    progress.stop();
    await checkpoint?.close();
  }
}

async function checkTarget(folder: string, target: string, force: boolean | undefined): Promise<void> {
  const stats = await stat(folder).catch(() => undefined);
  if (!stats) return;
  if (!stats.isDirectory()) throw new UsageError(`${oneLine(target)} is a file, expected a folder to write`);
  if (!force && (await readdir(folder)).length > 0) {
    throw new UsageError(`${oneLine(target)} is not empty; --force writes over the files of a model in it`);
  }
}

/** A tensor's bytes in another format, with the progress of all of them together. */
function reader(checkpoint: Checkpoint, progress: Progress, signal: AbortSignal) {
  let done = 0;
  return async function* (name: string, to: FloatFormat): AsyncGenerator<Uint8Array> {
    for await (const chunk of convertedChunks(checkpoint, name, to)) {
      signal.throwIfAborted();
      yield chunk;
    }
    const { begin, end } = checkpoint.info(name);
    progress.show('Converting', (done += end - begin), checkpoint.bytes);
  };
}

/** Has `write` fill a folder beside `folder`, and puts it, or its files, in place once it is whole. */
async function appear(folder: string, write: (path: string) => Promise<void>): Promise<void> {
  const temporary = await makeFolder(dirname(folder))
    .then(() => mkdtemp(join(dirname(folder), `.${basename(folder)}.`)))
    .catch((error: Error) => {
      throw new UsageError(`${oneLine(folder)}: folder cannot be made; ${error.message}`, { cause: error });
    });
  try {
    const made = join(temporary, 'model'); // with the rights of any folder: mkdtemp's own is for the owner alone
    await write(made);
    if (existsSync(folder) && (await readdir(folder)).length > 0) {
      for (const name of await readdir(made)) await rename(join(made, name), join(folder, name));
    } else {
      if (existsSync(folder)) await rmdir(folder);
      await rename(made, folder);
    }
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}
