import { stat } from 'node:fs/promises';
import { join, posix, win32 } from 'node:path';
import { FormatError } from '../errors';
import { isObject, kind, readJson, type JsonObject } from './json';
import { openSafetensors, type TensorFile, type TensorInfo } from './safetensors';
import { openTorch } from './torch';

/** What a folder may keep its weights in, the first that is there. An index names the shards. */
export const WEIGHTS = [
  'model.safetensors',
  'model.safetensors.index.json',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
] as const;

export const isIndex = (name: string) => name.endsWith('.index.json');

/** The index of a large model names every tensor; a hundred bytes each. */
export const MAX_INDEX_BYTES = 64 * 1024 * 1024;

/** The tensors of a model folder, wherever its files keep them. */
export interface Checkpoint {
  readonly folder: string;
  /** Of all tensors together. */
  readonly bytes: number;
  names(): string[];
  has(name: string): boolean;
  /** Throws FormatError when there is no such tensor. */
  info(name: string): TensorInfo;
  /** Fills `into` with the tensor's bytes from `offset` (of the tensor) on. */
  read(name: string, into: Uint8Array, offset?: number): Promise<void>;
  close(): Promise<void>;
}

/**
 * Opens the weights of a folder. `rename` gives a tensor the name that the model knows it by, where a family's
 * files have others.
 */
export async function openCheckpoint(
  folder: string,
  rename: (name: string) => string = (name) => name,
): Promise<Checkpoint> {
  const stats = await stat(folder).catch(() => undefined);
  if (!stats?.isDirectory()) throw new FormatError(`${folder}: is not a folder`);
  for (const name of WEIGHTS) {
    if (!(await exists(join(folder, name)))) continue;
    const found = isIndex(name) ? await openSharded(folder, name) : await openSingle(folder, name);
    const entries = new Map(found.map((entry) => [rename(entry.info.name), entry]));
    if (entries.size < found.length) {
      await closeAll(found);
      throw new FormatError(`${folder}: ${name} holds a tensor under its old and its new name`);
    }
    return new OpenCheckpoint(folder, entries);
  }
  throw new FormatError(`${folder}: holds no weights, expected one of ${WEIGHTS.join(', ')}`);
}

/** A file of tensors, by the format that its name says. */
function openTensors(path: string): Promise<TensorFile> {
  return path.endsWith('.safetensors') ? openSafetensors(path) : openTorch(path);
}

/** Which shard holds each tensor, as the index says; paths are known to stay inside the folder. */
export function parseIndex(index: JsonObject, path: string): ReadonlyMap<string, string> {
  const { weight_map: weightMap } = index;
  if (!isObject(weightMap))
    throw new FormatError(`${path}: weight_map is ${kind(weightMap)}, expected an object`);
  const shards = new Map<string, string>();
  for (const [name, shard] of Object.entries(weightMap)) {
    if (typeof shard !== 'string') {
      throw new FormatError(`${path}: shard of ${name} is ${kind(shard)}, expected a file name`);
    }
    if (!staysInside(shard)) {
      throw new FormatError(
        `${path}: shard of ${name} is ${kind(shard)}, expected a file inside of the folder`,
      );
    }
    shards.set(name, shard);
  }
  if (shards.size === 0) throw new FormatError(`${path}: weight_map is empty`);
  return shards;
}

/** By the rules of every system: an index written on one must not reach out of the folder on another. */
function staysInside(path: string): boolean {
  if (path === '' || path.includes('\0') || posix.isAbsolute(path) || win32.isAbsolute(path)) return false;
  return !/^[a-z]:/i.test(path) && !path.split(/[/\\]/).includes('..');
}

interface Entry {
  readonly file: TensorFile;
  readonly info: TensorInfo;
}

async function openSingle(folder: string, name: string): Promise<Entry[]> {
  const file = await openTensors(join(folder, name));
  return [...file.tensors.values()].map((info) => ({ file, info }));
}

async function openSharded(folder: string, indexName: string): Promise<Entry[]> {
  const indexPath = join(folder, indexName);
  const index = parseIndex(await readJson(indexPath, { maxBytes: MAX_INDEX_BYTES }), indexPath);
  const files = new Map<string, TensorFile>();
  const entries: Entry[] = [];
  try {
    for (const [name, shard] of index) {
      const file = files.get(shard) ?? (await openTensors(join(folder, shard)));
      files.set(shard, file);
      const info = file.tensors.get(name);
      if (!info)
        throw new FormatError(`${file.path}: tensor ${name} is missing, though ${indexName} places it here`);
      entries.push({ file, info });
    }
  } catch (error) {
    await closeAll([...files.values()].map((file) => ({ file })));
    throw error;
  }
  return entries;
}

async function closeAll(entries: readonly Pick<Entry, 'file'>[]): Promise<void> {
  const files = new Set(entries.map(({ file }) => file));
  await Promise.all([...files].map((file) => file.close()));
}

class OpenCheckpoint implements Checkpoint {
  readonly bytes: number;
  readonly #entries: ReadonlyMap<string, Entry>;

  constructor(
    readonly folder: string,
    entries: ReadonlyMap<string, Entry>,
  ) {
    this.#entries = entries;
    this.bytes = [...entries.values()].reduce((sum, { info }) => sum + info.end - info.begin, 0);
  }

  names(): string[] {
    return [...this.#entries.keys()];
  }

  has(name: string): boolean {
    return this.#entries.has(name);
  }

  info(name: string): TensorInfo {
    return this.#entry(name).info;
  }

  async read(name: string, into: Uint8Array, offset = 0): Promise<void> {
    const { file, info } = this.#entry(name);
    await file.read(info, into, offset);
  }

  async close(): Promise<void> {
    await closeAll([...this.#entries.values()]);
  }

  #entry(name: string): Entry {
    const entry = this.#entries.get(name);
    if (!entry) throw new FormatError(`${this.folder}: tensor ${name} is missing`);
    return entry;
  }
}

async function exists(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined)) !== undefined;
}
