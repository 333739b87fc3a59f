import { FormatError } from '../errors';
import { ByteTokenizer } from '../io/bytes';
import type { Codec } from '../io/codec';

/** What is read, tokenized and counted at once. */
export const pieceBytes = 1 << 20;

/** Tokens of a text, and how many bytes they come from. */
export interface TokenPiece {
  readonly ids: Int32Array;
  readonly bytes: number;
}

/**
 * The tokens of a text as it comes, a piece at a time, so that memory does not grow with the file. A
 * tokenizer is given pieces of `most` bytes that end before white space, where tokenizers cut anyway.
 * @throws FormatError that names the byte, where text that must be tokenized is no UTF-8.
 */
export async function* tokensOf(
  codec: Codec,
  chunks: AsyncIterable<Uint8Array>,
  most = pieceBytes,
): AsyncGenerator<TokenPiece, void, undefined> {
  if (codec instanceof ByteTokenizer) {
    for await (const chunk of chunks) yield { ids: Int32Array.from(chunk), bytes: chunk.length };
    return;
  }
  const piece = (text: string): TokenPiece => ({
    ids: Int32Array.from(codec.encode(text, { addSpecialTokens: false })),
    bytes: Buffer.byteLength(text),
  });
  let text = '';
  for await (const more of decoded(chunks)) {
    text += more;
    for (let end: number; text.length > most && (end = cutBefore(text, most)) > 0; text = text.slice(end))
      yield piece(text.slice(0, end));
  }
  if (text !== '') yield piece(text);
}

/** The last place up to `most` where white space follows something else; without any, the last whole character. */
function cutBefore(text: string, most: number): number {
  for (let at = most; at > 0; at--) if (/^\S\s$/.test(text.slice(at - 1, at + 1))) return at;
  return /[\uDC00-\uDFFF]/.test(text[most]!) ? most - 1 : most;
}

/** @throws FormatError that names the byte where a text is no UTF-8. */
export async function checkUtf8(chunks: AsyncIterable<Uint8Array>, signal?: AbortSignal): Promise<void> {
  for await (const _ of decoded(chunks)) signal?.throwIfAborted();
}

async function* decoded(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<string, void, undefined> {
  const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  let before = 0; // bytes of earlier chunks
  const decode = (chunk: Uint8Array, stream: boolean) => {
    try {
      return decoder.decode(chunk, { stream });
    } catch (error) {
      const end = before + chunk.length;
      throw new FormatError(
        `evaluate: text is not valid UTF-8 between bytes ${Math.max(0, before - 3)} and ${end}; a tokenizer needs text`,
        { cause: error },
      );
    }
  };
  for await (const chunk of chunks) {
    yield decode(chunk, true);
    before += chunk.length;
  }
  yield decode(new Uint8Array(), false);
}
