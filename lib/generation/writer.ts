import { ByteTokenizer } from '../io/bytes';
import type { Codec } from '../io/codec';
import { StopScanner } from './text';

/** What tokens add to a text, and to its bytes where tokens are bytes. */
export interface Written {
  readonly text: string;
  readonly bytes?: Uint8Array;
}

/** Turns one sequence's tokens into text: whole characters, and nothing of a stop string. */
export interface Writer {
  /** Whether a stop string has been found: the text ended before it. */
  readonly stopped: boolean;
  /** Whether it gives bytes too. */
  readonly bytes: boolean;
  push(token: number): Written;
  /** What was held back, once no more tokens come. */
  flush(): Written;
}

/** The writer for a model's tokens; `codec` undefined gives no text. @throws TypeError for stops that it cannot find. */
export function writerOf(codec: Codec | undefined, stops: readonly (string | Uint8Array)[]): Writer {
  if (codec instanceof ByteTokenizer) return new ByteWriter(codec, stops);
  const texts = stops.filter((stop) => typeof stop === 'string');
  if (!codec && stops.length > 0) throw new TypeError('generate: stop needs a tokenizer, the model has none');
  if (texts.length < stops.length)
    throw new TypeError('generate: stop holds bytes, which only a model of bytes has; expected strings');
  return new TextWriter(codec, texts);
}

class TextWriter implements Writer {
  readonly bytes = false;
  readonly #decode: ReturnType<Codec['decodeStream']> | undefined;
  readonly #scanner: StopScanner;

  constructor(codec: Codec | undefined, stops: readonly string[]) {
    this.#decode = codec?.decodeStream({ skipSpecialTokens: true });
    this.#scanner = new StopScanner(stops);
  }

  get stopped(): boolean {
    return this.#scanner.stopped;
  }

  push(token: number): Written {
    return { text: this.#scanner.push(this.#decode?.push(token) ?? '') };
  }

  flush(): Written {
    const text = this.#scanner.push(this.#decode?.flush() ?? '');
    return { text: text + this.#scanner.flush() };
  }
}

/** Looks for stop strings among the bytes, a character for each, so that bytes and text end in the same place. */
class ByteWriter implements Writer {
  readonly bytes = true;
  readonly #codec: ByteTokenizer;
  readonly #decode: ReturnType<Codec['decodeStream']>;
  readonly #scanner: StopScanner;

  constructor(codec: ByteTokenizer, stops: readonly (string | Uint8Array)[]) {
    this.#codec = codec;
    this.#decode = codec.decodeStream();
    this.#scanner = new StopScanner(stops.map((stop) => Buffer.from(stop as string).toString('latin1')));
  }

  get stopped(): boolean {
    return this.#scanner.stopped;
  }

  push(token: number): Written {
    const fresh = Buffer.from(this.#codec.bytes([token])).toString('latin1');
    const written = this.#write(this.#scanner.push(fresh));
    return this.stopped ? { ...written, text: written.text + this.#decode.flush() } : written;
  }

  flush(): Written {
    const written = this.#write(this.#scanner.flush());
    return { ...written, text: written.text + this.#decode.flush() };
  }

  #write(latin1: string): Written {
    const bytes = Uint8Array.from(Buffer.from(latin1, 'latin1'));
    return { bytes, text: [...bytes].map((byte) => this.#decode.push(byte)).join('') };
  }
}
