import { FormatError } from '../errors';
import { isObject, kind, type JsonObject } from '../io/json';
import type { Family } from './family';
import { Fields } from './fields';
import { mamba, type MambaConfig } from './mamba';

/** The original config.json, `MambaConfig` of mamba_ssm, in transformers' words. */
function translated(json: JsonObject): JsonObject {
  const fields = new Fields(json);
  const dModel = fields.whole('d_model', 2560);
  const multiple = fields.whole('pad_vocab_size_multiple', 8);
  refuseUnless(json, 'd_intermediate', 0, 'layers with an MLP are not supported');
  refuseUnless(json, 'attn_layer_idx', [], 'layers of attention are not supported');
  refuseUnless(json, 'rms_norm', true, 'layers with LayerNorm are not supported');
  const ssm = json['ssm_cfg'] ?? {};
  if (!isObject(ssm)) throw new FormatError(`config.json: ssm_cfg is ${kind(ssm)}, expected an object`);
  refuseUnless(ssm, 'layer', 'Mamba1', 'only the first Mamba is supported', 'ssm_cfg.');
  fields.ignore('d_intermediate', 'attn_layer_idx', 'rms_norm', 'ssm_cfg');
  fields.object('attn_cfg');
  fields.flag('fused_add_norm', true);
  const result = {
    architectures: ['MambaForCausalLM'],
    model_type: 'mamba',
    // The embedding has a row for each token and then some, as the original pads it.
    vocab_size: Math.ceil(fields.whole('vocab_size', 50277) / multiple) * multiple,
    hidden_size: dModel,
    num_hidden_layers: fields.layers('n_layer', 64),
    layer_norm_epsilon: 1e-5,
    hidden_act: 'silu',
    residual_in_fp32: fields.flag('residual_in_fp32', true),
    tie_word_embeddings: fields.flag('tie_embeddings', true),
    ...mixer(ssm, dModel),
  };
  fields.end();
  return result;
}

/** `ssm_cfg`: what the mixer's constructor is given, by its names and with its defaults. */
function mixer(ssm: JsonObject, dModel: number): JsonObject {
  const fields = new Fields(ssm, 'config.json: ssm_cfg');
  fields.ignore('layer');
  fields.flag('use_fast_path', true);
  const { dt_rank: rank = 'auto' } = ssm;
  if (rank === 'auto') fields.ignore('dt_rank');
  const [dtMin, dtMax] = fields.bounds('dt_min', 0.001, 'dt_max', 0.1);
  const result = {
    state_size: fields.whole('d_state', 16),
    conv_kernel: fields.whole('d_conv', 4),
    expand: fields.positive('expand', 2),
    time_step_rank: rank === 'auto' ? Math.ceil(dModel / 16) : fields.whole('dt_rank'),
    time_step_min: dtMin,
    time_step_max: dtMax,
    time_step_init_scheme: fields.choice('dt_init', ['random', 'constant']),
    time_step_scale: fields.spread('dt_scale', 1),
    time_step_floor: fields.positive('dt_init_floor', 1e-4),
    use_conv_bias: fields.flag('conv_bias', true),
    use_bias: fields.flag('bias', false),
  };
  fields.end();
  return result;
}

function refuseUnless(json: JsonObject, name: string, wanted: unknown, reason: string, prefix = ''): void {
  const value = json[name] ?? wanted;
  const [got, expected] = [value, wanted].map((value) => JSON.stringify(value)) as [string, string];
  if (got === expected) return;
  const shown = got.length > 60 ? kind(value) : got;
  throw new FormatError(`config.json: ${prefix}${name} is ${shown}, expected ${expected}; ${reason}`);
}

/**
 * The original checkpoints of state-spaces, mamba_ssm's `save_pretrained`: config.json without `model_type`,
 * with `d_model` and `n_layer`. From here on they are transformers' Mamba, and saved as such.
 */
export const stateSpaces: Family<MambaConfig> = {
  type: 'state-spaces',
  recognises: (json) => 'd_model' in json && 'n_layer' in json,
  rename: (name) => name.replace(/^backbone\.embedding\./, 'backbone.embeddings.'),
  config: (json) => mamba.config(translated(json)),
  build: (config, weights, dtypes) => mamba.build(config, weights, dtypes),
};
