import { setImmediate } from 'node:timers/promises';
import { checkFlag, checkNames, kindOf } from '../arguments';
import type { Device } from '../device';
import { DisposedError } from '../errors';
import type { Batch } from '../nn/mamba';
import { linearCrossEntropy } from '../nn/loss';
import type { Routing } from '../nn/moe';
import { countParameters, type Weights } from '../nn/weights';
import { copySlots, takeRows, zeroSlots } from '../ops/elementwise';
import { crossEntropy } from '../ops/loss';
import { keep, scope, Tensor } from '../tensor';
import type { Backbone, CommonConfig } from './family';
import { integerRows, pack, targetsOf } from './inputs';
import { inputNames, type ForwardInput, type ForwardOutput } from './forward';
import { matmul } from '../ops/matmul';
import { chunked, chunkTokens, mutedRows, type Piece } from './pieces';
import { RouterRecord } from './router';
import { checkState, State, type StateLayout } from './state';
import { unpack } from './unpack';

/** The tokens of pieces, one after the other. */
function idsOf(pieces: readonly Piece[], sequences: readonly Int32Array[]): Int32Array {
  const ids = new Int32Array(pieces.reduce((sum, { begin, end }) => sum + end - begin, 0));
  let at = 0;
  for (const { row, begin, end } of pieces) {
    ids.set(sequences[row]!.subarray(begin, end), at);
    at += end - begin;
  }
  return ids;
}

/** A language model on a device: parameters, and the computation over them. */
export class Model<C extends CommonConfig = CommonConfig> {
  readonly config: C;
  readonly device: Device;
  readonly stateLayout: StateLayout;
  readonly backbone: Backbone;
  protected readonly weights: Weights;
  #disposed = false;

  constructor(config: C, device: Device, backbone: Backbone, weights: Weights) {
    this.config = config;
    this.device = device;
    this.backbone = backbone;
    this.weights = weights;
    const { modelType, vocabSize } = config;
    this.stateLayout = { modelType, vocabSize, parts: backbone.stateParts };
  }

  /** All parameters by the checkpoint's names. */
  get parameters(): ReadonlyMap<string, Tensor> {
    return this.weights.parameters;
  }

  get numParameters(): number {
    return countParameters(this.parameters);
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Throws when the model is disposed. */
  check(call: string): void {
    if (this.#disposed) throw new DisposedError(`${call}: model is disposed`);
  }

  /** A state of `rows` sequences that have seen nothing yet. */
  createState(rows = 1): State {
    this.check('createState');
    if (!Number.isInteger(rows) || rows < 1) {
      throw new RangeError(
        `createState: rows is ${typeof rows === 'number' ? rows : kindOf(rows)}, expected a whole number, 1 or more`,
      );
    }
    return new State(this.device, this.stateLayout, rows);
  }

  /** The state in `bytes` that `State.snapshot` made, in this process or another. */
  restoreState(bytes: Uint8Array): State {
    this.check('restoreState');
    return State.restore(bytes, this.device, this.stateLayout);
  }

  /** Whether `state` belongs to a model like this one, on this device. */
  checkState(call: string, state: State, rows: number): void {
    checkState(call, state, this.device, this.stateLayout, rows);
  }

  /** Queues one step: ids i32[t] through all layers. Ops only, so that it can be captured. */
  step(ids: Tensor, batch: Batch, state: State, visit?: (hidden: Tensor) => void): Tensor {
    return this.backbone.forward(ids, batch, state.pools, visit);
  }

  /** `factor` · Σ cross-entropy of packed sequences that start from nothing: ids and labels i32[t]. Ops only. */
  loss(ids: Tensor, batch: Batch, labels: Tensor, factor: Tensor): Tensor {
    const x = () => this.backbone.forward(ids, batch, []);
    return scope(() => linearCrossEntropy({ x: x(), ...this.backbone.head, labels, factor }));
  }

  /** After the parameters have changed: what is computed from them once is computed again. */
  refresh = (): void => scope(() => this.backbone.ready());

  /** Normalised hidden states [t, hiddenSize] to logits f32[t, vocabSize]. */
  head(hidden: Tensor): Tensor {
    const { weight, bias } = this.backbone.head;
    return matmul({ x: hidden, weight, bias, dtype: 'f32' });
  }

  /**
   * Runs `sequences` (row i continues row i of `state`) chunk by chunk, letting the event loop
   * breathe in between. `each` is called once a chunk, inside a scope, with the normalised output
   * [t, hiddenSize] of the pieces in it. The state's `logits` are those of each last token.
   */
  async run(
    sequences: readonly Int32Array[],
    state: State,
    options: {
      /** For sequences that have some: which of their tokens are padding in the middle, as `Dense`. */
      readonly muted?: readonly (Int32Array | undefined)[];
      readonly signal?: AbortSignal;
      /** Nobody will ask for the state afterwards, and it is a new one. */
      readonly forget?: boolean;
      readonly visit?: (layer: number, hidden: Tensor, pieces: readonly Piece[]) => void;
      readonly router?: (routing: Routing, pieces: readonly Piece[]) => void;
      readonly each?: (hidden: Tensor, pieces: readonly Piece[]) => void;
      /** False: until the last chunk is queued, not until it has run. The first is queued at once. */
      readonly wait?: boolean;
    } = {},
  ): Promise<void> {
    let before: Promise<number> | undefined;
    const lengths = sequences.map(({ length }) => length);
    const chunks = chunked(lengths, chunkTokens(this.device.id));
    for (const [i, pieces] of chunks.entries()) {
      options.signal?.throwIfAborted();
      this.check('forward');
      scope(() => {
        const ids = idsOf(pieces, sequences);
        const lengths = pieces.map(({ begin, end }) => end - begin);
        const muted = mutedRows(pieces, options.muted);
        const whole = pieces.every(({ row, begin, end }) => begin === 0 && end === sequences[row]!.length);
        const batch = {
          ...this.batch(
            lengths,
            pieces.map(({ row }) => row),
          ),
          ...(muted.length > 0 && { muted: this.#ints(muted) }),
          ...(options.forget && whole && { longest: Math.max(...lengths) }),
          ...(options.router && { router: (routing: Routing) => options.router!(routing, pieces) }),
        };
        let layer = 0;
        const visit = options.visit && ((hidden: Tensor) => options.visit!(layer++, hidden, pieces));
        const hidden = this.step(this.#ints(ids), batch, state, visit);
        options.each?.(hidden, pieces);
        this.#keepLastLogits(hidden, pieces, sequences, state);
      });
      for (const { row, begin, end } of pieces) state.consumed(row, sequences[row]!.subarray(begin, end));
      if (options.wait === false && i === chunks.length - 1) return;
      // One chunk is under way while the next one is queued. A fast device's promises settle within one
      // turn of the event loop: others get theirs here.
      await before;
      await setImmediate();
      before = this.device.stamp();
    }
    await before;
  }

  /** offsets and slots for pieces of these lengths. */
  batch(lengths: readonly number[], slots: readonly number[]): Batch {
    let sum = 0;
    return {
      offsets: this.#ints([0, ...lengths.map((length) => (sum += length))]),
      slots: this.#ints(slots),
    };
  }

  #ints(values: ArrayLike<number>): Tensor {
    return Tensor.from(Int32Array.from(values), [values.length], { device: this.device });
  }

  #keepLastLogits(
    hidden: Tensor,
    pieces: readonly Piece[],
    sequences: readonly Int32Array[],
    state: State,
  ): void {
    const rows: number[] = [];
    const slots: number[] = [];
    let at = 0;
    for (const { row, begin, end } of pieces) {
      at += end - begin;
      if (end !== sequences[row]!.length) continue;
      rows.push(at - 1);
      slots.push(row);
    }
    if (rows.length === 0) return;
    const logits = this.head(takeRows({ x: hidden, rows: this.#ints(rows) }));
    copySlots({
      from: logits,
      fromSlots: this.#ints([...rows.keys()]),
      to: state.logits,
      toSlots: this.#ints(slots),
    });
  }

  /**
   * The model's output for whole sequences, as transformers' `forward`. Padding on the left or right
   * changes nothing; a masked token in the middle has no input to the mixers, but time passes.
   * Long inputs are run in chunks; only reading the results waits.
   * @throws TypeError, RangeError for bad arguments, before any work.
   */
  async forward(input: ForwardInput): Promise<ForwardOutput> {
    this.check('forward');
    checkNames('forward', input, inputNames);
    const { vocabSize, hiddenSize, numLayers } = this.config;
    const { logitsToKeep = 0 } = input;
    for (const name of ['outputHiddenStates', 'outputRouter'] as const)
      checkFlag('forward', name, input[name]);
    const rows = await integerRows('forward', 'inputIds', input.inputIds, 0, vocabSize - 1);
    const mask =
      input.attentionMask && (await integerRows('forward', 'attentionMask', input.attentionMask, 0, 1));
    const labels =
      input.labels && (await integerRows('forward', 'labels', input.labels, -100, vocabSize - 1));
    const dense = pack('forward', rows, mask);
    const { batch, length } = dense;
    if (!Number.isInteger(logitsToKeep) || logitsToKeep < 0) {
      throw new RangeError(`forward: logitsToKeep is ${logitsToKeep}, expected a whole number, 0 or more`);
    }
    const targets = labels && targetsOf('forward', labels, rows, dense);
    if (targets && logitsToKeep > 0)
      throw new TypeError('forward: labels need all logits, logitsToKeep keeps some');
    this.check('forward');
    if (input.state) this.checkState('forward', input.state, batch);

    const first = logitsToKeep === 0 ? 0 : Math.max(0, length - logitsToKeep);
    const state = input.state ?? this.createState(batch);
    const release = state.acquire('forward');
    const made: Tensor[] = [];
    const record = input.outputRouter ? new RouterRecord(this.device, dense) : undefined;
    const place = (columns: number, size: number) => {
      const out = keep(Tensor.empty([batch * columns, size], 'f32', this.device));
      made.push(out);
      scope(() => zeroSlots({ pool: out, slots: this.#ints([...Array(batch * columns).keys()]) }));
      return out;
    };
    try {
      const logits = place(length - first, vocabSize);
      const hidden = input.outputHiddenStates
        ? Array.from({ length: numLayers + 1 }, () => place(length, hiddenSize))
        : undefined;
      await this.run(dense.sequences, state, {
        muted: dense.muted,
        forget: !input.state,
        visit: hidden && ((layer, x, pieces) => unpack(x, pieces, dense, 0, hidden[layer]!)),
        router: record && ((routing, pieces) => record.see(routing, pieces)),
        each: (x, pieces) => {
          if (hidden) unpack(x, pieces, dense, 0, hidden[numLayers]!);
          unpack(x, pieces, dense, first, logits, (chosen) => this.head(chosen));
        },
      });
      const router = record && (await record.outputs());
      const loss = targets && (await this.#loss(logits, targets));
      const shaped = (tensor: Tensor) => tensor.reshape([batch, tensor.shape[0]! / batch, tensor.shape[1]!]);
      return {
        logits: keep(shaped(logits)),
        ...(hidden && { hiddenStates: hidden.map((tensor) => keep(shaped(tensor))) }),
        ...(router && { router }),
        ...(loss !== undefined && { loss }),
      };
    } finally {
      release();
      record?.dispose();
      for (const tensor of made) tensor.dispose();
      if (!input.state) state.dispose();
    }
  }

  async #loss(logits: Tensor, targets: Int32Array): Promise<number> {
    const losses = scope(() => crossEntropy({ logits, labels: this.#ints(targets) }));
    const values = (await losses.data().finally(() => losses.dispose())) as Float32Array;
    return values.reduce((sum, value) => sum + value, 0) / targets.filter((target) => target >= 0).length;
  }

  /** Frees the parameters. Generations that are under way end with a `DisposedError`. */
  dispose(): void {
    this.#disposed = true;
    this.backbone.dispose();
    this.weights.dispose();
  }
}
