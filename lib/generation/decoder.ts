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
 * lives in tensors, so that a step is one recorded graph; the host may read one step behind.
 */
export class Decoder {
  readonly #model: Model;
  readonly #state: State;
  readonly #tensors: Tensor[] = [];
  readonly #batch: Batch;
  readonly #rows: Tensor; // i32[b]: 0, 1, ...
  readonly #token: Tensor; // i32[b]
  readonly #logprob: Tensor; // f32[b]
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
    const make = (values: TypedArray | readonly number[], shape: readonly number[]) => {
      const tensor = keep(Tensor.from(values, shape, { device }));
      this.#tensors.push(tensor);
      return tensor;
    };
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
      this.#token = ints(Array<number>(b).fill(0));
      this.#logprob = floats(Array<number>(b).fill(0));
      const marks = Int32Array.from(state.marks.flatMap((row) => [...row]));
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
        ...(stop.length > 0 && {
          stop: make(Int32Array.from(stop), [stop.length]),
          quiet: ints(options.map((o, i) => Math.min(2 ** 31 - 1, state.lengths[i]! + o.minNewTokens))),
        }),
        seen: make(marks, [b, marks.length / b]),
        position: ints(state.lengths),
        token: this.#token,
        logprob: this.#logprob,
      };
      this.#sample = () => sample(drawn);
      if (useGraph) this.#graph = capture(device, () => this.#step());
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Draws from the logits that the state holds, without moving on. */
  draw(): Promise<Drawn> {
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
    const [tokens, logprobs] = await Promise.all([this.#token.data(), this.#logprob.data()]);
    return { tokens: tokens as Int32Array, logprobs: logprobs as Float32Array };
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
