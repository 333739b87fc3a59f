import type { JsonObject } from '../io/json';
import * as init from '../nn/init';
import { Linear } from '../nn/linear';
import type { Batch } from '../nn/mamba';
import { S4DMixer, s4dInits, s4dRules, type S4DConfig } from '../nn/s4d';
import { s4dModes, type S4DMode } from '../nn/s4d-cost';
import type { Weights } from '../nn/weights';
import { activations } from '../ops/activations';
import { activate } from '../ops/experts';
import { add, cast, zeroSlots } from '../ops/elementwise';
import { embedding } from '../ops/matmul';
import { layerNorm } from '../ops/norm';
import { scope, type DType, type Tensor } from '../tensor';
import type { Backbone, CommonConfig, Family, ModelDTypes, StatePart } from './family';
import { Fields } from './fields';

/** See docs/formats/s4d.md. */
export interface S4DModelConfig extends CommonConfig {
  readonly mixer: S4DConfig;
  readonly execution: S4DMode;
  readonly layerNormEpsilon: number;
  readonly tieWordEmbeddings: boolean;
  /** Standard deviation of the embeddings when they start afresh. */
  readonly initializerRange: number;
}

function config(json: JsonObject): S4DModelConfig {
  const fields = new Fields(json);
  fields.choice('model_type', ['s4d']);
  const hiddenSize = fields.whole('hidden_size', 256);
  const dState = fields.whole('state_size', 64, 2);
  if (dState % 2 !== 0 || dState > 512) fields.refuse('state_size', 'an even number, at most 512');
  const [dtMin, dtMax] = fields.bounds('time_step_min', 0.001, 'time_step_max', 0.1);
  const mixer: S4DConfig = {
    dModel: hiddenSize,
    dState,
    init: fields.choice('state_initialization', s4dInits),
    discretization: fields.choice('discretization', s4dRules),
    dtMin,
    dtMax,
  };
  const vocabSize = fields.whole('vocab_size', 50257);
  const read = {
    modelType: 's4d',
    vocabSize,
    hiddenSize,
    numLayers: fields.layers('num_hidden_layers', 6),
    eosTokenId: fields.ids('eos_token_id', vocabSize),
    padTokenId: fields.id('pad_token_id', vocabSize),
    json,
    mixer,
    execution: fields.choice('execution', s4dModes),
    layerNormEpsilon: fields.epsilon('layer_norm_epsilon', 1e-5),
    tieWordEmbeddings: fields.flag('tie_word_embeddings', false),
    initializerRange: fields.spread('initializer_range', 0.02),
  };
  fields.end();
  return read;
}

interface Norm {
  readonly weight: Tensor; // [hiddenSize]
  readonly bias: Tensor; // [hiddenSize]
}
interface Layer {
  readonly norm: Norm;
  readonly mixer: S4DMixer;
  readonly output: Linear;
}

class S4DBackbone implements Backbone {
  readonly stateParts: readonly StatePart[];
  readonly bounded = true;
  readonly head: { readonly weight: Tensor }; // [vocabSize, hiddenSize]
  readonly #config: S4DModelConfig;
  readonly #activations: DType;
  readonly #embeddings: Tensor; // [vocabSize, hiddenSize]
  readonly #layers: readonly Layer[];
  readonly #norm: Norm;

  constructor(config: S4DModelConfig, weights: Weights, { activations, states }: ModelDTypes) {
    if (states !== 'f32')
      throw new RangeError(`s4d: stateDtype is ${states}, expected f32; slow decay would be lost in halves`);
    const { hiddenSize: d, vocabSize, numLayers, mixer, initializerRange, tieWordEmbeddings } = config;
    this.#config = config;
    this.#activations = activations;
    const backbone = weights.at('backbone');
    const norm = (w: Weights): Norm => ({
      weight: w.get('weight', [d], init.ones),
      bias: w.get('bias', [d], init.zeros),
    });
    this.#embeddings = backbone
      .at('embeddings')
      .matrix('weight', [vocabSize, d], init.normal(initializerRange));
    this.#layers = Array.from({ length: numLayers }, (_, i) => {
      const layer = backbone.at('layers').at(i);
      return {
        norm: norm(layer.at('norm')),
        mixer: new S4DMixer(layer.at('s4d'), mixer),
        output: new Linear(layer.at('output_linear'), d, 2 * d, { bias: true }),
      };
    });
    this.#norm = norm(backbone.at('norm_f'));
    this.head = tieWordEmbeddings
      ? { weight: this.#embeddings }
      : new Linear(weights.at('lm_head'), d, vocabSize, { bias: false });
    weights.checkAllUsed(tieWordEmbeddings ? ['lm_head.weight'] : []);
    const shape = [d, mixer.dState / 2, 2];
    this.stateParts = this.#layers.map((_, i) => ({ name: `layers.${i}.s4d`, shape, dtype: 'f32' }));
  }

  ready(): void {
    for (const { mixer } of this.#layers) mixer.ready();
  }

  forward(ids: Tensor, batch: Batch, pools: readonly Tensor[], visit?: (hidden: Tensor) => void): Tensor {
    return scope(() => {
      let residual = embedding({ ids, weight: this.#embeddings, dtype: 'f32' });
      for (const [i, layer] of this.#layers.entries()) {
        if (i > 0) visit?.(residual);
        const sum = scope(() => {
          const y = this.#block(layer, this.#normed(residual, layer.norm), batch, pools[i]!);
          return add(y.dtype === 'f32' ? y : cast({ x: y, dtype: 'f32' }), residual);
        });
        // What this layer no longer needs goes at once: a long prompt's memory is one layer's.
        residual.dispose();
        residual = sum;
      }
      visit?.(residual);
      return this.#normed(residual, this.#norm);
    });
  }

  #normed(x: Tensor, norm: Norm): Tensor {
    return layerNorm({ x, ...norm, eps: this.#config.layerNormEpsilon, dtype: this.#activations });
  }

  /** The published block between its norm and its residual: S4D, GELU, a linear layer with a GLU. */
  #block({ mixer, output }: Layer, u: Tensor, batch: Batch, pool: Tensor): Tensor {
    const { offsets, slots, muted, longest } = batch;
    const { hiddenSize: d, execution: mode } = this.#config;
    if (muted) zeroSlots({ pool: u, slots: muted });
    // Without a longest sequence a state comes in and goes out.
    const where = longest === undefined ? { slots, state: pool } : { longest };
    const y = output.forward(
      activate({ x: mixer.forward(u, { offsets, mode, ...where }), kind: activations.gelu }),
    );
    return activate({ x: y.columns(d, 2 * d), factor: y.columns(0, d), kind: activations.sigmoid });
  }

  dispose(): void {
    for (const { mixer } of this.#layers) mixer.dispose();
  }
}

/** A language model of S4D blocks (Gu et al. 2022), with files of our own design. */
export const s4d: Family<S4DModelConfig> = {
  type: 's4d',
  config,
  build: (config, weights, dtypes) => new S4DBackbone(config, weights, dtypes),
};
