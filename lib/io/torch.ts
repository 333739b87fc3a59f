import type { FileHandle } from 'node:fs/promises';
import { DisposedError, FormatError } from '../errors';
import { kind, openForReading } from './json';
import { unpickle } from './pickle';
import { describe, Dict, type Value } from './pickle-value';
import { ITEM_BYTES, readFully, type TensorFile, type TensorInfo } from './safetensors';
import { bytesOf, StoredTensor, TorchWorld, type Storage } from './torch-objects';
import { isContiguous, readStrided, type Layout } from './torch-strided';
import { crc32, openZip, type ZipArchive, type ZipEntry } from './zip';

/** A hundred bytes or two for each tensor. */
const MAX_PICKLE_BYTES = 16 << 20;
/** Where training scripts put a state dict that is not alone in its file. */
const WRAPPERS = ['state_dict', 'model'];

/**
 * Opens what `torch.save` writes: a ZIP file with a pickle that places tensors in the other entries. The
 * pickle is read by a machine that knows tensors and dicts only, and all of it is checked here: whatever
 * `tensors` holds afterwards lies inside the file.
 * @throws FormatError on anything else; older formats and TorchScript with advice.
 */
export async function openTorch(path: string): Promise<TensorFile> {
  const file = await openForReading(path);
  try {
    await refuseOthers(file, path);
    const archive = await openZip(file, path);
    const prefix = await prefixOf(archive, file, path);
    const pickle = await readPickle(archive, prefix, file, path);
    const tensors = tensorsIn(unpickle(pickle, `${path}: data.pkl`, new TorchWorld()), path);
    const begins = await locateStorages(archive, prefix, tensors, path);
    return new OpenTorch(path, tensors, begins, file);
  } catch (error) {
    await file.close();
    throw error;
  }
}

const legacy = Buffer.from('8a0a6cfc9c46f9206aa85019', 'hex'); // torch's magic number, as its own little pickle

async function refuseOthers(file: FileHandle, path: string): Promise<void> {
  const { size } = await file.stat();
  const front = Buffer.alloc(Math.min(size, 512));
  await readFully(file, front, 0, path);
  const resave =
    "load and save it once in Python: torch.save(torch.load('<file>', map_location='cpu', weights_only=True), '<file>')";
  if (front.toString('latin1', 257, 262) === 'ustar') {
    throw new FormatError(`${path}: is in the TAR format of torch before 0.1.10; ${resave}`);
  }
  if (front[0] === 0x80 && front.subarray(0, 32).includes(legacy)) {
    throw new FormatError(`${path}: is in the format of torch before 1.6, which is no ZIP file; ${resave}`);
  }
  if (front[0] === 0x80) {
    throw new FormatError(
      `${path}: is a bare pickle, expected what torch.save writes; nothing of it was run`,
    );
  }
  if (front.toString('latin1', 0, 23) === 'version https://git-lfs') {
    throw new FormatError(`${path}: is a pointer of Git LFS, not the file itself; run git lfs pull`);
  }
  if (front.toString('latin1', 0, 4) !== 'PK\x03\x04') {
    throw new FormatError(`${path}: is not a file that torch.save wrote, which is a ZIP file`);
  }
}

/** The folder that all of torch's entries are in: its name is free. */
async function prefixOf(archive: ZipArchive, file: FileHandle, path: string): Promise<string> {
  const names = [...archive.entries.keys()];
  const [pickle, ...more] = names.filter((name) => /^[^/]+\/data\.pkl$/.test(name));
  if (pickle === undefined)
    throw new FormatError(`${path}: is a ZIP file without data.pkl, expected one of torch.save's`);
  if (more.length > 0) throw new FormatError(`${path}: holds data.pkl ${more.length + 1} times`);
  const prefix = pickle.slice(0, -'data.pkl'.length);
  if (names.some((name) => name === `${prefix}constants.pkl` || name.startsWith(`${prefix}code/`))) {
    throw new FormatError(
      `${path}: is a TorchScript program, which holds code; save its tensors alone in Python: ` +
        "torch.save(torch.jit.load('<file>').state_dict(), '<other file>')",
    );
  }
  const order = archive.entries.get(`${prefix}byteorder`); // older files have none and are little
  if (order) {
    const text = (await readEntry(archive, order, 16, file, path)).toString('latin1').trim();
    if (text !== 'little') {
      throw new FormatError(
        `${path}: byteorder is ${kind(text)}, expected "little"; save it again on such a machine`,
      );
    }
  }
  return prefix;
}

async function readPickle(
  archive: ZipArchive,
  prefix: string,
  file: FileHandle,
  path: string,
): Promise<Buffer> {
  const entry = archive.entries.get(`${prefix}data.pkl`)!;
  const bytes = await readEntry(archive, entry, MAX_PICKLE_BYTES, file, path);
  if (crc32(bytes) !== entry.crc32)
    throw new FormatError(`${path}: data.pkl is damaged; its checksum differs`);
  return bytes;
}

async function readEntry(
  archive: ZipArchive,
  entry: ZipEntry,
  most: number,
  file: FileHandle,
  path: string,
): Promise<Buffer> {
  if (entry.bytes > most) {
    throw new FormatError(`${path}: entry ${entry.name} has ${entry.bytes} bytes, expected at most ${most}`);
  }
  const position = await archive.locate(entry);
  const bytes = Buffer.alloc(entry.bytes);
  await readFully(file, bytes, position, `${path}: entry ${entry.name}`);
  return bytes;
}

/** The tensors of a state dict, which may be alone or one dict further in, as `{"model": ...}`. */
function tensorsIn(root: Value, path: string): ReadonlyMap<string, StoredTensor> {
  if (!(root instanceof Dict))
    throw new FormatError(`${path}: holds ${describe(root)}, expected a dict of tensors`);
  const isBare = [...root.entries()].some(([, value]) => value instanceof StoredTensor);
  const inner = isBare
    ? undefined
    : WRAPPERS.map((key) => root.get(key)).find((value) => value instanceof Dict);
  const tensors = new Map<string, StoredTensor>();
  for (const [name, value] of (inner instanceof Dict ? inner : root).entries()) {
    if (!(value instanceof StoredTensor)) {
      throw new FormatError(`${path}: ${name} is ${describe(value)}, expected a tensor`);
    }
    if (typeof name !== 'string') {
      throw new FormatError(`${path}: name of a tensor is ${name}, expected a string`);
    }
    tensors.set(name, value);
  }
  if (tensors.size === 0) throw new FormatError(`${path}: holds no tensors`);
  return tensors;
}

/** Where the storages begin in the file; each has the size that the pickle says, and its bytes to itself. */
async function locateStorages(
  archive: ZipArchive,
  prefix: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  path: string,
): Promise<ReadonlyMap<Storage, number>> {
  const begins = new Map<Storage, number>();
  for (const [name, { storage }] of tensors) {
    if (begins.has(storage)) continue;
    const where = `${path}: storage ${kind(storage.key)} of tensor ${name}`;
    const entry = archive.entries.get(`${prefix}data/${storage.key}`);
    if (!entry) throw new FormatError(`${where} is missing`);
    if (entry.bytes !== bytesOf(storage)) {
      throw new FormatError(
        `${where} has ${entry.bytes} bytes, expected ${bytesOf(storage)} for ${storage.dtype}[${storage.elements}]`,
      );
    }
    begins.set(storage, await archive.locate(entry));
  }
  const order = [...begins].sort(([, a], [, b]) => a - b);
  order.forEach(([storage, begin], i) => {
    const before = order[i - 1];
    if (before && before[1] + bytesOf(before[0]) > begin && bytesOf(storage) > 0) {
      throw new FormatError(`${path}: storages ${kind(before[0].key)} and ${kind(storage.key)} overlap`);
    }
  });
  return begins;
}

class OpenTorch implements TensorFile {
  /** `begin` is that of the first element; only where a tensor is contiguous do its bytes end at `end`. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly #layouts = new Map<string, Layout>();
  #file: FileHandle | undefined;

  constructor(
    readonly path: string,
    tensors: ReadonlyMap<string, StoredTensor>,
    begins: ReadonlyMap<Storage, number>,
    file: FileHandle,
  ) {
    this.#file = file;
    const infos = [...tensors].map(([name, { storage, offset, shape, strides }]): TensorInfo => {
      const { dtype } = storage;
      const itemBytes = ITEM_BYTES[dtype];
      const begin = begins.get(storage)! + offset * itemBytes;
      if (!isContiguous({ shape, strides })) this.#layouts.set(name, { begin, itemBytes, shape, strides });
      const bytes = shape.includes(0) ? 0 : shape.reduce((a, b) => a * b, itemBytes);
      return { name, dtype, shape, begin, end: begin + bytes };
    });
    this.tensors = new Map(infos.map((info) => [info.name, info]));
  }

  async read({ name, begin, end }: TensorInfo, into: Uint8Array, offset = 0): Promise<void> {
    const file = this.#file;
    if (!file) throw new DisposedError(`read: ${this.path} is closed`);
    const bytes = end - begin;
    if (!Number.isSafeInteger(offset) || offset < 0 || offset + into.length > bytes) {
      throw new RangeError(
        `read: offset ${offset} + ${into.length} bytes is outside of ${name}, which has ${bytes} bytes`,
      );
    }
    const layout = this.#layouts.get(name);
    const readAt = (into: Uint8Array, position: number) =>
      readFully(file, into, position, `${this.path}: tensor ${name}`);
    await (layout ? readStrided(readAt, layout, into, offset) : readAt(into, begin + offset));
  }

  async close(): Promise<void> {
    const file = this.#file;
    this.#file = undefined;
    await file?.close();
  }
}
