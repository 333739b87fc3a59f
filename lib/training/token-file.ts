import { createReadStream } from 'node:fs';
import { kindOf } from '../arguments';
import { FormatError } from '../errors';
import { tokensOf } from '../evaluation/tokens';
import { writeAtomically, writeFully } from '../io/atomic';
import type { Codec } from '../io/codec';
import { checkPaths, type TokenFormat } from './corpus';

export interface WrittenTokens {
  /** In the file, separators among them. */
  readonly tokens: number;
  /** What `Corpus.open` needs to read it. */
  readonly options: { readonly tokens: TokenFormat; readonly separator?: number };
}

/** How a codec's tokens are written: as u16, or as i32 where the vocabulary is larger. */
export const tokenFileOptions = ({ vocabSize, eosId }: Codec): WrittenTokens['options'] => ({
  tokens: vocabSize > 1 << 16 ? 'i32' : 'u16',
  ...(eosId !== undefined && { separator: eosId }),
});

/**
 * Writes the tokens of text files into one file that `Corpus.open` reads by position: as u16, or as i32
 * where the vocabulary is larger. Each text ends with the codec's end-of-text token, if it has one. Texts
 * are read, tokenized and written as they come, so that they may be larger than memory.
 * @throws FormatError for a file that is missing, empty or no UTF-8; then nothing is written.
 */
export async function writeTokens(
  path: string,
  codec: Codec,
  files: readonly string[],
): Promise<WrittenTokens> {
  if (typeof path !== 'string') throw new TypeError(`writeTokens: path is ${kindOf(path)}, expected a path`);
  if (typeof (codec as Codec | null | undefined)?.encode !== 'function')
    throw new TypeError(`writeTokens: codec is ${kindOf(codec)}, expected a tokenizer`);
  checkPaths('writeTokens', files);
  const options = tokenFileOptions(codec);
  const Ids = options.tokens === 'i32' ? Int32Array : Uint16Array;
  let tokens = 0;
  await writeAtomically(path, async (out) => {
    const write = async (ids: ArrayLike<number>) => {
      const values = Ids.from(ids);
      await writeFully(out, new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
      tokens += ids.length;
    };
    for (const file of files) {
      const before = tokens;
      for await (const { ids } of textOf(file, codec)) await write(ids);
      if (tokens === before) throw new FormatError(`${file}: file is empty, expected text`);
      if (options.separator !== undefined) await write([options.separator]);
    }
  });
  return { tokens, options };
}

/** Errors get the file's name. */
async function* textOf(file: string, codec: Codec): ReturnType<typeof tokensOf> {
  try {
    yield* tokensOf(codec, createReadStream(file, { highWaterMark: 1 << 20 }));
  } catch (error) {
    const { message, code } = error as NodeJS.ErrnoException;
    const reason = code === 'ENOENT' ? 'file does not exist' : message.replace(/^evaluate: /, '');
    throw new FormatError(`${file}: ${reason}`, { cause: error });
  }
}
