import { FormatError } from '../errors';
import { kind, type JsonObject } from '../io/json';
import type { Family } from './family';
import { mamba, type MambaConfig } from './mamba';

const type = 'mambabyte';
const bytes = 256;

/** The paper's models by their parameters: layers and d_model; see docs/formats/mambabyte.md. */
export const mambaBytePresets = {
  'mambabyte-353m': { model_type: type, num_hidden_layers: 53, hidden_size: 1024 },
  'mambabyte-972m': { model_type: type, num_hidden_layers: 48, hidden_size: 1792 },
  'mambabyte-1.6b': { model_type: type, num_hidden_layers: 48, hidden_size: 2304 },
} as const satisfies Readonly<Record<string, JsonObject>>;

/** MambaByte (Wang et al. 2024, arXiv 2401.13660): Mamba over bytes, without a tokenizer. */
export const mambaByte: Family<MambaConfig> = {
  type,
  codec: 'bytes',
  config(json) {
    const config = mamba.config({ vocab_size: bytes, ...json, model_type: 'mamba' });
    if (config.vocabSize < bytes) {
      throw new FormatError(`config.json: vocab_size is ${config.vocabSize}, expected ${bytes} or more`);
    }
    return { ...config, modelType: type, json };
  },
  build: (config, weights, formats) => mamba.build(config, weights, formats),
};

/**
 * The configuration of a Mamba whose tokens are bytes, as the authors released theirs: the same model as a
 * MambaByte. `tokenizer` says whether its folder has one.
 * @throws FormatError for another family, and for a tokenizer's vocabulary.
 */
export function asMambaByte(json: JsonObject, tokenizer = false): JsonObject {
  if (json['model_type'] === type) return json;
  if (json['model_type'] !== 'mamba') {
    throw new FormatError(
      `config.json: model_type is ${kind(json['model_type'])}, expected "mamba" or "${type}" for a model of bytes`,
    );
  }
  const { vocabSize } = mamba.config(json);
  if (tokenizer && vocabSize !== bytes)
    throw new FormatError(
      `config.json: vocab_size is ${vocabSize}, expected ${bytes} for a model of bytes that has a tokenizer.json`,
    );
  const { architectures: _, ...rest } = withoutByteIds(json);
  return { ...rest, model_type: type };
}

/**
 * A configuration of words in use for bytes: what it says of padding and of a text's beginning and end was said
 * of tokens, and is left out where it would take a mere byte from the texts.
 */
export function withoutByteIds(json: JsonObject): JsonObject {
  const beyond = (id: unknown) => typeof id !== 'number' || id >= bytes;
  const kept = Object.entries(json).flatMap(([name, value]): [string, unknown][] => {
    if (!/^(bos|eos|pad)_token_id$/.test(name)) return [[name, value]];
    if (!Array.isArray(value)) return beyond(value) ? [[name, value]] : [];
    const left = value.filter(beyond);
    return left.length > 0 ? [[name, left]] : [];
  });
  return Object.fromEntries(kept);
}
