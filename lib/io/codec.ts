export interface EncodeOptions {
  /** Adds what a text begins or ends with, such as a begin-of-text token; default true. */
  readonly addSpecialTokens?: boolean;
}

export interface DecodeOptions {
  /** Leaves out tokens such as `<|endoftext|>`; default false. */
  readonly skipSpecialTokens?: boolean;
}

/** Decodes tokens as they come, and never gives out a part of a character. */
export interface TextStream {
  /** The text that this token settles; '' while a character is incomplete. */
  push(id: number): string;
  /** The rest: bytes that never became a character come out as U+FFFD. The stream can then start anew. */
  flush(): string;
}

/** Text to token ids and back: a `Tokenizer`, or the bytes themselves. */
export interface Codec {
  /** Every id is below this; a model's own vocabulary may be padded beyond it. */
  readonly vocabSize: number;
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  readonly padId: number | undefined;
  readonly specialIds: ReadonlySet<number>;
  /** @throws RangeError for text that is not well-formed Unicode. */
  encode(text: string, options?: EncodeOptions): number[];
  /** Ids without a token decode to nothing; bytes that are no UTF-8 decode to U+FFFD. */
  decode(ids: Iterable<number>, options?: DecodeOptions): string;
  /** What the stream gives, joined, is what `decode` gives for all tokens. */
  decodeStream(options?: DecodeOptions): TextStream;
}

/** Throws RangeError for text with half of a surrogate pair, which no encoding has bytes for. */
export function checkUnicode(call: string, text: string): void {
  const lone = text.search(/\p{Surrogate}/u);
  if (lone < 0) return;
  const code = text.charCodeAt(lone).toString(16).toUpperCase();
  throw new RangeError(
    `${call}: text has a lone surrogate U+${code} at ${lone}, expected well-formed Unicode`,
  );
}
