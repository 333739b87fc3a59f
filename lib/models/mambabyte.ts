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

/** The configuration of a Mamba whose tokens are bytes, as the authors released theirs: the same model as a MambaByte. */
export function asMambaByte(json: JsonObject): JsonObject {
  if (json['model_type'] === type) return json;
  if (json['model_type'] !== 'mamba') {
    throw new FormatError(
      `config.json: model_type is ${kind(json['model_type'])}, expected "mamba" or "${type}" for a model of bytes`,
    );
  }
  const { architectures: _, ...rest } = json;
  return { ...rest, model_type: type };
}
