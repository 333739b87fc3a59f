import { derivedBy } from '../autograd/remat';
import { isRecording } from '../autograd/tape';
import { accumulate, fill, negExp, zeroSlots } from '../ops/elementwise';
import { matmul } from '../ops/matmul';
import { rmsNorm } from '../ops/norm';
import { causalConv1dPacked, convMatmul, mambaLayerStep, mambaStep, selectiveScanPacked } from '../ops/scan';
import { keep, scope, Tensor } from '../tensor';
import * as init from './init';
import { Linear } from './linear';
import { convProject, scanProject, scanToNext } from './mixer-steps';
import type { Batch, LayerInput, MixerConfig } from './mixer';
import type { Weights } from './weights';

export type { Batch, LayerInput, MixerConfig } from './mixer';

/** What delta's rank is filled up to a multiple of: rows of B and C that a GPU reads 16 bytes at a time. */
const rankUnit = 16;

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
      if (isRecording() && !convState && !scanState && !batch.muted)
        return scanProject(this.#recorded(xz, batch)).y;
      const y =
        single && convState && scanState
          ? this.#step(xz, batch, convState, scanState)
          : this.#scan(xz, batch, convState, scanState);
      return addTo ? this.#outProj.addTo(addTo, y) : this.#outProj.forward(y);
    });
  }

  /**
   * From xz [t, 2 dInner] through the layer, the residual and the norm after it to the next layer's xz, while gradients
   * are recorded, from nothing: `sum` is the residual, f32[t, dModel], with what this layer adds.
   */
  toNext(
    xz: Tensor,
    batch: Batch,
    residual: Tensor,
    next: Pick<LayerInput, 'norm' | 'eps'> & { readonly mixer: MambaMixer },
  ) {
    return scope(() =>
      scanToNext({
        ...this.#recorded(xz, batch),
        ...{ residual, normWeight: next.norm, eps: next.eps },
        next: next.mixer.inProj.weight,
        nextBias: next.mixer.inProj.bias,
      }),
    );
  }

  /** Whether `layerStep` does what the layer is: it knows no biases of projections, nor inner norms. */
  get stepsWhole(): boolean {
    return !this.#ones && !this.#config.bias;
  }

  /**
   * One token of each sequence through the whole layer: `y` [b, dModel] is what it adds to `sum`, the
   * residual [b, dModel] with what the layer before has added. Of layers that are to be one launch nothing is to be
   * disposed before the step's last: see `mambaLayerStep`.
   */
  layerStep(
    { x, residual, norm, eps }: LayerInput,
    { offsets, slots }: Batch,
    convState: Tensor,
    scanState: Tensor,
  ): ReturnType<typeof mambaLayerStep> {
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
    const { dInner } = this.#config;
    return scope(() => {
      const filled = isRecording() ? undefined : this.#filled;
      const { A, convWeight } = this.#derived();
      const [x, weight] = [xz.columns(0, dInner), filled?.xProj ?? this.#xProj.weight];
      const start = () => {
        const [bias, state] = [this.#convBias, convState];
        if (!isRecording() && !muted)
          return convMatmul({ x, convWeight, convBias: bias, offsets, slots, state, weight });
        if (muted) zeroSlots({ pool: x, slots: muted });
        const u = causalConv1dPacked({ x, weight: convWeight, bias, offsets, slots, state, silu: true });
        if (muted) zeroSlots({ pool: u, slots: muted });
        return { u, y: matmul({ x: u, weight }) };
      };
      const { u, y: dbc } = start(); // [t, dInner], [t, dtRank + 2 dState]
      const { toDelta, ...selected } = this.#select(dbc, filled?.dtWeight ?? this.#dtWeight);
      return selectiveScanPacked({
        ...{ u, delta: matmul(toDelta), A, ...selected },
        z: xz.columns(dInner, 2 * dInner),
        ...{ offsets, slots, state: scanState },
      });
    });
  }

  /** The scan and `outProj` of sequences that start from nothing, for steps that are cheap to undo. */
  #recorded(xz: Tensor, { offsets, slots }: Batch) {
    const { dInner } = this.#config;
    const { A, convWeight } = this.#derived();
    const { u, product } = convProject({
      x: xz.columns(0, dInner),
      weight: convWeight,
      bias: this.#convBias,
      ...{ offsets, slots },
      projection: this.#xProj.weight,
    });
    const { toDelta, ...selected } = this.#select(product, this.#dtWeight);
    return {
      ...{ u, delta: derivedBy(matmul(toDelta), matmul, toDelta), A, ...selected },
      z: xz.columns(dInner, 2 * dInner),
      ...{ offsets, slots },
      projection: this.#outProj.weight,
      projectionBias: this.#outProj.bias,
    };
  }

  /** While gradients are recorded these are computed from the parameters, and not what is kept. */
  #derived() {
    const { dInner, dConv } = this.#config;
    return isRecording()
      ? { A: negExp({ x: this.#aLog }), convWeight: this.#conv.reshape([dInner, dConv]) }
      : { A: this.#A!, convWeight: this.#convWeight! };
  }

  /** What of the scan depends on its input, from x_proj's product [t, rank + 2 dState], and what does not. */
  #select(dbc: Tensor, dtWeight: Tensor) {
    const { dState, rmsEps } = this.#config;
    const [tokens, rank] = [dbc.shape[0]!, dtWeight.shape[1]!];
    const part = (begin: number, size: number) => {
      const x = dbc.columns(begin, begin + size);
      const weight = this.#ones?.get(size);
      return weight ? rmsNorm({ x, weight, eps: rmsEps! }) : x;
    };
    const group = (begin: number) => part(begin, dState).reshape([tokens, 1, dState]);
    return {
      toDelta: { x: part(0, rank), weight: dtWeight },
      B: group(rank),
      C: group(rank + dState),
      D: this.#D,
      deltaBias: this.#dtBias,
      deltaSoftplus: true,
    };
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
