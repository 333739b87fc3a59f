import { ByteTokenizer } from '../io/bytes';
import type { Codec } from '../io/codec';
import { integerRows, type Dense, type Ids } from '../models/inputs';

/** Text (needs a tokenizer), token ids, or, for a model of bytes, bytes. */
export type Prompt = string | Ids;

/** What makes prompts tokens. */
export interface Encoding {
  readonly tokenizer: Codec | undefined;
  readonly vocabSize: number;
  /** The id that is padding in prompts of ids. */
  readonly pad: number | undefined;
}

/** The tokens of each prompt. @throws TypeError, RangeError that name the prompt. */
export async function encoded(
  prompts: Prompt | readonly Prompt[],
  { tokenizer, vocabSize, pad }: Encoding,
): Promise<Pick<Dense, 'sequences' | 'muted'>> {
  const isOne =
    typeof prompts === 'string' ||
    ArrayBuffer.isView(prompts) ||
    typeof (prompts as readonly unknown[])?.[0] === 'number';
  const list = isOne || (Array.isArray(prompts) && prompts.length === 0) ? [prompts as Prompt] : prompts;
  if (!Array.isArray(list))
    throw new TypeError(`generate: prompt is ${typeof prompts}, expected text or token ids`);
  const given = list as readonly Prompt[];
  const ids = given.map((prompt): Ids => {
    if (prompt instanceof Uint8Array && tokenizer && !(tokenizer instanceof ByteTokenizer))
      throw new TypeError(
        'generate: prompt is bytes, but the model has a tokenizer; expected text or token ids',
      );
    if (typeof prompt !== 'string') return prompt;
    if (!tokenizer)
      throw new TypeError('generate: prompt is text, but the model has no tokenizer; expected token ids');
    return tokenizer.encode(prompt);
  });
  const rows = await integerRows('generate', 'prompt', ids, 0, vocabSize - 1);
  // A text, or bytes, may hold the id of padding and mean it.
  const padded = rows.map((row, i) => {
    const prompt = given[i];
    const isContent = typeof prompt === 'string' || (prompt instanceof Uint8Array && tokenizer !== undefined);
    const name = rows.length > 1 ? `prompt ${i}` : 'prompt';
    return isContent || pad === undefined ? { row, muted: undefined } : withoutPadding(name, row, pad);
  });
  return { sequences: padded.map(({ row }) => row), muted: padded.map(({ muted }) => muted) };
}

/**
 * Takes padding off the front of ids; further on it is muted, which is what transformers' `generate` does
 * with it. At the end it is refused: the text would go on from the padding, whatever the prompt.
 */
function withoutPadding(
  name: string,
  ids: Int32Array,
  pad: number,
): { readonly row: Int32Array; readonly muted: Int32Array | undefined } {
  const refuse = (what: string, wanted: string): never => {
    throw new RangeError(
      `generate: ${name} ${what} padding (${pad}), expected ${wanted}; with padTokenId null it is a token`,
    );
  };
  const first = ids.findIndex((id) => id !== pad);
  if (first < 0 && ids.length > 0) refuse('is nothing but', 'at least one token');
  if (ids.at(-1) === pad) refuse('ends with', 'padding on the left only');
  const row = first < 0 ? ids : ids.subarray(first);
  return { row, muted: row.includes(pad) ? row.map((id) => (id === pad ? 1 : 0)) : undefined };
}
