import { activations } from '../ops/activations';
import { activate, expertDown, expertLayerStep, expertMatmul, expertUp } from '../ops/experts';
import { matmul } from '../ops/matmul';
import type { Tensor } from '../tensor';
import * as init from './init';
import type { Weights } from './weights';

/** What stands between an expert's two matrices: `swiglu` is silu(a) · b of two halves, `geglu` gelu(a) · b. */
export type Activation = 'relu' | 'gelu' | 'silu' | 'swiglu' | 'geglu';

export interface ExpertSizes {
  readonly dModel: number;
  readonly dExpert: number;
  readonly activation: Activation;
  readonly bias: boolean;
}

const { relu, gelu, silu } = activations;
const kinds = { relu, gelu, geglu: gelu, silu, swiglu: silu } as const;
const gated = (activation: Activation) => activation === 'geglu' || activation === 'swiglu';

/** Columns of the first matrix: gated ones have two halves. */
const widthOf = ({ dExpert, activation }: ExpertSizes) => dExpert * (gated(activation) ? 2 : 1);

/** What an expert's first product becomes: f of it, or f of its first half times the second. */
export function activated(x: Tensor, { dExpert, activation }: ExpertSizes): Tensor {
  if (!gated(activation)) return activate({ x, kind: kinds[activation] });
  const factor = x.columns(dExpert, 2 * dExpert);
  return activate({ x: x.columns(0, dExpert), factor, kind: kinds[activation] });
}

/** Which assignment is where, sorted by expert: see `sortExperts`. */
export interface Places {
  readonly order: Tensor; // i32[a]
  readonly offsets: Tensor; // i32[e+1]
  /** Assignments for each token. */
  readonly k: number;
}

/** What a token comes from, and how its experts are chosen: see `expertLayerStep`. */
type OneToken = Omit<Parameters<typeof expertLayerStep>[0], 'up' | 'upBias' | 'down' | 'downBias' | 'kind'>;

/** Feed-forward networks of one shape, of which a token sees only those that it is sent to. */
export class Experts {
  readonly sizes: ExpertSizes;
  readonly up: Tensor; // [e, width, dModel]
  readonly upBias: Tensor | undefined; // [e, width]
  readonly down: Tensor; // [e, dModel, dExpert]
  readonly downBias: Tensor | undefined; // [e, dModel]

  /** The parameters of expert i are `<i>.<names.up>.weight` and so on. */
  constructor(
    w: Weights,
    count: number,
    sizes: ExpertSizes,
    names: { readonly up: string; readonly down: string },
  ) {
    const { dModel, dExpert, bias } = sizes;
    this.sizes = sizes;
    const all = (name: string) => Array.from({ length: count }, (_, i) => `${i}.${name}`);
    const width = widthOf(sizes);
    this.up = w.stack(all(`${names.up}.weight`), [width, dModel], init.linear(dModel));
    this.down = w.stack(all(`${names.down}.weight`), [dModel, dExpert], init.linear(dExpert));
    if (!bias) return;
    this.upBias = w.stack(all(`${names.up}.bias`), [width], init.zeros, 'f32');
    this.downBias = w.stack(all(`${names.down}.bias`), [dModel], init.zeros, 'f32');
  }

  /** x [t, dModel] to [a, dModel], in the experts' order. */
  forward(x: Tensor, { order, offsets, k }: Places): Tensor {
    const up = expertMatmul({ x, weight: this.up, bias: this.upBias, order, offsets, k });
    return expertMatmul({
      x: activated(up, this.sizes),
      weight: this.down,
      bias: this.downBias,
      order,
      offsets,
    });
  }

  /** The same in fewer steps, and on to the tokens: x [t, dModel] to [t, dModel]. */
  through(
    x: Tensor,
    { order, place, offsets, k }: Places & { readonly place: Tensor },
    weights: Tensor,
  ): Tensor {
    const { activation, dExpert: h } = this.sizes;
    const up = { weight: this.up, bias: this.upBias, kind: kinds[activation], h };
    const hidden = expertUp({ x, ...up, order, offsets, k });
    const down = { weight: this.down, bias: this.downBias };
    const y = expertDown({ x: hidden, ...down, order, place, offsets, weights });
    hidden.dispose();
    return y;
  }

  /** One token through a layer of these, into those of its choice and out of them. */
  layerStep(token: OneToken): ReturnType<typeof expertLayerStep> {
    const { up, upBias, down, downBias } = this;
    return expertLayerStep({ ...token, up, upBias, down, downBias, kind: kinds[this.sizes.activation] });
  }
}

/** One such network that every token sees. */
export class FeedForward {
  readonly #sizes: ExpertSizes;
  readonly #up: { readonly weight: Tensor; readonly bias?: Tensor };
  readonly #down: { readonly weight: Tensor; readonly bias?: Tensor };

  constructor(w: Weights, sizes: ExpertSizes, names: { readonly up: string; readonly down: string }) {
    const { dModel, dExpert, bias } = sizes;
    this.#sizes = sizes;
    const linear = (name: string, inputs: number, outputs: number) => ({
      weight: w.at(name).matrix('weight', [outputs, inputs], init.linear(inputs)),
      ...(bias && { bias: w.at(name).get('bias', [outputs], init.zeros) }),
    });
    this.#up = linear(names.up, dModel, widthOf(sizes));
    this.#down = linear(names.down, dExpert, dModel);
  }

  /** x [t, dModel] to [t, dModel]. */
  forward(x: Tensor): Tensor {
    return matmul({ x: activated(matmul({ x, ...this.#up }), this.#sizes), ...this.#down });
  }
}
