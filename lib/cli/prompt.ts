import { addAbortSignal } from 'node:stream';
import { readFile, stat } from 'node:fs/promises';
import { FormatError } from '../errors';
import { UsageError } from './exit';
import { note } from './terminal';

/** The bytes of a file that the user named: a plain file, or a pipe such as `<(command)`; not a device without end. */
export async function readNamed(path: string): Promise<Uint8Array> {
  const explain = (error: NodeJS.ErrnoException): never => {
    const reason = error.code === 'ENOENT' ? 'file does not exist' : `file cannot be read; ${error.message}`;
    throw new UsageError(`${path}: ${reason}`, { cause: error });
  };
  const stats = await stat(path).catch(explain);
  if (stats.isDirectory()) throw new UsageError(`${path}: file cannot be read; it is a folder`);
  if (!stats.isFile() && !stats.isFIFO()) throw new UsageError(`${path}: is not a regular file, nor a pipe`);
  return readFile(path).catch(explain);
}

async function readStdin(signal: AbortSignal): Promise<Uint8Array> {
  if (process.stdin.isTTY) note('Type the prompt, then press Ctrl-D:');
  const chunks: Uint8Array[] = [];
  try {
    for await (const chunk of addAbortSignal(signal, process.stdin)) chunks.push(chunk as Uint8Array);
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  }
  return Buffer.concat(chunks);
}

/** Text from bytes; throws FormatError that names the first byte which is no UTF-8. */
export function decodeUtf8(bytes: Uint8Array, where: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (error) {
    throw new FormatError(`${where}: is not valid UTF-8 at byte ${invalidByte(bytes)}`, { cause: error });
  }
}

/** The longest beginning that could still become UTF-8 ends before this byte. */
function invalidByte(bytes: Uint8Array): number {
  let good = 0;
  let bad = bytes.length + 1;
  while (bad - good > 1) {
    const middle = (good + bad) >> 1;
    try {
      new TextDecoder('utf-8', { fatal: true }).decode(bytes.subarray(0, middle), { stream: true });
      good = middle;
    } catch {
      bad = middle;
    }
  }
  return good;
}

export interface PromptSource {
  /** The argument: the prompt itself, or `-` for stdin. */
  readonly argument: string | undefined;
  readonly file: string | undefined;
  /** Whether nothing is an answer too, so that a terminal need not be asked. */
  readonly optional: boolean;
  /** Whether it may be any bytes. */
  readonly raw: boolean;
}

/**
 * The prompt, from wherever it comes. The line break that ends a file does not belong to a text; `raw`
 * bytes are taken as they are.
 */
export async function readPrompt(source: PromptSource, signal: AbortSignal): Promise<string | Uint8Array> {
  const { argument, file, optional, raw } = source;
  if (argument !== undefined && file !== undefined)
    throw new UsageError('the prompt is given twice: as an argument, and by --file');
  if (argument !== undefined && argument !== '-') return raw ? Buffer.from(argument) : argument;
  if (file === undefined && argument === undefined && optional && process.stdin.isTTY) return '';
  const bytes = file === undefined ? await readStdin(signal) : await readNamed(file);
  return raw ? bytes : decodeUtf8(bytes, file ?? 'stdin').replace(/\r?\n$/, '');
}

/** Token ids as they are typed: whole numbers with a comma or spaces between two. */
export function parseIds(text: string): number[] {
  const trimmed = text.trim();
  if (trimmed === '') return [];
  return trimmed.split(/\s*,\s*|\s+/).map((word) => {
    if (!/^\d+$/.test(word))
      throw new UsageError(`prompt holds ${JSON.stringify(word)}, expected token ids, as --ids says`);
    return Number(word);
  });
}
