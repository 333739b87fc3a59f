import { isRecording } from '../autograd/tape';
import type { JsonObject } from '../io/json';
import * as init from '../nn/init';
import { Linear } from '../nn/linear';
import { MambaMixer, type Batch, type MixerConfig } from '../nn/mamba';
import { normed, normedProduct, type Entering } from '../nn/normed';
import type { Weights } from '../nn/weights';
import { embedding } from '../ops/matmul';
import { scope, type DType, type Tensor } from '../tensor';
import type { Backbone, CommonConfig, Family, ModelDTypes, StatePart } from './family';
import { Fields } from './fields';

/** Hugging Face's `MambaConfig`. */
export interface MambaConfig extends CommonConfig {
  readonly mixer: MixerConfig;
  readonly layerNormEpsilon: number;
  readonly tieWordEmbeddings: boolean;
}

function config(json: JsonObject): MambaConfig {
  const fields = new Fields(json);
  fields.choice('model_type', ['mamba']);
  const hiddenSize = fields.whole('hidden_size', 768);
  const expand = fields.positive('expand', 2);
  const dInner = Math.trunc(expand * hiddenSize);
  if (dInner < 1 || dInner > 2 ** 31 - 1)
    fields.refuse(
      'expand',
      `${1 / hiddenSize} to ${(2 ** 31 - 1) / hiddenSize} for hidden_size ${hiddenSize}`,
    );
  const dState = fields.whole('state_size', 16);
  const numLayers = fields.layers('num_hidden_layers', 32);
  const vocabSize = fields.whole('vocab_size', 50280);
  const automatic = json['time_step_rank'] === undefined || json['time_step_rank'] === 'auto';
  fields.ignore(...(automatic ? ['time_step_rank'] : []));
  const [dtMin, dtMax] = fields.bounds('time_step_min', 0.001, 'time_step_max', 0.1);
  const mixer: MixerConfig = {
    dModel: hiddenSize,
    dInner,
    dState,
    dConv: fields.whole('conv_kernel', 4),
    dtRank: automatic ? Math.ceil(hiddenSize / 16) : fields.whole('time_step_rank'),
    bias: fields.flag('use_bias', false),
    convBias: fields.flag('use_conv_bias', true),
    dtMin,
    dtMax,
    dtFloor: fields.positive('time_step_floor', 1e-4),
    dtScale: fields.spread('time_step_scale', 1),
    dtInit: fields.choice('time_step_init_scheme', ['random', 'constant']),
    initializerRange: fields.spread('initializer_range', 0.1),
  };
  const layerNormEpsilon = fields.epsilon('layer_norm_epsilon', 1e-5);
  const tieWordEmbeddings = fields.flag('tie_word_embeddings', true);
  const eosTokenId = fields.ids('eos_token_id', vocabSize);
  const padTokenId = fields.id('pad_token_id', vocabSize);
  fields.choice('hidden_act', ['silu', 'swish']);
  // The residual is always kept in f32, which is what true asks for; false only allows less.
  fields.flag('residual_in_fp32', true);
  fields.flag('rescale_prenorm_residual', false);
  // What the first converted checkpoints say a second time, in the original names.
  fields.same('intermediate_size', dInner);
  fields.same('d_inner', dInner);
  fields.same('d_model', hiddenSize);
  fields.same('n_layer', numLayers);
  fields.same('rms_norm', true);
  fields.same('ssm_cfg', {});
  // What chooses between implementations there, and what vocab_size is rounded to already.
  for (const name of ['fused_add_norm', 'use_mambapy', 'use_associative_scan']) fields.flag(name, true);
  fields.whole('pad_vocab_size_multiple', 1);
  fields.end();
  return {
    modelType: 'mamba',
    vocabSize,
    hiddenSize,
    numLayers,
    eosTokenId,
    padTokenId,
    json,
    mixer,
    layerNormEpsilon,
    tieWordEmbeddings,
  };
}

/**
 * Whether `out_proj` adds to the residual itself: a product of many rows costs a few percent more then, and
 * the next norm half as much.
 */
const addsAtOnce = (tokens: number, { slots }: Batch) =>
  tokens > 16 && tokens !== slots.shape[0] && !isRecording(); // see #recordLayers

/** Sequences of 130m whose layers CUDA does in one launch. */
const mostAtOnce = 168;
/** Sequences of other models of which a layer is faster as one op there: fewer and more go op by op. */
const layerAtOnce = { least: 17, most: 256 };
/** Columns of models of which fewer are, too: on Hopper all layers of up to 32 are one launch. */
const wide: readonly number[] = [2048, 2560];

class MambaBackbone implements Backbone {
  readonly stateParts: readonly StatePart[];
  readonly #config: MambaConfig;
  readonly #activations: DType;
  readonly #embeddings: Tensor; // [vocabSize, hiddenSize]
  readonly #layers: readonly { readonly norm: Tensor; readonly mixer: MambaMixer }[];
  readonly #norm: Tensor; // [hiddenSize]
  readonly head: { readonly weight: Tensor };

  constructor(config: MambaConfig, weights: Weights, { activations, states }: ModelDTypes) {
    const { hiddenSize, vocabSize, numLayers, mixer } = config;
    this.#config = config;
    this.#activations = activations;
    const backbone = weights.at('backbone');
    this.#embeddings = backbone
      .at('embeddings')
      .matrix('weight', [vocabSize, hiddenSize], init.normal(mixer.initializerRange));
    this.#layers = Array.from({ length: numLayers }, (_, i) => {
      const layer = backbone.at('layers').at(i);
      return {
        norm: layer.at('norm').get('weight', [hiddenSize], init.ones),
        mixer: new MambaMixer(layer.at('mixer'), mixer),
      };
    });
    this.#norm = backbone.at('norm_f').get('weight', [hiddenSize], init.ones);
    this.head = config.tieWordEmbeddings
      ? { weight: this.#embeddings }
      : new Linear(weights.at('lm_head'), hiddenSize, vocabSize, { bias: false });
    weights.checkAllUsed(config.tieWordEmbeddings ? ['lm_head.weight'] : []);

    const { dInner, dState, dConv } = mixer;
    this.stateParts = this.#layers.flatMap((_, i) => [
      { name: `layers.${i}.conv`, shape: [dInner, dConv - 1], dtype: activations },
      { name: `layers.${i}.scan`, shape: [dInner, dState], dtype: states },
    ]);
  }

  ready(): void {
    for (const { mixer } of this.#layers) mixer.ready();
  }

  forward(ids: Tensor, batch: Batch, pools: readonly Tensor[], visit?: (hidden: Tensor) => void): Tensor {
    return scope(() => {
      const embedded = embedding({ ids, weight: this.#embeddings, dtype: 'f32' });
      const whole =
        this.#stepsAtOnce(ids, batch) &&
        pools.length > 0 &&
        !batch.muted &&
        this.#layers.every(({ mixer }) => mixer.stepsWhole);
      const { mixed, residual } = whole
        ? this.#stepLayers(embedded, batch, pools, visit)
        : isRecording() && pools.length === 0 && !batch.muted
          ? this.#recordLayers(embedded, batch, visit)
          : this.#runLayers(embedded, batch, pools, visit);
      const { y, sum } = normed(this.#entering(mixed, residual, this.#norm));
      visit?.(sum);
      return y;
    });
  }

  /**
   * Where a step's kernels are short enough for their number to count: one token, or one of each of some
   * sequences on CUDA.
   */
  #stepsAtOnce(ids: Tensor, { slots }: Batch): boolean {
    const tokens = ids.shape[0]!;
    if (tokens === 1) return true;
    if (this.#activations === 'f32' || ids.device.id === 'cpu' || tokens !== slots.shape[0]) return false;
    const least = wide.includes(this.#config.hiddenSize) ? 2 : layerAtOnce.least;
    return this.#inOneLaunch(tokens) || (tokens >= least && tokens <= layerAtOnce.most);
  }

  /** Whether CUDA does all layers of such a step at once. */
  #inOneLaunch(tokens: number): boolean {
    return tokens === 1 || (this.#config.hiddenSize === 768 && tokens <= mostAtOnce);
  }

  /** One token of each sequence: all layers as one op each. */
  #stepLayers(embedded: Tensor, batch: Batch, pools: readonly Tensor[], visit?: (hidden: Tensor) => void) {
    const eps = this.#config.layerNormEpsilon;
    const keeps = this.#inOneLaunch(embedded.shape[0]!);
    let x: Tensor | undefined;
    let residual = embedded;
    for (const [i, { norm, mixer }] of this.#layers.entries()) {
      const states = [pools[2 * i]!, pools[2 * i + 1]!] as const;
      const { y, sum, ...between } = mixer.layerStep({ x, residual, norm, eps }, batch, ...states);
      if (i > 0) visit?.(sum);
      if (!keeps) for (const tensor of [x, residual, ...Object.values(between)]) tensor?.dispose();
      x = y;
      residual = sum;
    }
    return { mixed: x, residual };
  }

  #runLayers(residual: Tensor, batch: Batch, pools: readonly Tensor[], visit?: (hidden: Tensor) => void) {
    const adds = addsAtOnce(residual.shape[0]!, batch);
    let mixed: Tensor | undefined;
    for (const [i, { norm, mixer }] of this.#layers.entries()) {
      const { y: xz, sum } = normedProduct(this.#entering(mixed, residual, norm), mixer.inProj);
      if (i > 0) visit?.(sum);
      // What this layer no longer needs goes at once: a long prompt's memory is one layer's.
      mixed?.dispose();
      if (sum !== residual) residual.dispose();
      residual = sum;
      const out = mixer.forward(xz, batch, pools[2 * i], pools[2 * i + 1], adds ? residual : undefined);
      xz.dispose();
      if (adds) {
        residual.dispose();
        residual = out;
      } else mixed = out;
    }
    return { mixed, residual };
  }

  /** For gradients: what is between two scans is one step. */
  #recordLayers(embedded: Tensor, batch: Batch, visit?: (hidden: Tensor) => void) {
    const eps = this.#config.layerNormEpsilon;
    const [first, ...others] = this.#layers;
    let { y: xz, sum } = normedProduct(this.#entering(undefined, embedded, first!.norm), first!.mixer.inProj);
    let last = first!;
    for (const layer of others) {
      ({ y: xz, sum } = last.mixer.toNext(xz, batch, sum, { ...layer, eps }));
      visit?.(sum);
      last = layer;
    }
    return { mixed: last.mixer.forward(xz, batch), residual: sum };
  }

  /** What a layer starts with, `mixed` being what the layer before adds. */
  #entering(mixed: Tensor | undefined, residual: Tensor, normWeight: Tensor): Entering {
    return { x: mixed, residual, normWeight, eps: this.#config.layerNormEpsilon, dtype: this.#activations };
  }

  dispose(): void {
    for (const { mixer } of this.#layers) mixer.dispose();
  }
}

/** Mamba (Gu and Dao 2023) as transformers' `MambaForCausalLM` writes it. */
export const mamba: Family<MambaConfig> = {
  type: 'mamba',
  config,
  build: (config, weights, dtypes) => new MambaBackbone(config, weights, dtypes),
};
