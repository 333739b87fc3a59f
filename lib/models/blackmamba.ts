import type { JsonObject } from '../io/json';
import * as init from '../nn/init';
import { FeedForward, type ExpertSizes } from '../nn/experts';
import { MambaMixer, type MixerConfig } from '../nn/mamba';
import { MoE } from '../nn/moe';
import type { Weights } from '../nn/weights';
import type { CommonConfig, Family, ModelDTypes } from './family';
import { Fields } from './fields';
import { MixtureBackbone, type MixtureLayer } from './mixture';

/** Zyphra's `MambaConfig`, as far as its config.json says it. */
export interface BlackMambaConfig extends CommonConfig {
  readonly mixer: MixerConfig;
  readonly network: ExpertSizes;
  /** For each layer `r`, a Mamba mixer; `1`, a dense network; `2` to `9`, so many experts; or `r` and one of them. */
  readonly layers: readonly string[];
}

const initializerRange = 0.02;

function config(json: JsonObject): BlackMambaConfig {
  const fields = new Fields(json);
  const hiddenSize = fields.whole('hidden_size');
  const numLayers = fields.layers('num_layers');
  const dInner = fields.whole('expansion_factor', 2) * hiddenSize;
  const bias = fields.flag('add_bias_linear', true);
  const wanted = `${numLayers} of "r", "1" to "9", or "r1" to "r9"`;
  const listed = fields.strings('mamba_moe_layers', (item) => /^(r|r?[1-9])$/.test(item), wanted);
  // The released code takes an empty list for a model without networks.
  const layers = listed.length > 0 ? listed : Array<string>(numLayers).fill('r');
  if (layers.length !== numLayers) fields.refuse('mamba_moe_layers', wanted);
  const gated = fields.flag('swiglu', false);
  const gate = fields.choice('expert_activation', ['gelu', 'silu']);
  const network: ExpertSizes = {
    dModel: hiddenSize,
    dExpert: fields.whole('ffn_hidden_size', 4 * hiddenSize),
    activation: gated ? (gate === 'gelu' ? 'geglu' : 'swiglu') : gate,
    bias,
  };
  const mixer: MixerConfig = {
    dModel: hiddenSize,
    dInner,
    dState: fields.whole('state_size'),
    dConv: fields.whole('conv_dimension'),
    dtRank: Math.ceil(hiddenSize / 16),
    bias,
    convBias: true,
    dtMin: 0.001,
    dtMax: 0.1,
    dtFloor: 1e-4,
    dtScale: 1,
    dtInit: 'random',
    initializerRange,
  };
  const vocabSize = fields.whole('vocab_size');
  const eosTokenId = fields.ids('eos_token_id', vocabSize);
  const padTokenId = fields.id('pad_token_id', vocabSize);
  fields.whole('max_sequence_length', 1); // of the training: there are no positions
  fields.end();
  return {
    modelType: 'blackmamba',
    vocabSize,
    hiddenSize,
    numLayers,
    eosTokenId,
    padTokenId,
    json,
    mixer,
    network,
    layers,
  };
}

const names = { experts: 'local_experts', up: 'linear_fc1', down: 'linear_fc2' } as const;

function build(
  { hiddenSize, vocabSize, layers, mixer, network }: BlackMambaConfig,
  weights: Weights,
  dtypes: ModelDTypes,
): MixtureBackbone {
  const norm = (w: Weights) => w.get('weight', [hiddenSize], init.ones);
  const networkOf = (w: Weights, experts: number) =>
    experts === 1
      ? new FeedForward(w, network, names)
      : new MoE(w, {
          ...network,
          experts,
          topK: 1,
          router: 'sinkhorn',
          routerBias: true,
          normalize: false,
          capacityFactor: undefined,
          jitter: 0,
          classicalSinkhorn: false,
          names,
        });
  const layerOf = (kind: string, i: number): MixtureLayer => {
    const w = weights.at('decoder').at('layers').at(i);
    const experts = Number(kind.replace('r', ''));
    if (!kind.startsWith('r'))
      return { norm: norm(w.at('norm')), network: networkOf(w.at('mixer'), experts) };
    const layer = { norm: norm(w.at('norm')), mixer: new MambaMixer(w.at('mixer'), mixer) };
    if (experts === 0) return layer;
    return { ...layer, network: networkOf(w.at('moe'), experts), networkNorm: norm(w.at('norm_moe')) };
  };
  const embeddings = weights
    .at('embedding.word_embeddings')
    .matrix('weight', [vocabSize, hiddenSize], init.normal(initializerRange));
  const final = weights.at('decoder').at('final_layernorm');
  const parts = {
    embeddings,
    layers: layers.map(layerOf),
    finalNorm: { weight: norm(final), bias: final.get('bias', [hiddenSize], init.zeros) },
    head: {
      weight: embeddings,
      ...(network.bias && { bias: weights.at('output_layer').get('bias', [vocabSize], init.zeros) }),
    },
    eps: 1e-5,
  };
  weights.checkAllUsed(['output_layer.weight']); // the released code overwrites it with the embeddings
  return new MixtureBackbone(parts, mixer, dtypes);
}

/** BlackMamba (Anthony et al. 2024) as Zyphra's folders have it. */
export const blackmamba: Family<BlackMambaConfig> = {
  type: 'blackmamba',
  recognises: (json) => 'mamba_moe_layers' in json,
  config,
  build,
};
