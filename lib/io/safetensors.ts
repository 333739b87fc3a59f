import type { FileHandle } from 'node:fs/promises';
import { DisposedError, FormatError } from '../errors';
import { writeAtomically, writeFully } from './atomic';
import { isObject, kind, openForReading, parseJsonObject } from './json';

/** Bytes per element of every dtype that a safetensors file may hold here. */
// prettier-ignore
export const ITEM_BYTES = {
  BOOL: 1, U8: 1, I8: 1, F8_E4M3: 1, F8_E5M2: 1, F8_E8M0: 1,
  U16: 2, I16: 2, F16: 2, BF16: 2,
  U32: 4, I32: 4, F32: 4,
  U64: 8, I64: 8, F64: 8, C64: 8,
} as const;

export type SafetensorsDType = keyof typeof ITEM_BYTES;

export interface TensorInfo {
  readonly name: string;
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  /** Byte offsets within the file. */
  readonly begin: number;
  readonly end: number;
}

/** An open file of named tensors, of any format. */
export interface TensorFile {
  readonly path: string;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** Fills `into` with the tensor's bytes from `offset` (of the tensor) on; several reads may run at once. */
  read(info: TensorInfo, into: Uint8Array, offset?: number): Promise<void>;
  close(): Promise<void>;
}

/** Its tensors are in the order of their bytes. */
export interface SafetensorsFile extends TensorFile {
  readonly metadata: Readonly<Record<string, string>>;
}

/** The limit of the reference implementation. */
const MAX_HEADER = 100_000_000;
const MAX_READ = 1 << 30; // Node reads at most 2^31 - 1 bytes at once

/** Opens a file and validates its whole header: whatever `tensors` holds afterwards lies inside the file. */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  const file = await openForReading(path);
  try {
    const { tensors, metadata } = await readHeader(file, path);
    return new OpenFile(path, tensors, metadata, file);
  } catch (error) {
    await file.close();
    throw error;
  }
}

class OpenFile implements SafetensorsFile {
  #file: FileHandle | undefined;

  constructor(
    readonly path: string,
    readonly tensors: ReadonlyMap<string, TensorInfo>,
    readonly metadata: Readonly<Record<string, string>>,
    file: FileHandle,
  ) {
    this.#file = file;
  }

  async read(info: TensorInfo, into: Uint8Array, offset = 0): Promise<void> {
    if (!this.#file) throw new DisposedError(`read: ${this.path} is closed`);
    const bytes = info.end - info.begin;
    if (!Number.isSafeInteger(offset) || offset < 0 || offset + into.length > bytes) {
      throw new RangeError(
        `read: offset ${offset} + ${into.length} bytes is outside of ${info.name}, which has ${bytes} bytes`,
      );
    }
    await readFully(this.#file, into, info.begin + offset, `${this.path}: tensor ${info.name}`);
  }

  async close(): Promise<void> {
    const file = this.#file;
    this.#file = undefined;
    await file?.close();
  }
}

/** Fills `into` from `position` of the file on; `where` names it in messages. */
export async function readFully(
  file: FileHandle,
  into: Uint8Array,
  position: number,
  where: string,
): Promise<void> {
  for (let done = 0; done < into.length;) {
    const length = Math.min(into.length - done, MAX_READ);
    const { bytesRead } = await file.read(into, done, length, position + done);
    if (bytesRead === 0)
      throw new FormatError(`${where}: file ends at byte ${position + done}; it is truncated`);
    done += bytesRead;
  }
}

async function readHeader(file: FileHandle, path: string) {
  const { size } = await file.stat();
  if (size < 8)
    throw new FormatError(`${path}: file has ${size} bytes, expected at least 8; it is truncated`);
  const prefix = Buffer.alloc(8);
  await readFully(file, prefix, 0, path);
  const length = prefix.readBigUInt64LE();
  if (length > MAX_HEADER) {
    throw new FormatError(
      `${path}: header length is ${length}, expected at most ${MAX_HEADER}; not a safetensors file?`,
    );
  }
  const dataBegin = 8 + Number(length);
  if (dataBegin > size) {
    throw new FormatError(`${path}: header ends at byte ${dataBegin}, the file at ${size}; it is truncated`);
  }
  const header = Buffer.alloc(Number(length));
  await readFully(file, header, 8, path);
  return parseHeader(header, dataBegin, size, path);
}

function parseHeader(header: Uint8Array, dataBegin: number, size: number, path: string) {
  const { __metadata__: rawMetadata = {}, ...rawTensors } = parseJsonObject(header, `${path}: header`);
  const metadata = parseMetadata(rawMetadata, path);
  const infos = Object.entries(rawTensors).map(([name, raw]) => parseInfo(name, raw, dataBegin, path));
  infos.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let end = dataBegin; // every byte belongs to exactly one tensor: no holes, no overlaps, nothing after the last
  for (const info of infos) {
    // prettier-ignore
    const fault = info.end > size ? 'reaches beyond the end of the file; it is truncated'
      : info.begin < end ? 'overlaps the tensor before it'
      : info.begin > end ? `leaves a hole of ${info.begin - end} bytes before it`
      : undefined;
    if (fault) {
      throw new FormatError(
        `${path}: tensor ${info.name} at bytes ${info.begin} to ${info.end} of ${size} ${fault}`,
      );
    }
    end = info.end;
  }
  if (end !== size)
    throw new FormatError(`${path}: ${size - end} bytes follow the last tensor, expected none`);
  return { metadata, tensors: new Map(infos.map((info) => [info.name, info])) };
}

function parseMetadata(raw: unknown, path: string): Readonly<Record<string, string>> {
  if (!isObject(raw))
    throw new FormatError(`${path}: __metadata__ is ${kind(raw)}, expected an object of strings`);
  for (const [key, value] of Object.entries(raw)) {
    if (typeof value !== 'string') {
      throw new FormatError(
        `${path}: __metadata__ ${JSON.stringify(key)} is ${kind(value)}, expected a string`,
      );
    }
  }
  return raw as Readonly<Record<string, string>>;
}

function parseInfo(name: string, raw: unknown, dataBegin: number, path: string): TensorInfo {
  const fail = (what: string): never => {
    throw new FormatError(`${path}: tensor ${name}: ${what}`);
  };
  if (!isObject(raw)) return fail(`entry is ${kind(raw)}, expected an object`);
  const { dtype, shape, data_offsets: offsets } = raw;
  if (!isDType(dtype))
    return fail(`dtype is ${kind(dtype)}, expected one of ${Object.keys(ITEM_BYTES).join(', ')}`);
  if (!isSizes(shape)) return fail(`shape is ${JSON.stringify(shape)}, expected an array of whole numbers`);
  if (!isSizes(offsets) || offsets.length !== 2) {
    return fail(`data_offsets is ${JSON.stringify(offsets)}, expected two whole numbers`);
  }
  const [begin, end] = offsets as [number, number];
  if (begin > end) fail(`data_offsets is [${begin},${end}], expected begin before end`);
  const bytes = byteSize(dtype, shape);
  if (bytes !== end - begin) {
    fail(
      `data_offsets span ${end - begin} bytes, expected ${bytes ?? 'fewer than 2^53'} for ${dtype}[${shape}]`,
    );
  }
  if ((dataBegin + begin) % ITEM_BYTES[dtype] !== 0) {
    fail(
      `begins at byte ${dataBegin + begin}, which is misaligned for ${dtype}; save it again with safetensors`,
    );
  }
  return { name, dtype, shape, begin: dataBegin + begin, end: dataBegin + end };
}

function isDType(value: unknown): value is SafetensorsDType {
  return typeof value === 'string' && Object.hasOwn(ITEM_BYTES, value);
}

function isSizes(value: unknown): value is readonly number[] {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0);
}

/** Undefined where the product has no exact number. */
function byteSize(dtype: SafetensorsDType, shape: readonly number[]): number | undefined {
  if (shape.includes(0)) return 0;
  let bytes: number = ITEM_BYTES[dtype];
  for (const size of shape) {
    bytes *= size;
    if (!Number.isSafeInteger(bytes)) return undefined;
  }
  return bytes;
}

export interface TensorSource {
  readonly name: string;
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  /** The tensor's bytes, whole or in pieces; called once, when its turn comes. */
  read(): Promise<Uint8Array> | AsyncIterable<Uint8Array>;
}

/**
 * Writes a safetensors file, one tensor in memory at a time. The file appears under `path` only when it is
 * complete (see `writeAtomically`); a link is replaced by it. Wide dtypes go first, so that every tensor is aligned.
 */
export async function writeSafetensors(
  path: string,
  tensors: Iterable<TensorSource>,
  metadata: Readonly<Record<string, string>> = { format: 'pt' },
): Promise<void> {
  const sources = [...tensors].sort((a, b) => ITEM_BYTES[b.dtype] - ITEM_BYTES[a.dtype]);
  const header = encodeHeader(sources, metadata);
  const write = async (file: FileHandle) => {
    await writeFully(file, header);
    for (const source of sources) await writeTensor(file, source);
  };
  await writeAtomically(path, write, { links: 'replace' });
}

function encodeHeader(sources: readonly TensorSource[], metadata: Readonly<Record<string, string>>): Buffer {
  const entries = new Map<string, unknown>([['__metadata__', metadata]]);
  let offset = 0;
  for (const { name, dtype, shape } of sources) {
    if (entries.has(name))
      throw new RangeError(`writeSafetensors: tensor name ${JSON.stringify(name)} is taken`);
    if (!isDType(dtype)) throw new TypeError(`writeSafetensors: dtype of ${name} is ${kind(dtype)}`);
    const bytes = isSizes(shape) ? byteSize(dtype, shape) : undefined;
    if (bytes === undefined) {
      throw new RangeError(`writeSafetensors: shape of ${name} is [${shape}], expected whole numbers`);
    }
    entries.set(name, { dtype, shape, data_offsets: [offset, offset + bytes] });
    offset += bytes;
  }
  const json = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  const header = Buffer.alloc(8 + Math.ceil(json.length / 8) * 8, ' ');
  header.writeBigUInt64LE(BigInt(header.length - 8));
  json.copy(header, 8);
  return header;
}

async function writeTensor(file: FileHandle, source: TensorSource): Promise<void> {
  const expected = byteSize(source.dtype, source.shape);
  const data = source.read();
  let bytes = 0;
  for await (const chunk of Symbol.asyncIterator in data ? data : [data]) {
    await writeFully(file, chunk);
    bytes += chunk.length;
  }
  if (bytes !== expected) {
    throw new RangeError(`writeSafetensors: ${source.name} gave ${bytes} bytes, expected ${expected}`);
  }
}
