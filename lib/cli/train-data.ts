import { readdir, realpath, rm, stat } from 'node:fs/promises';
import { isAbsolute, join, relative, resolve } from 'node:path';
import { FormatError } from '../errors';
import { makeFolder } from '../io/folder';
import type { Tokenizer } from '../io/tokenizer';
import type { TrainingBatch } from '../training/batch';
import { Corpus } from '../training/corpus';
import { tokenFileOptions, writeTokens } from '../training/token-file';
import { Windows } from '../training/windows';
import { UsageError } from './exit';
import { oneLine } from './terminal';
import type { Settings } from './train-settings';

/** What a training learns from, and what it is held against. */
export interface TrainingData {
  readonly training: Windows;
  readonly validation: (() => AsyncIterable<TrainingBatch>) | undefined;
  /** Whether tokens are bytes. */
  readonly bytes: boolean;
  readonly files: number;
  /** Tokens to learn from, and held-out ones. */
  readonly tokens: number;
  readonly heldOut: number;
  readonly epochTokens: number;
}

/**
 * Opens the data of `settings`. With a tokenizer its tokens are written into `folder` first, unless they are
 * there from before.
 */
export async function openData(
  settings: Settings,
  tokenizer: Tokenizer | undefined,
  vocabSize: number,
  folder: string,
  onProgress: (what: string) => void,
): Promise<TrainingData> {
  const { validationShare = 0.05, documents, seed = 0, length = 256, batch = 8, microBatches = 1 } = settings;
  const held = settings.validation && (await expanded(settings.validation, '--validation', settings.out));
  const all = await expanded(settings.data ?? [], 'data', settings.out);
  const files = held ? all.filter((file) => !held.includes(file)) : all;
  if (files.length === 0)
    throw new UsageError(
      settings.data
        ? 'data is held out as a whole, expected files to learn from'
        : 'data is missing, expected files or folders',
    );
  const open = tokenizer
    ? tokenized(tokenizer, folder, onProgress)
    : (_: string, paths: readonly string[]) => Corpus.open(paths);
  let [training, validation] = [await open('tokens', files), held && (await open('validation', held))];
  if (!held && validationShare > 0)
    ({ training, validation } = training.split({ share: validationShare, seed }));

  const rows = batch / microBatches;
  const windows = { length, rows, vocabSize, ...(documents && { documents }) };
  const source = new Windows(training, { ...windows, seed });
  return {
    training: source,
    validation:
      validation && heldOutBatches(validation, { ...windows, seed }, settings.validationBatches ?? 64),
    bytes: !tokenizer,
    files: files.length,
    tokens: training.length,
    heldOut: validation?.length ?? 0,
    epochTokens: source.batchesPerEpoch * rows * length,
  };
}

/** All held-out tokens in their order, or where they are too many a sample of rows that is the same each time. */
function heldOutBatches(
  corpus: Corpus,
  options: ConstructorParameters<typeof Windows>[1],
  most: number,
): () => AsyncIterable<TrainingBatch> {
  const inOrder = new Windows(corpus, { ...options, shuffle: false });
  if (inOrder.batchesPerEpoch <= most) return () => inOrder;
  const sample = new Windows(corpus, { ...options, shuffle: true });
  return async function* () {
    let count = 0;
    for await (const batch of sample) {
      yield batch;
      if (++count === most) return;
    }
  };
}

/** Makes corpora of the tokens of texts, which are written once. */
function tokenized(tokenizer: Tokenizer, folder: string, onProgress: (what: string) => void) {
  return async (name: string, files: readonly string[]): Promise<Corpus> => {
    const path = tokensFile(folder, name);
    if (!(await stat(path).catch(() => undefined))) {
      await makeFolder(folder);
      onProgress(`tokenizing ${files.length} file${files.length === 1 ? '' : 's'}`);
      await writeTokens(path, tokenizer, files);
    }
    return Corpus.open([path], tokenFileOptions(tokenizer)).catch((error: unknown) => {
      throw error instanceof FormatError
        ? new FormatError(`${error.message}; ${remadeTokens(path)}`, { cause: error })
        : error;
    });
  };
}

/** Where the tokens of texts are. */
export const tokensFile = (folder: string, name = 'tokens'): string => join(folder, `${name}.bin`);

/** What helps where they are damaged. */
export const remadeTokens = (path: string): string => `remove ${path}, and it is made again from the data`;

/** Removes what `openData` wrote, so that it is written anew. */
export async function forgetTokens(folder: string): Promise<void> {
  for (const name of ['tokens', 'validation']) await rm(tokensFile(folder, name), { force: true });
}

/**
 * Files as they are; of folders the files in them and below, without hidden ones and without what the training
 * itself has in `out`.
 */
async function expanded(paths: readonly string[], what: string, out: string | undefined): Promise<string[]> {
  const own = out === undefined ? undefined : await realpath(out).catch(() => resolve(out));
  const files: string[] = [];
  for (const path of paths.map((path) => resolve(path))) {
    const stats = await stat(path).catch((error: NodeJS.ErrnoException) => {
      const reason = error.code === 'ENOENT' ? 'does not exist' : `cannot be read; ${error.message}`;
      throw new UsageError(`${what}: ${oneLine(path)} ${reason}`, { cause: error });
    });
    if (!stats.isDirectory()) {
      files.push(path);
      continue;
    }
    const real = await realpath(path);
    if (real === own)
      throw new UsageError(`${what}: ${oneLine(path)} is the folder of --out, expected another`);
    const entries = await readdir(path, { withFileTypes: true, recursive: true });
    const inside = entries
      .filter((entry) => entry.isFile())
      .map((entry) => relative(path, join(entry.parentPath, entry.name)))
      .filter((file) => !file.split(/[\\/]/).some((part) => part.startsWith('.')))
      .filter((file) => own === undefined || !within(real, own) || !within(own, join(real, file)))
      .map((file) => join(path, file));
    if (inside.length === 0) throw new UsageError(`${what}: ${oneLine(path)} is a folder without files`);
    files.push(...inside);
  }
  return [...new Set(files)].sort();
}

/** Whether a path is in a folder or below. */
function within(folder: string, path: string): boolean {
  const from = relative(folder, path);
  return from !== '' && !isAbsolute(from) && from.split(/[\\/]/)[0] !== '..';
}
