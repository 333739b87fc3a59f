import { createHash } from 'node:crypto';
import { FormatError } from '../errors';
import { openForReading } from '../io/json';
import { readFully } from '../io/safetensors';

/** By what a file of a corpus is known again: its name, its tokens and the digest of its content. */
export type FileRecord = readonly [name: string, tokens: number, digest: string];

const pieceBytes = 1 << 16;
const mostPieces = 256;

/**
 * How many bytes a file of tokens of `item` bytes has, and 64 bits of their SHA-256: of all of it up to 16 MiB, of a
 * larger one of 256 pieces of 64 KiB that lie evenly over it, its beginning and its end among them.
 * @throws FormatError for a file that is missing, empty or no whole number of tokens.
 */
export async function describeFile(
  path: string,
  item: number,
): Promise<{ readonly bytes: number; readonly digest: string }> {
  const file = await openForReading(path);
  try {
    const bytes = (await file.stat()).size;
    if (bytes === 0) throw new FormatError(`${path}: file is empty, expected tokens`);
    if (bytes % item !== 0)
      throw new FormatError(`${path}: file has ${bytes} bytes, expected tokens of ${item} bytes each`);
    const hash = createHash('sha256');
    const pieces = Math.ceil(bytes / pieceBytes);
    const count = Math.min(pieces, mostPieces);
    const buffer = Buffer.allocUnsafeSlow(Math.min(pieceBytes, bytes));
    for (let i = 0; i < count; i++) {
      const piece = count === 1 ? 0 : Math.floor((i * (pieces - 1)) / (count - 1));
      const begin = piece * pieceBytes;
      const part = buffer.subarray(0, Math.min(pieceBytes, bytes - begin));
      await readFully(file, part, begin, path);
      hash.update(part);
    }
    return { bytes, digest: hash.digest('hex').slice(0, 16) };
  } finally {
    await file.close();
  }
}

/** @throws FormatError where a file has another size than when it was opened. */
export async function checkSize(
  file: Awaited<ReturnType<typeof openForReading>>,
  path: string,
  size: number,
): Promise<void> {
  const now = (await file.stat()).size;
  if (now !== size)
    throw new FormatError(`${path}: file has ${now} bytes, expected ${size}; it was changed meanwhile`);
}

/** How the files that there are differ from those of a state, by name; undefined where they do not. */
export function changeOf(before: unknown, now: readonly FileRecord[]): string | undefined {
  if (!Array.isArray(before)) return undefined;
  const had = (before as unknown[]).map((file): readonly unknown[] => (Array.isArray(file) ? file : []));
  const without = <T extends readonly unknown[]>(
    files: readonly T[],
    others: readonly (readonly unknown[])[],
  ) => {
    const known = new Set(others.map((file) => JSON.stringify(file)));
    return files.filter((file) => !known.has(JSON.stringify(file)));
  };
  const [added, lost] = [without(now, had), without(had, now)];
  const sizes = new Map(lost.map(([name, tokens]) => [name, tokens]));
  const grown = added.find(([name, tokens]) => sizes.has(name) && sizes.get(name) !== tokens);
  if (grown) return `file ${grown[0]} has ${grown[1]} tokens, and had ${String(sizes.get(grown[0]))}`;
  const edited = added.filter(([name]) => sizes.has(name)).map(([name]) => name);
  if (edited.length > 0) return `${listed(edited)} other content than before`;
  if (added[0]) return `file ${added[0][0]}, of ${added[0][1]} tokens, was not there`;
  if (lost[0]) return `file ${String(lost[0][0])}, of ${String(lost[0][1])} tokens, is not there`;
  return undefined;
}

function listed(names: readonly string[]): string {
  if (names.length === 1) return `file ${names[0]} has`;
  const more = names.length - 5;
  return `files ${names.slice(0, 5).join(', ')}${more > 0 ? ` and ${more} more` : ''} have`;
}
