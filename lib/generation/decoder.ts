import { capture, type Graph } from '../capture';
import { DisposedError } from '../errors';
import type { Batch } from '../nn/mamba';
import type { Model } from '../models/model';
import type { State } from '../models/state';
import { copySlots } from '../ops/elementwise';
import { sample } from '../ops/sample';
import { keep, scope, Tensor, type TypedArray } from '../tensor';
import type { RowOptions } from './options';

/** What was drawn for each row. */
export interface Drawn {
  readonly tokens: Int32Array;
  readonly logprobs: Float32Array;
}

/**
 * Draws tokens on the device and feeds them back, one step a call. What varies from step to step
 * lives in tensors, so that a step is one recorded graph; the host may read one step behind. Can be
 * made while the prompts still run: what they leave in the state is looked at by the first `draw`.
 */
export class Decoder {
  readonly #model: Model;
  readonly #state: State;
  readonly #tensors: Tensor[] = [];
  readonly #batch: Batch;
  readonly #rows: Tensor; // i32[b]: 0, 1, ...
  readonly #drawn: Tensor; // i32[2, b]: tokens and the bits of logprobs, so that one read takes both
  readonly #token: Tensor; // i32[b], its first row
  readonly #seen: Tensor; // i32[b, words]
  readonly #position: Tensor; // i32[b]
  readonly #quiet: Tensor | undefined; // i32[b]
  readonly #minNewTokens: readonly number[];
  readonly #sample: () => void;
  readonly #active: Int32Array;
  #graph: Graph | undefined;

  constructor(
    model: Model,
    state: State,
    options: readonly RowOptions[],
    stop: readonly number[],
    useGraph: boolean,
  ) {
    this.#model = model;
    this.#state = state;
    const b = state.rows;
    const { device } = model;
    const own = (tensor: Tensor) => {
      this.#tensors.push(keep(tensor));
      return tensor;
    };
    const make = (values: TypedArray | readonly number[], shape: readonly number[]) =>
      own(Tensor.from(values, shape, { device }));
    try {
      const ints = (values: Iterable<number>) => make(Int32Array.from(values), [b]);
      const floats = (values: readonly number[]) => make(Float32Array.from(values), [b]);
      this.#active = Int32Array.from({ length: b }, (_, i) => i);
      this.#rows = ints(this.#active);
      this.#batch = {
        offsets: make(
          Int32Array.from({ length: b + 1 }, (_, i) => i),
          [b + 1],
        ),
        slots: ints(this.#active),
      };
      const row = (i: number) => own(own(this.#drawn.rows(i, i + 1)).reshape([b]));
      this.#drawn = make(new Int32Array(2 * b), [2, b]);
      this.#token = row(0);
      const words = state.marks[0]!.length;
      this.#seen = make(new Int32Array(b * words), [b, words]);
      this.#position = ints(new Int32Array(b));
      this.#quiet = stop.length > 0 ? ints(new Int32Array(b)) : undefined;
      this.#minNewTokens = options.map((o) => o.minNewTokens);
      const seeds = Int32Array.from(
        options.flatMap(({ seed }) => [
          Number(BigInt.asIntN(32, seed)),
          Number(BigInt.asIntN(32, seed >> 32n)),
        ]),
      );
      const drawn = {
        logits: state.logits,
        temperature: floats(options.map((o) => o.temperature)),
        topK: ints(options.map((o) => o.topK)),
        topP: floats(options.map((o) => o.topP)),
        minP: floats(options.map((o) => o.minP)),
        penalty: floats(options.map((o) => o.repetitionPenalty)),
        seed: make(seeds, [b, 2]),
        ...(this.#quiet && { stop: make(Int32Array.from(stop), [stop.length]), quiet: this.#quiet }),
        seen: this.#seen,
        position: this.#position,
        token: this.#token,
        logprob: own(row(1).as('f32')),
      };
      this.#sample = () => sample(drawn);
      if (useGraph) this.#graph = capture(device, () => this.#step());
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Draws from the logits that the state holds, without moving on: what a generation begins with. */
  draw(): Promise<Drawn> {
    const { lengths, marks } = this.#state;
    this.#seen.set(Int32Array.from(marks.flatMap((row) => [...row])));
    this.#position.set(Int32Array.from(lengths));
    const quiet = this.#minNewTokens.map((count, i) => Math.min(2 ** 31 - 1, lengths[i]! + count));
    this.#quiet?.set(Int32Array.from(quiet));
    this.#sample();
    return this.#read();
  }

  /** Feeds the tokens that were drawn, and draws the next ones. */
  next(): Promise<Drawn> {
    this.#model.check('generate');
    if (this.#state.disposed) throw new DisposedError('generate: state is disposed');
    if (this.#graph) this.#graph.replay();
    else this.#step();
    return this.#read();
  }

  #step(): void {
    scope(() => {
      const hidden = this.#model.step(this.#token, this.#batch, this.#state);
      const logits = this.#model.head(hidden);
      // Rows that have ended keep the logits that they ended with.
      copySlots({ from: logits, fromSlots: this.#rows, to: this.#state.logits, toSlots: this.#batch.slots });
      this.#sample();
    });
  }

  async #read(): Promise<Drawn> {
    const tokens = (await this.#drawn.data()) as Int32Array;
    const b = tokens.length / 2;
    return { tokens: tokens.subarray(0, b), logprobs: new Float32Array(tokens.buffer, 4 * b, b) };
  }

  /** From the next step on, row `row` no longer moves. */
  end(row: number): void {
    this.#active[row] = -1;
    this.#batch.slots.set(this.#active);
  }

  dispose(): void {
    this.#graph?.dispose();
    for (const tensor of this.#tensors) tensor.dispose();
  }
}
