import type { JsonObject } from '../io/json';
import type { Batch } from '../nn/mamba';
import type { Weights } from '../nn/weights';
import type { DType, Tensor } from '../tensor';

/** What every configuration says, whatever the family. */
export interface CommonConfig {
  readonly modelType: string;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numLayers: number;
  readonly eosTokenId: number | readonly number[] | undefined;
  readonly padTokenId: number | undefined;
  /** The parsed config.json, as it is saved again. */
  readonly json: JsonObject;
}

/** One tensor of a sequence's state: `shape` without the slots in front. */
export interface StatePart {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: DType;
}

/** What a model computes and remembers in. */
export interface ModelDTypes {
  readonly activations: DType;
  /** Of the scan's states between calls. */
  readonly states: DType;
}

/** The mixtures of experts of a model. */
export interface RouterSetup {
  readonly count: number;
  /** Weights of the balancing loss and of the z-loss, each a sum over the routers. */
  readonly balance: number;
  readonly z: number;
}

/** A model's computation over packed tokens. */
export interface Backbone {
  readonly stateParts: readonly StatePart[];
  /** Called once all parameters are loaded. */
  ready(): void;
  /**
   * ids i32[t] to the normalised output of the last layer [t, hiddenSize]. `pools` holds one tensor
   * [slots, ...] for each of `stateParts`, or none: then sequences start from nothing. `visit` sees the output of each layer in turn (with its residual), f32[t, hiddenSize].
   */
  forward(ids: Tensor, batch: Batch, pools: readonly Tensor[], visit?: (hidden: Tensor) => void): Tensor;
  /** What makes logits of the normalised output: weight [vocabSize, hiddenSize]. */
  readonly head: { readonly weight: Tensor; readonly bias?: Tensor | undefined };
  /** Where there are routers: how many, and the weights of their losses in training, if the config has any. */
  readonly routers?: RouterSetup | undefined;
  /** Whether it makes use of `Batch.longest`, so that a recorded pass is for sequences of at most that length. */
  readonly bounded?: boolean;
  dispose(): void;
}

/** A kind of model: one file, and one line in the registry. */
export interface Family<C extends CommonConfig = CommonConfig> {
  /** `model_type` in config.json; where a family's files have none, a name for it. */
  readonly type: string;
  /** For families whose config.json has no `model_type`: whether this is one. */
  readonly recognises?: (json: JsonObject) => boolean;
  /** Models whose tokens are bytes need no tokenizer, and get none. */
  readonly codec?: 'bytes';
  /** The name that the layers know a parameter by, where the family's files have others. */
  readonly rename?: (name: string) => string;
  /** @throws FormatError that names a field which is missing, unknown, or of a value that is not supported. */
  config(json: JsonObject): C;
  build(config: C, weights: Weights, dtypes: ModelDTypes): Backbone;
}
