import { noGrad } from '../autograd/grad';
import { derivedBy } from '../autograd/remat';
import { isRecording } from '../autograd/tape';
import { cast } from '../ops/elementwise';
import { expertCombine } from '../ops/experts';
import { matmul } from '../ops/matmul';
import {
  jitter,
  limitExperts,
  normRoute,
  routeExperts,
  routerStatistics,
  sinkhorn,
  sortExperts,
} from '../ops/routing';
import { keep, scope, type Tensor } from '../tensor';
import { Experts, type ExpertSizes } from './experts';
import * as init from './init';
import { normed, type Entering } from './normed';
import type { Weights } from './weights';

/**
 * How tokens and experts find each other. `softmax`: each token's best by their probability (Switch
 * with one, Shazeer et al. with more). `sigmoid`: weighed by the sigmoid of the logit (BlackMamba's
 * inference). `sinkhorn`: in training chosen after Sinkhorn's balancing, else as `sigmoid`.
 * `expert-choice`: each expert takes its best tokens; what is chosen then depends on later tokens.
 */
export type Router = 'softmax' | 'sigmoid' | 'sinkhorn' | 'expert-choice';

export interface MoEConfig extends ExpertSizes {
  readonly experts: number;
  readonly topK: number;
  readonly router: Router;
  /** Of the router's logits. */
  readonly routerBias: boolean;
  /** Divides the weights of a token's experts by their sum. */
  readonly normalize: boolean;
  /** Each expert takes at most this, times tokens · topK / experts, in training; expert choice always. */
  readonly capacityFactor: number | undefined;
  /** The router's input is multiplied by numbers in [1 - jitter, 1 + jitter] in training. */
  readonly jitter: number;
  /** Sinkhorn starts as published before BlackMamba: from ones. */
  readonly classicalSinkhorn: boolean;
  /** Below the layer: where the experts are, and their two matrices. */
  readonly names: { readonly experts: string; readonly up: string; readonly down: string };
}

/** What a router did: tensors that live until they are disposed. */
export interface Routing {
  /** i32[t, k]: the experts of each token, best first; -1 where one had no room. */
  readonly experts: Tensor;
  /** f32[t, k] */
  readonly weights: Tensor;
  /** f32[1]: e · Σ f_e · P_e, and the mean squared logsumexp: both to be weighed and added to a loss. */
  readonly balance: Tensor;
  readonly z: Tensor;
  /** i32[e]: the tokens of each expert. */
  readonly load: Tensor;
  /** f32[1]: of the choices, in nats; log(e) is the most. */
  readonly entropy: Tensor;
  /** i32[1]: choices that had no room, and tokens that no expert sees. */
  readonly dropped: Tensor;
  readonly unserved: Tensor;
}

export interface MoEOptions {
  /** i32[2], for the jitter: says that this is training. */
  readonly seed?: Tensor | undefined;
  readonly visit?: ((routing: Routing) => void) | undefined;
}

/** The most tokens that an expert takes of `tokens`. */
export function capacityOf(config: MoEConfig, tokens: number): number {
  const share = (tokens * config.topK) / config.experts;
  return Math.min(tokens * config.topK, Math.ceil(share * (config.capacityFactor ?? 1)));
}

/** A mixture of experts: ops only, of shapes that tokens alone decide, so that it can be captured. */
export class MoE {
  readonly config: MoEConfig;
  readonly router: Tensor; // f32[experts, dModel]
  readonly routerBias: Tensor | undefined; // f32[experts]
  readonly experts: Experts;

  constructor(w: Weights, config: MoEConfig) {
    this.config = config;
    const router = w.at('router');
    this.router = router.get('weight', [config.experts, config.dModel], init.linear(config.dModel));
    this.routerBias = config.routerBias ? router.get('bias', [config.experts], init.zeros) : undefined;
    this.experts = new Experts(w.at(config.names.experts), config.experts, config, config.names);
  }

  /** x [t, dModel] to [t, dModel]. */
  forward(x: Tensor, { seed, visit }: MoEOptions = {}): Tensor {
    const { experts: e, jitter: epsilon } = this.config;
    return scope(() => {
      // Gradients of the router are f32 as it is itself.
      const wide = { x, dtype: 'f32' } as const;
      const plain = isRecording() && x.dtype !== 'f32' ? derivedBy(cast(wide), cast, wide) : x;
      const heard = seed && epsilon > 0 ? jitter({ x, seed, epsilon }) : plain;
      const logits = matmul({ x: heard, weight: this.router, bias: this.routerBias, dtype: 'f32' });
      const { chosen, kept, weights } = this.#route(logits, seed !== undefined);
      const [tokens, k] = kept.shape as [number, number];
      const { order, place, offsets } = sortExperts({ experts: kept.reshape([tokens * k]), e });
      const y = this.experts.forward(x, { order, offsets, k });
      const combined = expertCombine({ x: y, place, weights });
      if (visit) see(visit, { logits, chosen, kept, weights });
      return combined;
    });
  }

  /** Whether each token chooses its experts, so that one can go through `layerStep`. */
  get stepsWhole(): boolean {
    return this.config.router !== 'expert-choice';
  }

  /**
   * One token through the whole layer: `y` [1, dModel] is what it adds to `sum`, the residual with what the
   * layer before has added. Nothing of it is to be disposed before the step's last layer: see `expertLayerStep`.
   */
  layerStep(entering: Entering, visit?: MoEOptions['visit']): { readonly y: Tensor; readonly sum: Tensor } {
    const { y, sum, logits, experts, weights } = this.experts.layerStep({
      ...this.#routed(entering),
      router: this.router,
      routerBias: this.routerBias,
    });
    if (visit) see(visit, { logits, chosen: experts, kept: experts, weights });
    return { y, sum };
  }

  /**
   * The layer with its RMS norm and residual: `sum = residual + x`, and `y`, what the experts make of its
   * norm, [t, dModel] both. One token is one op; in training it is op by op.
   */
  layer(entering: Entering, options: MoEOptions = {}): { readonly y: Tensor; readonly sum: Tensor } {
    const { topK: k, experts: e } = this.config;
    const { seed, visit } = options;
    if (!this.stepsWhole || seed || isRecording()) return this.#layerByOps(entering, options);
    return scope(() => {
      if (entering.residual.shape[0] === 1) return this.layerStep(entering, visit);
      const { sum, normed, logits, experts, weights } = normRoute({
        ...this.#routed(entering),
        weight: this.router,
        bias: this.routerBias,
      });
      const sorted = sortExperts({ experts: experts.reshape([experts.shape[0]! * k]), e });
      const y = this.experts.through(normed, { ...sorted, k }, weights);
      if (visit) see(visit, { logits, chosen: experts, kept: experts, weights });
      return { y, sum };
    });
  }

  /** What enters, and how its experts are chosen. */
  #routed({ x, residual, normWeight, eps, dtype }: Entering) {
    const { topK: k, router, normalize } = this.config;
    return { x, residual, normWeight, eps, dtype, k, sigmoid: router !== 'softmax', normalize };
  }

  #layerByOps(entering: Entering, options: MoEOptions): { readonly y: Tensor; readonly sum: Tensor } {
    return scope(() => {
      const { y, sum } = normed(entering);
      return { y: this.forward(y, options), sum };
    });
  }

  /**
   * The experts of each token, those of them that have room, and their weights. What only makes the choice
   * has no gradient.
   */
  #route(logits: Tensor, training: boolean): { chosen: Tensor; kept: Tensor; weights: Tensor } {
    const { experts: e, topK, router, normalize, capacityFactor, classicalSinkhorn } = this.config;
    const capacity = capacityOf(this.config, logits.shape[0]!);
    if (router === 'expert-choice') {
      const { probs } = routeExperts({ logits });
      const kept = noGrad(() => limitExperts({ scores: probs, capacity }));
      return { chosen: kept, kept, weights: probs };
    }
    const scores =
      router === 'sinkhorn' && training
        ? noGrad(() => sinkhorn({ logits, classical: classicalSinkhorn }).balanced)
        : undefined;
    const { experts: chosen, weights } = routeExperts({
      logits,
      scores,
      k: topK,
      sigmoid: router !== 'softmax',
      normalize,
    });
    if (!training || capacityFactor === undefined) return { chosen, kept: chosen, weights };
    const kept = noGrad(() => limitExperts({ scores: weights, experts: chosen, e, capacity }));
    return { chosen, kept, weights };
  }
}

/** Lets `visit` have what a router did. */
function see(
  visit: (routing: Routing) => void,
  routed: Readonly<Record<'logits' | 'chosen' | 'kept' | 'weights', Tensor>>,
): void {
  const { logits, chosen, kept, weights } = routed;
  const routing = { experts: kept, weights, ...routerStatistics({ logits, experts: chosen, kept }) };
  for (const tensor of Object.values(routing)) keep(tensor);
  visit(routing);
}
