/** How the stream turns tokens into text: the three parts of a tokenizer's `decode`. */
export interface StreamDecoder {
  isVisible(id: number): boolean;
  decode(ids: number[]): string;
  readonly cleanUp: ((text: string) => string) | undefined;
}

/**
 * Tokens that are kept as context for those that follow. Each carries a byte at least, and after 3 bytes a UTF-8
 * decoder is in the same state wherever it started, so that 4 would do; leading-space rules look back by one.
 */
const CONTEXT = 6;

/**
 * Decodes a sequence token by token, never giving out a part of a character. It decodes a short window and gives
 * what is new at its end, so that a token costs the same however long the text is.
 */
export class DecodeStream {
  readonly #decoder: StreamDecoder;
  #window: number[] = [];
  #given = 0; // characters of the window's text that were given out
  #untidy = ''; // settled text that a clean-up may still change

  constructor(decoder: StreamDecoder) {
    this.#decoder = decoder;
  }

  /** The text that this token settles; '' while a character is incomplete. */
  push(id: number): string {
    if (!this.#decoder.isVisible(id)) return '';
    if (this.#window.length >= 2 * CONTEXT) this.#slide();
    this.#window.push(id);
    const text = settled(this.#decoder.decode(this.#window));
    return this.#tidy(this.#take(text), false);
  }

  /** The rest: bytes that never became a character come out as U+FFFD. The stream can then start anew. */
  flush(): string {
    const rest = this.#tidy(this.#take(this.#decoder.decode(this.#window)), true);
    this.#window = [];
    this.#given = 0;
    return rest;
  }

  #take(text: string): string {
    const fresh = text.slice(this.#given);
    this.#given = Math.max(this.#given, text.length);
    return fresh;
  }

  #slide(): void {
    this.#window = this.#window.slice(-CONTEXT);
    this.#given = settled(this.#decoder.decode(this.#window)).length;
  }

  #tidy(fresh: string, last: boolean): string {
    const { cleanUp } = this.#decoder;
    if (!cleanUp) return fresh;
    const text = this.#untidy + fresh;
    const cut = last ? text.length : tidyLength(text);
    this.#untidy = text.slice(cut);
    return cleanUp(text.slice(0, cut));
  }
}

/** An incomplete character decodes to one U+FFFD, and only at the very end; everything before it is settled. */
function settled(text: string): string {
  return text.endsWith('\uFFFD') ? text.slice(0, -1) : text;
}

/**
 * How much of the text no clean-up of later text can reach. What is cleaned up starts with a space, has at most
 * four characters and none but these; so nothing reaches across another character, or across three without a space.
 */
function tidyLength(text: string): number {
  for (let end = text.length; end > 0; end--) {
    if (!/[ .?!,'ntmsver]/.test(text[end - 1]!)) return end;
    if (end >= 3 && !text.slice(end - 3, end).includes(' ')) return end;
  }
  return 0;
}
