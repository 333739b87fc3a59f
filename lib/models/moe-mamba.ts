import type { JsonObject } from '../io/json';
import * as init from '../nn/init';
import { Linear } from '../nn/linear';
import { MambaMixer, type MixerConfig } from '../nn/mamba';
import { MoE, type MoEConfig } from '../nn/moe';
import type { Weights } from '../nn/weights';
import type { CommonConfig, Family, ModelDTypes } from './family';
import { Fields } from './fields';
import { MixtureBackbone } from './mixture';

/** See docs/formats/moe-mamba.md. */
export interface MoEMambaConfig extends CommonConfig {
  readonly mixer: MixerConfig;
  readonly moe: MoEConfig;
  readonly layerNormEpsilon: number;
  readonly tieWordEmbeddings: boolean;
  /** α of the balancing loss, and the z-loss's factor. */
  readonly routerAuxLossCoef: number;
  readonly routerZLossCoef: number;
}

/** The paper's models by their active parameters without embeddings; 542M and 2,439M in all. */
export const moeMambaPresets = {
  '25M': { model_type: 'moe_mamba', hidden_size: 512, num_hidden_layers: 16, num_experts: 42 },
  '100M': { model_type: 'moe_mamba', hidden_size: 768, num_hidden_layers: 32, num_experts: 42 },
} as const satisfies Readonly<Record<string, JsonObject>>;

function config(json: JsonObject): MoEMambaConfig {
  const fields = new Fields(json);
  fields.choice('model_type', ['moe_mamba']);
  const hiddenSize = fields.whole('hidden_size', 512);
  const initializerRange = fields.spread('initializer_range', 0.1);
  const vocabSize = fields.whole('vocab_size', 50257);
  const [dtMin, dtMax] = fields.bounds('time_step_min', 0.001, 'time_step_max', 0.1);
  const mixer: MixerConfig = {
    dModel: hiddenSize,
    dInner: fields.whole('expand', 2) * hiddenSize,
    dState: fields.whole('state_size', 16),
    dConv: fields.whole('conv_kernel', 4),
    dtRank: fields.whole('time_step_rank', Math.ceil(hiddenSize / 16)),
    bias: fields.flag('use_bias', false),
    convBias: fields.flag('use_conv_bias', true),
    dtMin,
    dtMax,
    dtFloor: fields.positive('time_step_floor', 1e-4),
    dtScale: 1,
    dtInit: 'random',
    initializerRange,
  };
  const numLayers = fields.layers('num_hidden_layers', 16);
  const experts = fields.experts('num_experts', 42, numLayers);
  const topK = fields.whole('num_experts_per_tok', 1);
  if (topK > experts) fields.refuse('num_experts_per_tok', `at most num_experts, which is ${experts}`);
  const jitter = fields.positive('router_jitter', 0, true);
  if (jitter >= 1) fields.refuse('router_jitter', 'a number from 0, below 1');
  const capacityFactor = fields.positive('capacity_factor', 1);
  // As many times the fair share as there are experts is room for every token.
  if (capacityFactor > Math.max(experts, 1000))
    fields.refuse('capacity_factor', 'at most num_experts or 1000');
  const moe: MoEConfig = {
    dModel: hiddenSize,
    dExpert: fields.whole('expert_size', 3 * hiddenSize),
    experts,
    topK,
    router: fields.choice('router', ['softmax', 'sigmoid', 'sinkhorn']),
    routerBias: fields.flag('router_bias', false),
    normalize: fields.flag('norm_topk_prob', false),
    capacityFactor,
    jitter,
    classicalSinkhorn: fields.flag('classical_sinkhorn', false),
    activation: fields.choice('expert_activation', ['relu', 'gelu', 'silu', 'swiglu', 'geglu']),
    bias: fields.flag('expert_bias', false),
    names: { experts: 'experts', up: 'up_proj', down: 'down_proj' },
  };
  const read = {
    modelType: 'moe_mamba',
    vocabSize,
    hiddenSize,
    numLayers,
    eosTokenId: fields.ids('eos_token_id', vocabSize),
    padTokenId: fields.id('pad_token_id', vocabSize),
    json,
    mixer,
    moe,
    layerNormEpsilon: fields.epsilon('layer_norm_epsilon', 1e-5),
    tieWordEmbeddings: fields.flag('tie_word_embeddings', false),
    routerAuxLossCoef: fields.positive('router_aux_loss_coef', 0.01, true),
    routerZLossCoef: fields.positive('router_z_loss_coef', 0, true),
  };
  fields.end();
  return read;
}

function build(config: MoEMambaConfig, weights: Weights, dtypes: ModelDTypes): MixtureBackbone {
  const { hiddenSize, vocabSize, numLayers, mixer, moe, tieWordEmbeddings } = config;
  const backbone = weights.at('backbone');
  const norm = (w: Weights) => w.get('weight', [hiddenSize], init.ones);
  const embeddings = backbone
    .at('embeddings')
    .matrix('weight', [vocabSize, hiddenSize], init.normal(mixer.initializerRange));
  const layers = Array.from({ length: numLayers }, (_, i) => {
    const w = backbone.at('layers').at(i);
    return i % 2 === 0
      ? { norm: norm(w.at('norm')), mixer: new MambaMixer(w.at('mixer'), mixer) }
      : { norm: norm(w.at('norm')), network: new MoE(w.at('moe'), moe) };
  });
  const finalNorm = { weight: norm(backbone.at('norm_f')) };
  const head = tieWordEmbeddings
    ? { weight: embeddings }
    : new Linear(weights.at('lm_head'), hiddenSize, vocabSize, { bias: false });
  weights.checkAllUsed(tieWordEmbeddings ? ['lm_head.weight'] : []);
  const { layerNormEpsilon: eps, routerAuxLossCoef: balance, routerZLossCoef: z } = config;
  const parts = { embeddings, layers, finalNorm, head, eps, balance, z };
  return new MixtureBackbone(parts, mixer, dtypes);
}

/** MoE-Mamba (Pióro et al. 2024): Mamba and Switch layers in turn, each with its norm and residual. */
export const moeMamba: Family<MoEMambaConfig> = { type: 'moe_mamba', config, build };
