import { checkNames, checkRecord, kindOf } from '../arguments';
import { openForReading } from '../io/json';
import { readFully } from '../io/safetensors';
import { checkSize, describeFile, type FileRecord } from './data-files';
import { permutation } from './permutation';

export interface CorpusOptions {
  /** What files hold: `bytes` (default), each a token; `u16` or `i32`, little-endian ids as `writeTokens` writes. */
  readonly tokens?: TokenFormat;
  /** The token that ends a document; by default each file is one. */
  readonly separator?: number;
}
export type TokenFormat = 'bytes' | 'u16' | 'i32';

/** What is held out: these of the files (paths as they were given), or about this share of the tokens. */
export type HeldOut =
  { readonly files: readonly string[] } | { readonly share: number; readonly seed?: number };

/** A part of a file that is tokens of the corpus, one after the other. */
interface Span {
  readonly path: string;
  /** Of the file, in tokens. */
  readonly fileTokens: number;
  readonly digest: string;
  /** Where in the file the span begins and ends, in tokens. */
  readonly begin: number;
  readonly end: number;
  /** Tokens of the corpus before it. */
  readonly at: number;
}

/** Some tokens of a corpus. */
export interface CorpusPart {
  readonly ids: Int32Array;
  /** Which of `ids` begin a document: their places in it. */
  readonly starts: readonly number[];
}

const sizes: Readonly<Record<TokenFormat, number>> = { bytes: 1, u16: 2, i32: 4 };
const names: readonly (keyof CorpusOptions)[] = ['tokens', 'separator'];
const blockBytes = 1 << 16;
const mostBlocks = 1024;
const openAtOnce = 16;

/**
 * Files as one long row of tokens. They are read by position, in blocks of 64 KiB of which the last used
 * 64 MiB are kept, and never as a whole; no file stays open.
 */
export class Corpus {
  readonly #spans: readonly Span[];
  readonly #format: TokenFormat;
  readonly #separator: number | undefined;
  readonly #blocks: Map<string, Promise<Buffer>>;

  private constructor(
    spans: readonly Omit<Span, 'at'>[],
    format: TokenFormat,
    separator: number | undefined,
    blocks: Map<string, Promise<Buffer>>,
  ) {
    let at = 0;
    this.#spans = spans.map((span) => {
      at += span.end - span.begin;
      return { ...span, at: at - (span.end - span.begin) };
    });
    this.#format = format;
    this.#separator = separator;
    this.#blocks = blocks;
  }

  /**
   * Reads the files once, for their digests; of those above 16 MiB a part.
   * @throws FormatError for a file that is missing, empty or no whole number of tokens.
   */
  static async open(files: readonly string[], options: CorpusOptions = {}): Promise<Corpus> {
    checkNames('Corpus.open', options, names, 'options');
    const { tokens = 'bytes', separator } = options;
    checkPaths('Corpus.open', files);
    const seen = new Set<string>();
    for (const file of files)
      if (seen.size === seen.add(file).size) throw new RangeError(`Corpus.open: files has ${file} twice`);
    if (!Object.hasOwn(sizes, tokens))
      throw new TypeError(`Corpus.open: tokens is ${String(tokens)}, expected bytes, u16 or i32`);
    if (separator !== undefined && (!Number.isInteger(separator) || separator < 0))
      throw new RangeError(`Corpus.open: separator is ${String(separator)}, expected a token id`);
    const spans: Omit<Span, 'at'>[] = [];
    for (let at = 0; at < files.length; at += openAtOnce) {
      const some = files.slice(at, at + openAtOnce).map((path) => describeFile(path, sizes[tokens]));
      for (const result of await Promise.allSettled(some)) {
        if (result.status === 'rejected') throw result.reason; // of the first in order
        const { bytes, digest } = result.value;
        const fileTokens = bytes / sizes[tokens];
        spans.push({ path: files[spans.length]!, fileTokens, digest, begin: 0, end: fileTokens });
      }
    }
    return new Corpus(spans, tokens, separator, new Map());
  }

  /** Tokens. */
  get length(): number {
    const last = this.#spans.at(-1)!;
    return last.at + last.end - last.begin;
  }

  get files(): readonly string[] {
    return this.#spans.map(({ path }) => path);
  }

  /** Each file's name, how many tokens it has, held-out ones of it too, and a digest of its content. */
  get records(): readonly FileRecord[] {
    return this.#spans.map(({ path, fileTokens, digest }) => [
      path.split(/[\\/]/).at(-1)!,
      fileTokens,
      digest,
    ]);
  }

  /** Names, sizes and contents, by which a saved position is known to be of the same data. */
  get fingerprint(): string {
    const spans = this.#spans.map(({ begin, end }) => [begin, end]);
    return JSON.stringify([this.#format, this.#separator ?? null, spans, this.records]);
  }

  /**
   * The corpus without what is held out, and what is. A share of several files is some of them as a whole,
   * drawn by `seed` (default 0) until they hold as much; of one file it is its end.
   * @throws RangeError where nothing would be left on one side.
   */
  split(heldOut: HeldOut): { readonly training: Corpus; readonly validation: Corpus } {
    checkRecord('split', heldOut, 'heldOut');
    const parts = 'files' in heldOut ? this.#splitFiles(heldOut.files) : this.#splitShare(heldOut);
    const [training, validation] = parts.map(
      (spans) => new Corpus(spans, this.#format, this.#separator, this.#blocks),
    );
    return { training: training!, validation: validation! };
  }

  #splitFiles(files: readonly string[]): readonly (readonly Span[])[] {
    checkPaths('split', files);
    const known = new Set(this.files);
    const missing = files.find((file) => !known.has(file));
    if (missing !== undefined)
      throw new RangeError(`split: files has ${missing}, which is not in the corpus`);
    const held = new Set(files);
    if (held.size === 0 || held.size === this.#spans.length)
      throw new RangeError(
        `split: files has ${held.size} of ${this.#spans.length} files, expected some on either side`,
      );
    return [false, true].map((out) => this.#spans.filter(({ path }) => held.has(path) === out));
  }

  #splitShare({ share, seed = 0 }: Extract<HeldOut, { share: number }>): readonly (readonly Span[])[] {
    if (typeof share !== 'number' || !(share > 0 && share < 1))
      throw new RangeError(`split: share is ${String(share)}, expected more than 0 and less than 1`);
    const wanted = share * this.length;
    const [first] = this.#spans;
    if (this.#spans.length === 1) {
      const middle = first!.end - Math.max(1, Math.round(wanted));
      if (middle <= first!.begin)
        throw new RangeError(`split: share is ${share} of ${this.length} tokens, expected to leave some`);
      return [[{ ...first!, end: middle }], [{ ...first!, begin: middle }]];
    }
    const order = permutation(this.#spans.length, seed);
    const held: string[] = [];
    let tokens = 0;
    for (let i = 0; i < this.#spans.length - 1 && tokens < wanted; i++) {
      const { path, begin, end } = this.#spans[order(i)]!;
      held.push(path);
      tokens += end - begin;
    }
    return this.#splitFiles(held);
  }

  /** Tokens `begin` to `end`, and where documents begin among them. */
  async read(begin: number, end: number): Promise<CorpusPart> {
    if (!Number.isInteger(begin) || !Number.isInteger(end) || begin < 0 || begin >= end || end > this.length)
      throw new RangeError(`read: range is ${begin} to ${end}, expected one within 0 to ${this.length}`);
    const ids = new Int32Array(end - begin);
    const starts: number[] = [];
    for (let i = this.#find(begin), at = begin; at < end; i++) {
      const span = this.#spans[i]!;
      const count = Math.min(end, span.at + span.end - span.begin) - at;
      if (at === span.at) starts.push(at - begin);
      await this.#fill(span, span.begin + at - span.at, ids.subarray(at - begin, at - begin + count));
      at += count;
    }
    if (this.#separator !== undefined)
      for (let i = 1; i < ids.length; i++)
        if (ids[i - 1] === this.#separator && !starts.includes(i)) starts.push(i);
    return { ids, starts: starts.sort((a, b) => a - b) };
  }

  /** The span that holds token `at`. */
  #find(at: number): number {
    let [low, high] = [0, this.#spans.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.#spans[middle]!.at <= at) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** Tokens of a file from `from` on. */
  async #fill(span: Span, from: number, into: Int32Array): Promise<void> {
    const bytes = sizes[this.#format];
    for (let done = 0; done < into.length;) {
      const position = (from + done) * bytes;
      const block = Math.floor(position / blockBytes);
      const buffer = await this.#block(span, block);
      const offset = position - block * blockBytes;
      const count = Math.min(into.length - done, (buffer.length - offset) / bytes);
      for (let i = 0; i < count; i++) {
        const at = offset + i * bytes;
        // prettier-ignore
        into[done + i] = bytes === 1 ? buffer[at]! : bytes === 2 ? buffer.readUInt16LE(at) : buffer.readInt32LE(at);
      }
      done += count;
    }
  }

  #block(span: Span, block: number): Promise<Buffer> {
    const key = `${block}:${span.path}`;
    const known = this.#blocks.get(key);
    this.#blocks.delete(key);
    const buffer = known ?? readBlock(span.path, span.fileTokens * sizes[this.#format], block);
    this.#blocks.set(key, buffer); // the last used stay longest
    if (known) return known;
    buffer.catch(() => this.#blocks.delete(key));
    if (this.#blocks.size > mostBlocks) this.#blocks.delete(this.#blocks.keys().next().value!);
    return buffer;
  }
}

/** Throws unless `files` is a list of paths that is not empty. */
export function checkPaths(call: string, files: readonly unknown[]): void {
  if (!Array.isArray(files) || files.some((file) => typeof file !== 'string'))
    throw new TypeError(`${call}: files is ${kindOf(files)}, expected a list of paths`);
  if (files.length === 0) throw new RangeError(`${call}: files is empty, expected one path or more`);
}

/** @throws FormatError where the file has another size than when it was opened. */
async function readBlock(path: string, size: number, block: number): Promise<Buffer> {
  const file = await openForReading(path);
  try {
    await checkSize(file, path, size);
    const begin = block * blockBytes;
    const buffer = Buffer.allocUnsafeSlow(Math.min(blockBytes, size - begin));
    await readFully(file, buffer, begin, path);
    return buffer;
  } finally {
    await file.close();
  }
}
