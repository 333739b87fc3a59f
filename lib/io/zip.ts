import type { FileHandle } from 'node:fs/promises';
import { fromFdPromise, type Entry, type ZipFile } from 'yauzl';
import { FormatError } from '../errors';

/** One file in the archive; its bytes are stored as they are, or `locate` refuses it. */
export interface ZipEntry {
  readonly name: string;
  readonly bytes: number;
  readonly crc32: number;
}

/** torch writes one entry for each tensor, and a handful more. */
const MAX_ENTRIES = 100_000;
const STORED = 0;

/** The directory of a ZIP file, whose entries are read in place: nothing is ever unpacked or written. */
export class ZipArchive {
  readonly entries: ReadonlyMap<string, ZipEntry>;
  readonly #path: string;
  readonly #zip: ZipFile;
  readonly #raw: ReadonlyMap<string, Entry>;

  constructor(path: string, zip: ZipFile, raw: ReadonlyMap<string, Entry>) {
    this.#path = path;
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
    return header.fileDataStart;
  }
}

/** Reads the directory of a ZIP file. Throws FormatError on names that lead out of it, or that occur twice. */
export async function openZip(file: FileHandle, path: string): Promise<ZipArchive> {
  const options = { autoClose: false, strictFileNames: true };
  const zip = await fromFdPromise(file.fd, options).catch(explain(path));
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
  return new ZipArchive(path, zip, raw);
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
