import { isRecording } from '../autograd/tape';
import type { FeedForward } from '../nn/experts';
import type { Linear } from '../nn/linear';
import type { Batch, MambaMixer } from '../nn/mamba';
import { MoE, type MoEOptions } from '../nn/moe';
import { normed, normedProduct, type Entering } from '../nn/normed';
import { accumulate, add, cast } from '../ops/elementwise';
import { embedding } from '../ops/matmul';
import { addRmsNorm, layerNorm } from '../ops/norm';
import { scope, type DType, type Tensor } from '../tensor';
import type { Backbone, ModelDTypes, RouterSetup, StatePart } from './family';

/** A layer with its norm and residual: a Mamba mixer, a network, or both beside each other. */
export interface MixtureLayer {
  readonly norm: Tensor; // [hiddenSize]
  readonly mixer?: MambaMixer;
  readonly network?: MoE | FeedForward;
  /** Of the network, where it stands beside a mixer. */
  readonly networkNorm?: Tensor;
}

/** The tensors of a model whose layers are of several kinds. */
export interface MixtureParts {
  readonly embeddings: Tensor; // [vocabSize, hiddenSize]
  readonly layers: readonly MixtureLayer[];
  /** With a bias a LayerNorm, without an RMSNorm. */
  readonly finalNorm: { readonly weight: Tensor; readonly bias?: Tensor };
  readonly head: { readonly weight: Tensor; readonly bias?: Tensor | undefined };
  readonly eps: number;
  /** Weights of the routers' losses in training. */
  readonly balance?: number;
  readonly z?: number;
}

/** Layers of Mamba mixers and feed-forward networks, of which some are mixtures of experts. */
export class MixtureBackbone implements Backbone {
  readonly stateParts: readonly StatePart[];
  readonly head: MixtureParts['head'];
  readonly parts: MixtureParts;
  readonly routers: RouterSetup | undefined;
  readonly #activations: DType;

  constructor(
    parts: MixtureParts,
    { dInner, dState, dConv }: { dInner: number; dState: number; dConv: number },
    { activations, states }: ModelDTypes,
  ) {
    this.parts = parts;
    this.head = parts.head;
    this.#activations = activations;
    const { layers, balance = 0, z = 0 } = parts;
    const count = layers.filter(({ network }) => network instanceof MoE).length;
    this.routers = count > 0 ? { count, balance, z } : undefined;
    this.stateParts = parts.layers.flatMap(({ mixer }, i) =>
      mixer
        ? [
            { name: `layers.${i}.conv`, shape: [dInner, dConv - 1], dtype: activations },
            { name: `layers.${i}.scan`, shape: [dInner, dState], dtype: states },
          ]
        : [],
    );
  }

  ready(): void {
    for (const { mixer } of this.parts.layers) mixer?.ready();
  }

  forward(ids: Tensor, batch: Batch, pools: readonly Tensor[], visit?: (hidden: Tensor) => void): Tensor {
    const { embeddings, layers } = this.parts;
    // One row is where a step's kernels are short enough for their number to count.
    const step = ids.shape[0] === 1 && pools.length > 0 && !batch.muted && !batch.seeds && !isRecording();
    return scope(() => {
      let residual = embedding({ ids, weight: embeddings, dtype: 'f32' });
      let mixed: Tensor | undefined;
      let pool = 0;
      let router = 0;
      const routing = (): MoEOptions => {
        const seed = batch.seeds?.rows(router, ++router).reshape([2]);
        return { seed, visit: batch.router };
      };
      for (const [i, layer] of layers.entries()) {
        const run = step && stepsWhole(layer) ? this.#stepLayer : this.#layer;
        const { y, sum } = run.call(this, layer, mixed, residual, batch, () => pools[pool++], routing);
        if (i > 0) visit?.(sum);
        // What this layer no longer needs goes at once: a long prompt's memory is one layer's. In a step
        // nothing does, so that layers can become one launch.
        if (!step) {
          mixed?.dispose();
          if (sum !== residual) residual.dispose();
        }
        residual = sum;
        mixed = y;
      }
      return this.#last(mixed!, residual, visit);
    });
  }

  /** One token through a layer as one op. */
  #stepLayer(
    { norm, mixer, network }: MixtureLayer,
    x: Tensor | undefined,
    residual: Tensor,
    batch: Batch,
    pool: () => Tensor | undefined,
  ): { readonly y: Tensor; readonly sum: Tensor } {
    const { eps } = this.parts;
    if (mixer) return mixer.layerStep({ x, residual, norm, eps }, batch, pool()!, pool()!);
    const entering = { x, residual, normWeight: norm, eps, dtype: this.#activations };
    return (network as MoE).layerStep(entering, batch.router);
  }

  /**
   * `sum = residual + mixed`, and `y`, what the layer makes of it. `pool` gives the next state, `routing`
   * what the next router is told.
   */
  #layer(
    { norm, mixer, network, networkNorm }: MixtureLayer,
    x: Tensor | undefined,
    residual: Tensor,
    batch: Batch,
    pool: () => Tensor | undefined,
    routing: () => MoEOptions,
  ): { readonly y: Tensor; readonly sum: Tensor } {
    const { eps } = this.parts;
    const dtype = this.#activations;
    const entering = { x, residual, normWeight: norm, eps, dtype };
    if (!mixer && network instanceof MoE) return network.layer(entering, routing());
    return scope(() => {
      if (!mixer) {
        const { y, sum } = enter(entering);
        return { y: (network as FeedForward).forward(y), sum };
      }
      const { y: xz, sum } = enter(entering, mixer.inProj);
      const own = mixer.forward(xz, batch, pool(), pool());
      if (!network) return { y: own, sum };
      const beside = { residual: sum, normWeight: networkNorm!, eps, dtype };
      const other =
        network instanceof MoE ? network.layer(beside, routing()).y : network.forward(enter(beside).y);
      return { y: add(own, other), sum };
    });
  }

  /** The residual after the last layer, normalised. */
  #last(mixed: Tensor, residual: Tensor, visit?: (hidden: Tensor) => void): Tensor {
    const { finalNorm, eps } = this.parts;
    if (!finalNorm.bias) {
      const { y, sum } = addRmsNorm({ x: mixed, residual, weight: finalNorm.weight, eps });
      visit?.(sum);
      return y;
    }
    let sum = residual;
    if (visit || isRecording())
      sum = add(mixed.dtype === 'f32' ? mixed : cast({ x: mixed, dtype: 'f32' }), residual);
    else accumulate({ x: mixed, sum }); // which nobody else sees
    visit?.(sum);
    return layerNorm({ x: sum, ...finalNorm, eps, dtype: this.#activations });
  }

  dispose(): void {
    for (const { mixer } of this.parts.layers) mixer?.dispose();
  }
}

/** Whether one op does what the layer is. */
const stepsWhole = ({ mixer, network }: MixtureLayer): boolean =>
  mixer ? !network && mixer.stepsWhole : network instanceof MoE && network.stepsWhole;

/** The norm of `residual + x`, times a layer's first matrix where there is one. */
const enter = (entering: Entering, first?: Linear) =>
  first ? normedProduct(entering, first) : normed(entering);
