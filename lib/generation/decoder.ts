import { capture, type Graph } from '../capture';
import { DeviceError, DisposedError } from '../errors';
import type { Batch } from '../nn/mamba';
import type { Model } from '../models/model';
import type { State } from '../models/state';
import { copySlots } from '../ops/elementwise';
import { sample } from '../ops/sample';
import { keep, scope, Tensor } from '../tensor';
import { int32, seedWords, type RowOptions } from './options';

/** What was drawn for each row. */
export interface Drawn {
  readonly tokens: Int32Array;
  readonly logprobs: Float32Array;
}

/** What a recorded step depends on, besides the model and the state. All other options are values in tensors. */
export interface DecoderKind {
  readonly rows: number;
  /** Whether tokens are noted on the device, which a repetition penalty needs. */
  readonly seen: boolean;
  /** How many ids are held back before `minNewTokens`; 0 where no row asks for it. */
  readonly stops: number;
  /** Whether a step is one recorded graph. */
  readonly capture: boolean;
  /** Whether the state is used after the generation: then it needs the logits of each row's end. */
  readonly outlived: boolean;
}

export const decoderKind = (
  options: readonly RowOptions[],
  stop: readonly number[],
  { capture, outlived }: Pick<DecoderKind, 'capture' | 'outlived'>,
): DecoderKind => ({
  rows: options.length,
  seen: options.some(({ repetitionPenalty }) => repetitionPenalty !== 1),
  stops: options.some(({ minNewTokens }) => minNewTokens > 0) ? stop.length : 0,
  capture,
  outlived,
});

/** How many steps `several` takes at once. */
export const together = 4;
/** A decoder that has taken so many is worth another recording. */
const stepsBefore = 64;
const last = together - 1;

const bitsOf = new DataView(new ArrayBuffer(8));
/** Part `i` of so many. */
function drawnOf(data: Int32Array, i: number, parts = together): Drawn {
  const b = data.length / (2 * parts);
  const part = data.slice(2 * b * i, 2 * b * (i + 1));
  return { tokens: part.subarray(0, b), logprobs: new Float32Array(part.buffer, 4 * b, b) };
}

const floatBits = (x: number) => {
  bitsOf.setFloat32(0, x);
  return bitsOf.getInt32(0);
};

/**
 * Draws tokens on the device and feeds them back, one step a call. What varies from step to step
 * lives in tensors, so that a step is one recorded graph; the host may read one step behind. Can be
 * made while the prompts still run: what they leave in the state is looked at by `draw`, which begins
 * a generation; a decoder can be used for one after another.
 */
export class Decoder {
  readonly #model: Model;
  readonly #state: State;
  readonly #kind: DecoderKind;
  readonly #tensors: Tensor[] = [];
  readonly #values: Tensor; // i32[..]: all that `draw` sets, one after the other
  readonly #batch: Batch;
  readonly #drawn: Tensor; // i32[together, 2, b]: tokens and the bits of logprobs, so that one read takes both
  readonly #tokens: readonly Tensor[]; // i32[b] each, of its parts. The last one begins the next step
  readonly #lastDrawn: Tensor; // i32[2, b], its last part
  readonly #moved: Tensor; // i32[b]: rows whose logits go to the state, or -1
  readonly #seen: Tensor | undefined; // i32[b, words]
  readonly #sample: (logits: Tensor, part: number) => void;
  /** i32[b]: the row of the state that each sequence moves on in, or -1. */
  readonly #slots: Int32Array;
  #ended: number[] = [];
  #graph: Graph<Tensor> | undefined;
  #several: Graph<void> | undefined;
  /** f32[b, vocabSize]: of the last step. The state has those that `draw` began with. */
  #logits: Tensor | undefined;
  #stepped = false;
  #steps = 0;
  /** Whether there is room for the recording of `several`, as far as is known. */
  #room = true;

  constructor(model: Model, state: State, kind: DecoderKind) {
    this.#model = model;
    this.#state = state;
    this.#kind = kind;
    const { rows: b, stops } = kind;
    const { device } = model;
    const own = (tensor: Tensor) => {
      this.#tensors.push(keep(tensor));
      return tensor;
    };
    this.#slots = Int32Array.from({ length: b }, (_, i) => i);
    try {
      this.#values = own(Tensor.empty([11 * b + stops], 'i32', device));
      let at = 0;
      const ints = (count = b) => own(this.#values.rows(at, (at += count)));
      const floats = () => own(ints().as('f32'));
      this.#drawn = own(Tensor.empty([2 * together, b], 'i32', device));
      const row = (i: number) => own(own(this.#drawn.rows(i, i + 1)).reshape([b]));
      const parts = Array.from({ length: together }, (_, i) => ({
        token: row(2 * i),
        logprob: own(row(2 * i + 1).as('f32')),
      }));
      this.#tokens = parts.map(({ token }) => token);
      this.#lastDrawn = own(this.#drawn.rows(2 * last, 2 * together));
      if (kind.seen) this.#seen = own(Tensor.empty([b, state.marks[0]!.length], 'i32', device));
      const offsets = Tensor.from(
        Int32Array.from({ length: b + 1 }, (_, i) => i),
        [b + 1],
        { device },
      );
      this.#batch = { offsets: own(offsets), slots: ints() };
      // In the order of `draw`.
      const args = {
        temperature: floats(),
        topK: ints(),
        topP: floats(),
        minP: floats(),
        penalty: floats(),
        position: ints(),
        quiet: ints(),
        seed: own(ints(2 * b).reshape([b, 2])),
        ...(this.#seen && { seen: this.#seen }),
      };
      this.#moved = ints();
      const held = stops > 0 ? { ...args, stop: ints(stops) } : args;
      this.#sample = (logits, part) => sample({ ...held, ...parts[part]!, logits });
      if (kind.capture) {
        this.#graph = capture(device, () => this.#step(last, last));
        this.#logits = keep(this.#graph.result);
      }
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Begins a generation: draws from the logits that the state holds, without moving on. */
  draw(options: readonly RowOptions[], stop: readonly number[]): Promise<Drawn> {
    const { lengths, marks } = this.#state;
    const { rows: b, stops } = this.#kind;
    for (let i = 0; i < b; i++) this.#slots[i] = i;
    this.#ended = [];
    this.#stepped = false;
    const values = new Int32Array(11 * b + stops);
    values.set(this.#slots);
    options.forEach((row, i) => {
      const words = [
        floatBits(row.temperature),
        row.topK,
        floatBits(row.topP),
        floatBits(row.minP),
        floatBits(row.repetitionPenalty),
        lengths[i]!,
        Math.min(int32, lengths[i]! + row.minNewTokens),
      ];
      words.forEach((word, j) => (values[(1 + j) * b + i] = word));
      values.set(seedWords(row.seed), 8 * b + 2 * i);
    });
    if (stops > 0) values.set(stop, 11 * b);
    this.#values.set(values);
    if (this.#seen) {
      const words = marks[0]!.length;
      const seen = new Int32Array(b * words);
      marks.forEach((row, i) => seen.set(row, i * words));
      this.#seen.set(seen);
    }
    this.#sample(this.#state.logits, last);
    return this.#read(this.#lastDrawn);
  }

  /** Feeds the tokens that were drawn, and draws the next ones. */
  next(): Promise<Drawn> {
    this.#ready();
    if (this.#graph) this.#graph.replay();
    else {
      this.#logits?.dispose();
      this.#logits = keep(this.#step(last, last));
    }
    this.#stepped = true;
    this.#steps++;
    return this.#read(this.#lastDrawn);
  }

  /** Whether `several` is worth its recording; only of a state that is not used afterwards. */
  get takesSeveral(): boolean {
    return this.#room && this.#kind.capture && !this.#kind.outlived && this.#steps >= stepsBefore;
  }

  /**
   * `next`, `together` times at once: one graph and one read, so that the device goes from one step to the
   * next without the host. Only once where there is no room for that graph: single steps need no more.
   */
  several(): Promise<Drawn>[] {
    this.#ready();
    try {
      this.#several ??= capture(this.#model.device, () => {
        for (let i = 0; i < together; i++) scope(() => void this.#step((i + last) % together, i));
      });
    } catch (error) {
      if (!(error instanceof DeviceError && error.message.includes('out of memory'))) throw error;
      this.#room = false;
      return [this.next()];
    }
    this.#several.replay();
    this.#steps += together;
    const all = this.#drawn.data() as Promise<Int32Array>;
    return this.#tokens.map(async (_, i) => drawnOf(await all, i));
  }

  #ready(): void {
    this.#model.check('generate');
    if (this.#state.disposed) throw new DisposedError('generate: state is disposed');
    this.#settle(this.#ended);
  }

  /** Feeds the tokens of one part of what is drawn, and draws another one. */
  #step(from: number, to: number): Tensor {
    return scope(() => {
      const hidden = this.#model.step(this.#tokens[from]!, this.#batch, this.#state);
      const logits = this.#model.head(hidden);
      this.#sample(logits, to);
      return logits;
    });
  }

  async #read(drawn: Tensor): Promise<Drawn> {
    return drawnOf((await drawn.data()) as Int32Array, 0, 1);
  }

  /** From the next step on, row `row` no longer moves. */
  end(row: number): void {
    this.#slots[row] = -1;
    this.#ended.push(row);
  }

  /** Ends a generation. Where its state goes on, that gets the logits of all rows. */
  finish(): void {
    this.#settle([...this.#ended, ...this.#slots.filter((slot) => slot >= 0)]);
    if (!this.#graph) this.#logits?.dispose();
  }

  /** Leaves in the state the logits of `rows`; those that have ended move no further. */
  #settle(rows: readonly number[]): void {
    if (rows.length === 0 || this.#state.disposed) return;
    if (this.#kind.outlived && this.#stepped) {
      const moved = new Int32Array(this.#slots.length).fill(-1);
      for (const row of rows) moved[row] = row;
      this.#moved.set(moved); // not a new tensor: at the end of a generation nothing may fail
      const { logits } = this.#state;
      copySlots({ from: this.#logits!, fromSlots: this.#moved, to: logits, toSlots: this.#moved });
    }
    this.#batch.slots.set(this.#slots);
    this.#ended = [];
  }

  dispose(): void {
    this.#logits?.dispose();
    this.#graph?.dispose();
    this.#several?.dispose();
    for (const tensor of this.#tensors) tensor.dispose();
  }
}
