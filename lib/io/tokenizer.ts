import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { checkRecord, kindOf } from '../arguments';
import { FormatError } from '../errors';
import { checkUnicode, type Codec, type DecodeOptions, type EncodeOptions } from './codec';
import { DecodeStream } from './decode-stream';
import { isObject, kind, readJson, type JsonObject } from './json';

/** Vocabularies of 250,000 entries with their merges take about 20 MB. */
const MAX_TOKENIZER_BYTES = 256 * 1024 * 1024;

/** What is used of `@huggingface/tokenizers`, whose own types do not resolve from CommonJS. */
interface Engine {
  encode(text: string, options: { add_special_tokens: boolean }): { readonly ids: number[] };
  decode(ids: number[], options: { clean_up_tokenization_spaces: boolean }): string;
  token_to_id(token: string): number | undefined;
  id_to_token(id: number): string | undefined;
  get_vocab(): ReadonlyMap<string, number>;
  get_added_tokens_decoder(): ReadonlyMap<number, { readonly id: number; readonly special: boolean }>;
}

/** Required when it is first needed and not imported: a model without a tokenizer need not pay for it. */
function engine() {
  return require('@huggingface/tokenizers') as {
    Tokenizer: new (definition: object, config: object) => Engine;
  };
}

/** Text to token ids and back, as the `tokenizer.json` of a model folder says. */
export class Tokenizer implements Codec {
  readonly vocabSize: number;
  readonly bosId: number | undefined;
  readonly eosId: number | undefined;
  readonly padId: number | undefined;
  readonly specialIds: ReadonlySet<number>;
  readonly #engine: Engine;
  readonly #cleanUp: boolean;

  /** `config` is `tokenizer_config.json`; throws where the pieces are of no known kind. */
  constructor(definition: JsonObject, config: JsonObject) {
    checkRecord('Tokenizer', definition, 'definition');
    checkRecord('Tokenizer', config, 'config');
    const { Tokenizer: Engine } = engine();
    this.#engine = new Engine(definition, config);
    this.#cleanUp = config['clean_up_tokenization_spaces'] === true;
    this.vocabSize = [...this.#engine.get_vocab().values()].reduce((size, id) => Math.max(size, id + 1), 0);
    this.bosId = this.#idOf(config['bos_token']);
    this.eosId = this.#idOf(config['eos_token']);
    this.padId = this.#idOf(config['pad_token']);
    const added = [...this.#engine.get_added_tokens_decoder().values()];
    this.specialIds = new Set(added.filter((token) => token.special).map((token) => token.id));
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    if (typeof text !== 'string') throw new TypeError(`encode: text is ${kind(text)}, expected a string`);
    checkRecord('encode', options, 'options');
    checkUnicode('encode', text);
    return this.#engine.encode(text, { add_special_tokens: options.addSpecialTokens ?? true }).ids;
  }

  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    checkRecord('decode', options, 'options');
    if (typeof (ids as Partial<Iterable<number>> | undefined | null)?.[Symbol.iterator] !== 'function') {
      throw new TypeError(`decode: ids is ${kindOf(ids)}, expected token ids`);
    }
    const text = this.#decodeVisible(this.#visible(ids, options));
    return this.#cleanUp ? cleanUp(text) : text;
  }

  decodeStream(options: DecodeOptions = {}): DecodeStream {
    checkRecord('decodeStream', options, 'options');
    return new DecodeStream({
      isVisible: (id) => this.#visible([id], options).length > 0,
      decode: (ids) => this.#decodeVisible(ids),
      cleanUp: this.#cleanUp ? cleanUp : undefined,
    });
  }

  #visible(ids: Iterable<number>, { skipSpecialTokens = false }: DecodeOptions): number[] {
    const visible: number[] = [];
    for (const id of ids) {
      if (!Number.isSafeInteger(id) || id < 0)
        throw new RangeError(`decode: id is ${id}, expected a token id`);
      if (this.#engine.id_to_token(id) === undefined) continue;
      if (!skipSpecialTokens || !this.specialIds.has(id)) visible.push(id);
    }
    return visible;
  }

  #decodeVisible(ids: number[]): string {
    return ids.length === 0 ? '' : this.#engine.decode(ids, { clean_up_tokenization_spaces: false });
  }

  /** A token of the config is its text, or an object that holds it as `content`. */
  #idOf(token: unknown): number | undefined {
    const content = isObject(token) ? token['content'] : token;
    return typeof content === 'string' ? this.#engine.token_to_id(content) : undefined;
  }
}

/** The tokenizer of a model folder, undefined where it has no `tokenizer.json`. */
export async function loadTokenizer(folder: string): Promise<Tokenizer | undefined> {
  const path = join(folder, 'tokenizer.json');
  const definition = await readIfPresent(path);
  if (!definition) return undefined;
  if (!isObject(definition['model'])) {
    throw new FormatError(`${path}: model is ${kind(definition['model'])}, expected an object`);
  }
  const specialTokens = await readIfPresent(join(folder, 'special_tokens_map.json'));
  const config = await readIfPresent(join(folder, 'tokenizer_config.json'));
  try {
    return new Tokenizer(definition, { ...specialTokens, ...config });
  } catch (error) {
    throw new FormatError(`${path}: cannot be used as a tokenizer; ${(error as Error).message}`, {
      cause: error,
    });
  }
}

async function readIfPresent(path: string): Promise<JsonObject | undefined> {
  const stats = await stat(path).catch(() => undefined);
  return stats && readJson(path, { maxBytes: MAX_TOKENIZER_BYTES });
}

/** Takes out the spaces that word tokenizers leave before punctuation; models ask for it in their config. */
function cleanUp(text: string): string {
  const spaced = [' .', ' ?', ' !', ' ,', " ' ", " n't", " 'm", " 's", " 've", " 're"];
  return spaced.reduce((clean, piece) => clean.replaceAll(piece, piece.trim()), text);
}
