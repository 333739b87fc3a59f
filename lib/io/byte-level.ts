import { join } from 'node:path';
import { makeFolder } from './folder';
import { writeAtomically, writeFully } from './atomic';

/** The printable characters that stand for the 256 bytes in byte-level vocabularies (Radford et al. 2019). */
function byteCharacters(): string[] {
  const plain = (byte: number) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(plain(byte) ? byte : next++));
}

/** A `tokenizer.json` whose tokens are the bytes of UTF-8, with their values as ids. */
export function byteLevelTokenizer(): object {
  const level = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: [],
    normalizer: null,
    pre_tokenizer: level,
    post_processor: null,
    decoder: level,
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries(byteCharacters().map((character, byte) => [character, byte])),
      merges: [],
    },
  };
}

/** Writes it into `folder`, with what transformers wants beside it: for models of bytes that do not say so themselves. */
export async function writeByteLevelTokenizer(folder: string): Promise<void> {
  await makeFolder(folder);
  const config = { tokenizer_class: 'PreTrainedTokenizerFast', clean_up_tokenization_spaces: false };
  for (const [name, json] of [
    ['tokenizer.json', byteLevelTokenizer()],
    ['tokenizer_config.json', config],
  ] as const)
    await writeAtomically(join(folder, name), (file) =>
      writeFully(file, Buffer.from(`${JSON.stringify(json, undefined, 1)}\n`)),
    );
}
