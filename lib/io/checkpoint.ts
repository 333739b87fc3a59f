import { stat } from 'node:fs/promises';
import { join, posix, win32 } from 'node:path';
import { FormatError } from '../errors';
import { isObject, kind, readJson, type JsonObject } from './json';
import { openSafetensors, type SafetensorsFile, type TensorInfo } from './safetensors';

export const WEIGHTS = 'model.safetensors';
export const WEIGHTS_INDEX = 'model.safetensors.index.json';
export const PICKLED_WEIGHTS = ['pytorch_model.bin', 'pytorch_model.bin.index.json'] as const;

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

/** Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names. */
export async function openCheckpoint(folder: string): Promise<Checkpoint> {
  const stats = await stat(folder).catch(() => undefined);
  if (!stats?.isDirectory()) throw new FormatError(`${folder}: is not a folder`);
  if (await exists(join(folder, WEIGHTS))) return openSingle(folder);
  if (await exists(join(folder, WEIGHTS_INDEX))) return openSharded(folder);
  for (const name of PICKLED_WEIGHTS) {
    if (await exists(join(folder, name))) throw new FormatError(`${folder}: ${pickledMessage(name)}`);
  }
  throw new FormatError(`${folder}: holds no weights, expected ${WEIGHTS} or ${WEIGHTS_INDEX}`);
}

/** Why pickled weights are refused and what to do about it. */
export function pickledMessage(file: string): string {
  return (
    `has pickled weights only (${file}), which are not supported yet; convert them once in Python: ` +
    "transformers.AutoModelForCausalLM.from_pretrained('<model>').save_pretrained('<folder>', safe_serialization=True)"
  );
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

async function openSingle(folder: string): Promise<Checkpoint> {
  const file = await openSafetensors(join(folder, WEIGHTS));
  return new OpenCheckpoint(
    folder,
    new Map([...file.tensors.values()].map((info) => [info.name, { file, info }])),
  );
}

async function openSharded(folder: string): Promise<Checkpoint> {
  const indexPath = join(folder, WEIGHTS_INDEX);
  const index = parseIndex(await readJson(indexPath, { maxBytes: MAX_INDEX_BYTES }), indexPath);
  const files = new Map<string, SafetensorsFile>();
  const entries = new Map<string, Entry>();
  try {
    for (const [name, shard] of index) {
      const file = files.get(shard) ?? (await openSafetensors(join(folder, shard)));
      files.set(shard, file);
      const info = file.tensors.get(name);
      if (!info)
        throw new FormatError(
          `${file.path}: tensor ${name} is missing, though ${WEIGHTS_INDEX} places it here`,
        );
      entries.set(name, { file, info });
    }
  } catch (error) {
    await Promise.all([...files.values()].map((file) => file.close()));
    throw error;
  }
  return new OpenCheckpoint(folder, entries);
}

interface Entry {
  readonly file: SafetensorsFile;
  readonly info: TensorInfo;
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
    const files = new Set([...this.#entries.values()].map(({ file }) => file));
    await Promise.all([...files].map((file) => file.close()));
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
