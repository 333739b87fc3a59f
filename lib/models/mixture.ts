import type { FeedForward } from '../nn/experts';
import type { Batch, MambaMixer } from '../nn/mamba';
import type { MoE } from '../nn/moe';
import { add, cast } from '../ops/elementwise';
import { embedding, matmul } from '../ops/matmul';
import { addRmsNorm, layerNorm, rmsNorm } from '../ops/norm';
import { scope, type DType, type Tensor } from '../tensor';
import type { Backbone, StatePart } from './family';

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
}

/** Layers of Mamba mixers and feed-forward networks, of which some are mixtures of experts. */
export class MixtureBackbone implements Backbone {
  readonly stateParts: readonly StatePart[];
  readonly head: MixtureParts['head'];
  readonly #parts: MixtureParts;
  readonly #activations: DType;

  constructor(
    parts: MixtureParts,
    { dInner, dState, dConv }: { dInner: number; dState: number; dConv: number },
    activations: DType,
  ) {
    this.#parts = parts;
    this.head = parts.head;
    this.#activations = activations;
    this.stateParts = parts.layers.flatMap(({ mixer }, i) =>
      mixer
        ? [
            { name: `layers.${i}.conv`, shape: [dInner, dConv - 1], dtype: activations },
            { name: `layers.${i}.scan`, shape: [dInner, dState], dtype: 'f32' as const },
          ]
        : [],
    );
  }

  ready(): void {
    for (const { mixer } of this.#parts.layers) mixer?.ready();
  }

  forward(ids: Tensor, batch: Batch, pools: readonly Tensor[], visit?: (hidden: Tensor) => void): Tensor {
    const { embeddings, layers, eps } = this.#parts;
    const dtype = this.#activations;
    return scope(() => {
      let residual = embedding({ ids, weight: embeddings, dtype: 'f32' });
      let mixed: Tensor | undefined;
      let pool = 0;
      for (const [i, { norm: weight, mixer, network, networkNorm }] of layers.entries()) {
        const { y, sum } = mixed
          ? addRmsNorm({ x: mixed, residual, weight, eps })
          : { y: rmsNorm({ x: residual, weight, eps, dtype }), sum: residual };
        if (i > 0) visit?.(sum);
        // What this layer no longer needs goes at once: a long prompt's memory is one layer's.
        mixed?.dispose();
        if (sum !== residual) residual.dispose();
        residual = sum;
        mixed = scope(() => {
          const own = mixer?.forward(mixer.inProj.forward(y), batch, pools[pool++], pools[pool++]);
          if (!network) return own!;
          const x = networkNorm ? rmsNorm({ x: sum, weight: networkNorm, eps, dtype }) : y;
          const other = network.forward(x, { visit: batch.router });
          return own ? add(own, other) : other;
        });
        y.dispose();
      }
      return this.#last(mixed!, residual, visit);
    });
  }

  /** The residual after the last layer, normalised. */
  #last(mixed: Tensor, residual: Tensor, visit?: (hidden: Tensor) => void): Tensor {
    const { finalNorm, eps } = this.#parts;
    if (!finalNorm.bias) {
      const { y, sum } = addRmsNorm({ x: mixed, residual, weight: finalNorm.weight, eps });
      visit?.(sum);
      return y;
    }
    const sum = add(mixed.dtype === 'f32' ? mixed : cast({ x: mixed, dtype: 'f32' }), residual);
    visit?.(sum);
    return layerNorm({ x: sum, ...finalNorm, eps, dtype: this.#activations });
  }

  logits(hidden: Tensor): Tensor {
    return matmul({ x: hidden, ...this.head, dtype: 'f32' });
  }

  dispose(): void {
    for (const { mixer } of this.#parts.layers) mixer?.dispose();
  }
}
