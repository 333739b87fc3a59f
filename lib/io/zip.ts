import type { FileHandle } from 'node:fs/promises';
import { fromRandomAccessReaderPromise, RandomAccessReader, type Entry, type ZipFile } from 'yauzl';
import { FormatError } from '../errors';
import { readFully } from './safetensors';

/** One file in the archive; its bytes are stored as they are, or `locate` refuses it. */
export interface ZipEntry {
  readonly name: string;
  readonly bytes: number;
  readonly crc32: number;
}

/** torch writes one entry for each tensor, and a handful more. */
const MAX_ENTRIES = 100_000;
const STORED = 0;
/** The flag of entries whose sizes and checksum follow the data: what torch writes. */
const DESCRIPTOR = 8;

/** The directory of a ZIP file, whose entries are read in place: nothing is ever unpacked or written. */
export class ZipArchive {
  readonly entries: ReadonlyMap<string, ZipEntry>;
  readonly #path: string;
  readonly #zip: ZipFile;
  readonly #raw: ReadonlyMap<string, Entry>;
  readonly #file: FileHandle;

  constructor(path: string, file: FileHandle, zip: ZipFile, raw: ReadonlyMap<string, Entry>) {
    this.#path = path;
    this.#file = file;
    this.#zip = zip;
    this.#raw = raw;
    this.entries = new Map(
      [...raw].map(([name, { uncompressedSize, crc32 }]) => [name, { name, bytes: uncompressedSize, crc32 }]),
    );
  }

  /** Where the entry's bytes begin; all of them are within the file. */
  async locate({ name }: ZipEntry): Promise<number> {
    const where = `${this.#path}: entry ${name}`;
    const entry = this.#raw.get(name)!;
    if (entry.isEncrypted()) throw new FormatError(`${where} is encrypted`);
    if (entry.compressionMethod !== STORED) {
      throw new FormatError(
        `${where} is compressed, expected it stored, as torch.save does; unpack the file and store it again with: zip -0 -r`,
      );
    }
    const header = await this.#zip.readLocalFileHeaderPromise(entry, {}).catch(explain(where));
    // An offset that leads to another entry's header would give its bytes under this name.
    if (!header.fileName.equals(entry.fileNameRaw)) {
      throw new FormatError(
        `${where} is called ${JSON.stringify(header.fileName.toString())} where its bytes are`,
      );
    }
    await this.#checkEnd(header.fileDataStart + entry.uncompressedSize, entry, where);
    return header.fileDataStart;
  }

  /** Wrong lengths in front of the data would move them; what follows them then is not what should. */
  async #checkEnd(end: number, { generalPurposeBitFlag: flags, crc32 }: Entry, where: string): Promise<void> {
    const next = Buffer.alloc(8);
    await readFully(this.#file, next, end, where);
    const follows = (mark: string) => next.toString('latin1', 0, 4) === mark;
    const isThere =
      flags & DESCRIPTOR
        ? follows('PK\x07\x08') && next.readUInt32LE(4) === crc32
        : follows('PK\x03\x04') || follows('PK\x01\x02');
    if (!isThere)
      throw new FormatError(`${where} does not end at byte ${end}, where it should; the file is damaged`);
  }
}

/** Reads the directory of a ZIP file. Throws FormatError on names that lead out of it, or that occur twice. */
export async function openZip(file: FileHandle, path: string): Promise<ZipArchive> {
  const options = { autoClose: false, strictFileNames: true };
  const { size } = await file.stat();
  const zip = await fromRandomAccessReaderPromise(new Reader(file, size), size, options).catch(explain(path));
  if (zip.entryCount > MAX_ENTRIES) {
    throw new FormatError(`${path}: holds ${zip.entryCount} entries, expected at most ${MAX_ENTRIES}`);
  }
  const raw = new Map<string, Entry>();
  try {
    for await (const entry of zip.eachEntry()) {
      if (raw.has(entry.fileName)) {
        throw new FormatError(`${path}: entry ${JSON.stringify(entry.fileName)} occurs twice`);
      }
      raw.set(entry.fileName, entry);
    }
  } catch (error) {
    explain(path)(error as Error);
  }
  return new ZipArchive(path, file, zip, raw);
}

/** Reads for yauzl, a few entries of the directory at a time. Its own reader throws at offsets beyond 2^53. */
class Reader extends RandomAccessReader {
  readonly #file: FileHandle;
  readonly #size: number;
  #window = Buffer.alloc(0);
  #begin = 0;

  constructor(file: FileHandle, size: number) {
    super();
    this.#file = file;
    this.#size = size;
  }

  override read(
    ...[buffer, offset, length, position, callback]: Parameters<RandomAccessReader['read']>
  ): void {
    this.#bytes(position, length).then(
      (bytes) => callback(null, bytes.copy(buffer, offset)),
      (error: Error) => callback(error),
    );
  }

  async #bytes(position: number, length: number): Promise<Buffer> {
    if (!(position >= 0 && position + length <= this.#size)) throw new Error('unexpected end of the file');
    if (position < this.#begin || position + length > this.#begin + this.#window.length) {
      const window = Buffer.alloc(Math.min(Math.max(length, 4096), this.#size - position));
      await readFully(this.#file, window, position, 'directory');
      this.#window = window;
      this.#begin = position;
    }
    return this.#window.subarray(position - this.#begin, position - this.#begin + length);
  }
}

const explain =
  (where: string) =>
  (error: Error): never => {
    if (error instanceof FormatError) throw error;
    throw new FormatError(`${where}: is not a ZIP file that can be read; ${error.message}`, { cause: error });
  };

let table: Uint32Array | undefined;

/** The checksum of a ZIP entry; Node's own came with 20.15. */
export function crc32(bytes: Uint8Array): number {
  table ??= Uint32Array.from({ length: 256 }, (_, n) => {
    for (let bit = 0; bit < 8; bit++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
    return n;
  });
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ table[(crc ^ byte) & 255]!;
  return ~crc >>> 0;
}
