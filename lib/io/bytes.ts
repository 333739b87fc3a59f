import { checkRecord, kindOf } from '../arguments';
import { checkUnicode, type Codec, type DecodeOptions, type EncodeOptions, type TextStream } from './codec';
import { kind } from './json';

const byteCount = 256;

/** UTF-8, invalid bytes as U+FFFD (each maximal part of a character as one, as browsers do); no byte is dropped. */
const utf8 = () => new TextDecoder('utf-8', { ignoreBOM: true });

/**
 * The tokenizer of models without one: ids 0 to 255 are the bytes of UTF-8. Ids beyond, which a model may
 * have for padding or the end of a text, decode to nothing.
 */
export class ByteTokenizer implements Codec {
  readonly vocabSize: number = byteCount;
  readonly bosId = undefined;
  readonly eosId = undefined;
  readonly padId = undefined;
  readonly specialIds: ReadonlySet<number> = new Set();

  encode(text: string, options: EncodeOptions = {}): number[] {
    if (typeof text !== 'string') throw new TypeError(`encode: text is ${kind(text)}, expected a string`);
    checkRecord('encode', options, 'options');
    checkUnicode('encode', text);
    return Array.from(Buffer.from(text, 'utf8'));
  }

  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    checkRecord('decode', options, 'options');
    return utf8().decode(this.bytes(ids));
  }

  decodeStream(options: DecodeOptions = {}): TextStream {
    checkRecord('decodeStream', options, 'options');
    const decoder = utf8();
    return {
      push: (id) => decoder.decode(this.bytes([id]), { stream: true }),
      flush: () => decoder.decode(),
    };
  }

  /** The bytes that ids stand for, exactly. */
  bytes(ids: Iterable<number>): Uint8Array {
    if (typeof (ids as Partial<Iterable<number>> | undefined | null)?.[Symbol.iterator] !== 'function') {
      throw new TypeError(`decode: ids is ${kindOf(ids)}, expected token ids`);
    }
    const bytes: number[] = [];
    for (const id of ids) {
      if (!Number.isSafeInteger(id) || id < 0)
        throw new RangeError(`decode: id is ${id}, expected a token id`);
      if (id < byteCount) bytes.push(id);
    }
    return Uint8Array.from(bytes);
  }
}
