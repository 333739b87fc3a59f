import { FormatError } from '../errors';
import { loadTokenizer, type Tokenizer } from '../io/tokenizer';

/** The tokenizer in a folder that is to go with a model. */
export async function tokenizerOf(
  call: string,
  folder: string | undefined,
  bytes: boolean,
  vocabSize: number,
): Promise<Tokenizer | undefined> {
  if (folder === undefined) return undefined;
  if (bytes)
    throw new TypeError(`${call}: tokenizer is given, expected none; the tokens of this model are bytes`);
  const tokenizer = await loadTokenizer(folder);
  if (!tokenizer)
    throw new FormatError(`${folder}/tokenizer.json: file does not exist, and tokenizer names its folder`);
  if (tokenizer.vocabSize > vocabSize)
    throw new RangeError(
      `${call}: tokenizer has ${tokenizer.vocabSize} tokens, expected at most vocab_size, which is ${vocabSize}`,
    );
  return tokenizer;
}
