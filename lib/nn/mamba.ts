import { derivedBy } from '../autograd/remat';
import { isRecording } from '../autograd/tape';
import { accumulate, fill, negExp, zeroSlots } from '../ops/elementwise';
import { matmul } from '../ops/matmul';
import { rmsNorm } from '../ops/norm';
import { causalConv1dPacked, convMatmul, mambaLayerStep, mambaStep, selectiveScanPacked } from '../ops/scan';
import { keep, scope, Tensor } from '../tensor';
import * as init from './init';
import { Linear } from './linear';
import type { Routing } from './moe';
import type { Weights } from './weights';

/** Which rows of a packed batch belong together, and where their states live. */
export interface Batch {
  readonly offsets: Tensor; // i32[s+1]
  readonly slots: Tensor; // i32[s]
  /** Rows that are padding in the middle of a sequence: the mixers see no input there. */
  readonly muted?: Tensor; // i32[m]
  /** Where sequences start from nothing and leave nothing: tokens of the longest one. */
  readonly longest?: number;
  /** Sees what each router did, layer by layer; disposes it. */
  readonly router?: ((routing: Routing) => void) | undefined;
  /** i32[routers, 2], for the routers' noise: says that this is training. */
  readonly seeds?: Tensor;
}

/** What delta's rank is filled up to a multiple of: rows of B and C that a GPU reads 16 bytes at a time. */
const rankUnit = 16;

/** The sizes of a Mamba mixer, in the paper's names. */
export interface MixerConfig {
  readonly dModel: number;
  readonly dInner: number;
  readonly dState: number;
  readonly dConv: number;
  readonly dtRank: number;
  readonly bias: boolean;
  readonly convBias: boolean;
  readonly dtMin: number;
  readonly dtMax: number;
  readonly dtFloor: number;
  readonly dtScale: number;
  readonly dtInit: 'random' | 'constant';
  /** Standard deviation of `out_proj` and `in_proj` when they start afresh. */
  readonly initializerRange: number;
  /** FalconMamba: B, C and the low-rank delta are normalised (RMS, no weights) with this epsilon. */
  readonly rmsEps?: number;
}

/** What a layer is given: the residual, and what the layer before adds to it, if there is one. */
export interface LayerInput {
  readonly x: Tensor | undefined; // [t, dModel]
  readonly residual: Tensor; // f32[t, dModel]
  readonly norm: Tensor; // f32[dModel]
  readonly eps: number;
}

/** The Mamba block without its norm and residual (Gu and Dao 2023, figure 3). */
export class MambaMixer {
  readonly #config: MixerConfig;
  /** What a token enters through: [t, dModel] to [t, 2 dInner], the x and the z of `forward`. */
  readonly inProj: Linear;
  readonly #outProj: Linear;
  readonly #xProj: Linear;
  readonly #dtWeight: Tensor; // [dInner, dtRank]
  readonly #dtBias: Tensor; // [dInner]
  readonly #conv: Tensor; // [dInner, 1, dConv]
  readonly #convBias: Tensor | undefined; // [dInner]
  readonly #aLog: Tensor; // [dInner, dState]
  readonly #D: Tensor; // [dInner]
  #A: Tensor | undefined;
  #convWeight: Tensor | undefined; // [dInner, dConv]
  #ones: ReadonlyMap<number, Tensor> | undefined; // weights of the norms, by their width
  /** The products of delta's rank filled up with zeros, where its own rows would not be aligned. */
  #filled: { readonly xProj: Tensor; readonly dtWeight: Tensor } | undefined;

  constructor(w: Weights, config: MixerConfig) {
    const { dModel, dInner, dState, dConv, dtRank } = config;
    this.#config = config;
    const range = init.normal(config.initializerRange);
    this.inProj = new Linear(w.at('in_proj'), dModel, 2 * dInner, {
      bias: config.bias,
      init: range,
      biasInit: init.zeros,
    });
    const conv = w.at('conv1d');
    this.#conv = conv.get('weight', [dInner, 1, dConv], init.linear(dConv));
    this.#convBias = config.convBias ? conv.get('bias', [dInner], init.linear(dConv)) : undefined;
    this.#xProj = new Linear(w.at('x_proj'), dInner, dtRank + 2 * dState, { bias: false, init: range });
    const dtStd = config.dtScale / Math.sqrt(dtRank);
    const dt = w.at('dt_proj');
    const dtInit: init.Init = config.dtInit === 'random' ? init.uniform(dtStd) : (out) => out.fill(dtStd);
    this.#dtWeight = dt.matrix('weight', [dInner, dtRank], dtInit);
    this.#dtBias = dt.get(
      'bias',
      [dInner],
      init.inverseSoftplusOfLogUniform(config.dtMin, config.dtMax, config.dtFloor),
    );
    this.#aLog = w.get('A_log', [dInner, dState], init.s4dRealLog(dState));
    this.#D = w.get('D', [dInner], init.ones);
    this.#outProj = new Linear(w.at('out_proj'), dInner, dModel, {
      bias: config.bias,
      init: range,
      biasInit: init.zeros,
    });
  }

  /** Once the parameters have their values: A = -exp(A_log) and the filter's rows, which every step needs. */
  ready(): void {
    const { dInner, dConv, dtRank, dState, rmsEps } = this.#config;
    this.dispose();
    this.#A = keep(negExp({ x: this.#aLog }));
    this.#convWeight = keep(this.#conv.reshape([dInner, dConv]));
    if (rmsEps === undefined) {
      if (dtRank % rankUnit > 0) this.#filled = this.#fill();
      return;
    }
    const ones = (n: number) =>
      keep(Tensor.from(new Float32Array(n).fill(1), [n], { device: this.#D.device }));
    this.#ones = new Map([...new Set([dtRank, dState])].map((n) => [n, ones(n)]));
  }

  /** x_proj and dt_proj with a rank that is a multiple of `rankUnit`: the same products. */
  #fill() {
    const { dInner, dState, dtRank } = this.#config;
    const rank = Math.ceil(dtRank / rankUnit) * rankUnit;
    const zeros = ({ dtype, device }: Tensor, rows: number, columns: number) => {
      const x = Tensor.empty([rows, columns], dtype, device);
      fill({ x, value: 0 });
      return x;
    };
    return scope(() => {
      const { weight } = this.#xProj;
      const xProj = zeros(weight, rank + 2 * dState, dInner);
      const dtWeight = zeros(this.#dtWeight, dInner, rank);
      accumulate({ x: weight.rows(0, dtRank), sum: xProj.rows(0, dtRank) });
      accumulate({ x: weight.rows(dtRank, weight.shape[0]!), sum: xProj.rows(rank, rank + 2 * dState) });
      accumulate({ x: this.#dtWeight, sum: dtWeight.columns(0, dtRank) });
      return { xProj: keep(xProj), dtWeight: keep(dtWeight) };
    });
  }

  /**
   * xz [t, 2 dInner], of `inProj`, to [t, dModel]; updates the batch's rows of both pools. Without pools
   * sequences start from nothing. `addTo`, f32[t, dModel]: the answer is the sum with it.
   */
  forward(xz: Tensor, batch: Batch, convState?: Tensor, scanState?: Tensor, addTo?: Tensor): Tensor {
    // Sequences are never empty: as many tokens as there are sequences are one of each.
    const single = xz.shape[0] === batch.slots.shape[0] && !batch.muted && !this.#ones;
    return scope(() => {
      const y =
        single && convState && scanState
          ? this.#step(xz, batch, convState, scanState)
          : this.#scan(xz, batch, convState, scanState);
      return addTo ? this.#outProj.addTo(addTo, y) : this.#outProj.forward(y);
    });
  }

  /** Whether `layerStep` does what the layer is: it knows no biases of projections, nor inner norms. */
  get stepsWhole(): boolean {
    return !this.#ones && !this.#config.bias;
  }

  /**
   * One token of each sequence through the whole layer: `y` [b, dModel] is what it adds to `sum`, the
   * residual [b, dModel] with what the layer before has added. Nothing of it is to be disposed before the
   * step's last layer: see `mambaLayerStep`.
   */
  layerStep(
    { x, residual, norm, eps }: LayerInput,
    { offsets, slots }: Batch,
    convState: Tensor,
    scanState: Tensor,
  ): { readonly y: Tensor; readonly sum: Tensor } {
    return mambaLayerStep({
      x,
      residual,
      normWeight: norm,
      inProj: this.inProj.weight,
      ...this.#parameters(),
      convState,
      scanState,
      outProj: this.#outProj.weight,
      offsets,
      slots,
      eps,
    });
  }

  /** One token of each sequence, [b, 2 dInner] to [b, dInner]. */
  #step(xz: Tensor, { offsets, slots }: Batch, convState: Tensor, scanState: Tensor): Tensor {
    return mambaStep({ xz, ...this.#parameters(), convState, scanState, offsets, slots }).y;
  }

  #parameters() {
    return {
      convWeight: this.#convWeight!,
      convBias: this.#convBias,
      xProj: this.#filled?.xProj ?? this.#xProj.weight,
      dtWeight: this.#filled?.dtWeight ?? this.#dtWeight,
      dtBias: this.#dtBias,
      A: this.#A!,
      D: this.#D,
    };
  }

  /** Sequences of any lengths, [t, 2 dInner] to [t, dInner]. */
  #scan(xz: Tensor, { offsets, slots, muted }: Batch, convState?: Tensor, scanState?: Tensor): Tensor {
    const { dInner, dState, dConv } = this.#config;
    const tokens = xz.shape[0]!;
    return scope(() => {
      // While gradients are recorded these are computed from the parameters, and not what is kept.
      const A = isRecording() ? negExp({ x: this.#aLog }) : this.#A!;
      const convWeight = isRecording() ? this.#conv.reshape([dInner, dConv]) : this.#convWeight!;
      const filled = isRecording() ? undefined : this.#filled;
      const dtWeight = filled?.dtWeight ?? this.#dtWeight;
      const dtRank = dtWeight.shape[1]!;
      const x = xz.columns(0, dInner);
      const weight = filled?.xProj ?? this.#xProj.weight;
      const start = () => {
        if (!isRecording() && !muted)
          return convMatmul({
            x,
            convWeight,
            convBias: this.#convBias,
            offsets,
            slots,
            state: convState,
            weight,
          });
        if (muted) zeroSlots({ pool: x, slots: muted });
        const conv = { x, weight: convWeight, bias: this.#convBias, offsets, slots, silu: true };
        const u = derivedBy(causalConv1dPacked({ ...conv, state: convState }), causalConv1dPacked, conv);
        if (muted) zeroSlots({ pool: u, slots: muted });
        return { u, y: matmul({ x: u, weight }) };
      };
      const { u, y: dbc } = start(); // [t, dInner], [t, dtRank + 2 dState]
      const part = (begin: number, size: number) => {
        const x = dbc.columns(begin, begin + size);
        const weight = this.#ones?.get(size);
        return weight ? rmsNorm({ x, weight, eps: this.#config.rmsEps! }) : x;
      };
      const group = (begin: number) => part(begin, dState).reshape([tokens, 1, dState]);
      const toDelta = { x: part(0, dtRank), weight: dtWeight };
      return selectiveScanPacked({
        u,
        delta: derivedBy(matmul(toDelta), matmul, toDelta),
        A,
        B: group(dtRank),
        C: group(dtRank + dState),
        D: this.#D,
        z: xz.columns(dInner, 2 * dInner),
        deltaBias: this.#dtBias,
        offsets,
        slots,
        state: scanState,
        deltaSoftplus: true,
      });
    });
  }

  dispose(): void {
    this.#A?.dispose();
    this.#convWeight?.dispose();
    this.#ones?.forEach((tensor) => tensor.dispose());
    this.#filled?.xProj.dispose();
    this.#filled?.dtWeight.dispose();
    this.#filled = undefined;
  }
}
