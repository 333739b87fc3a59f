import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { JsonObject } from '../io/json';
import type { Codec } from '../io/codec';
import { preset, presets } from '../models/presets';
import { UsageError } from './exit';
import { readAsked, type Settings } from './train-settings';

const initializerRange = 0.02; // the original code's; transformers' default is five times as large

/** A vocabulary that tensor cores like: filled up to a multiple of 8, as the original checkpoints' are. */
const vocabularyOf = (tokenizer: Codec | undefined) =>
  tokenizer ? Math.ceil(tokenizer.vocabSize / 8) * 8 : 256;

/** The config.json of a fresh model, as `settings` say. */
export async function modelOf(settings: Settings, tokenizer: Codec | undefined): Promise<JsonObject> {
  const vocabSize = vocabularyOf(tokenizer);
  const ids = {
    ...(tokenizer?.bosId !== undefined && { bos_token_id: tokenizer.bosId }),
    ...(tokenizer?.eosId !== undefined && { eos_token_id: tokenizer.eosId }),
    ...(tokenizer?.padId !== undefined && { pad_token_id: tokenizer.padId }),
  };
  const given = await givenModel(settings.model);
  // What a model says of its tokens counts; where it says nothing it follows the data.
  if (given) {
    const missing = Object.entries({ vocab_size: vocabSize, ...ids }).filter(([name]) => !(name in given));
    return { ...given, ...Object.fromEntries(missing) };
  }
  return { ...familyModel(settings, tokenizer !== undefined), vocab_size: vocabSize, ...ids };
}

async function givenModel(model: Settings['model']): Promise<JsonObject | undefined> {
  if (typeof model !== 'string') return model;
  if (Object.hasOwn(presets, model))
    return { ...preset(model as keyof typeof presets), initializer_range: initializerRange };
  const stats = await stat(model).catch(() => undefined);
  if (!stats) {
    const known = Object.keys(presets).join(', ');
    throw new UsageError(`--model is ${model}, expected a config.json, or one of ${known}`);
  }
  return readAsked(stats.isDirectory() ? join(model, 'config.json') : model);
}

function familyModel(settings: Settings, hasTokenizer: boolean): JsonObject {
  const {
    family = hasTokenizer ? 'mamba' : 'mambabyte',
    layers = 4,
    width = 256,
    stateSize,
    experts = 8,
  } = settings;
  const state = stateSize === undefined ? {} : { state_size: stateSize };
  const common = {
    hidden_size: width,
    num_hidden_layers: layers,
    ...state,
    initializer_range: initializerRange,
  };
  switch (family) {
    case 'moe-mamba':
      return { model_type: 'moe_mamba', ...common, num_experts: experts };
    case 'blackmamba':
      if (!(experts >= 2 && experts <= 9))
        throw new UsageError(`--experts is ${experts}, expected 2 to 9; a BlackMamba has a digit for them`);
      return {
        hidden_size: width,
        num_layers: layers,
        state_size: stateSize ?? 16,
        conv_dimension: 4,
        expansion_factor: 2,
        mamba_moe_layers: Array.from({ length: layers }, (_, i) => (i % 2 === 0 ? 'r' : String(experts))),
        ffn_hidden_size: 4 * width,
        add_bias_linear: false,
        swiglu: true,
      };
    default:
      return { model_type: family, ...common };
  }
}
