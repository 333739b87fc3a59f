import { capture, type Graph } from '../capture';
import type { Reserve } from '../device';
import type { Model } from '../models/model';
import type { State } from '../models/state';
import { copySlots, takeRows } from '../ops/elementwise';
import { keep, scope, Tensor } from '../tensor';

/** More tokens keep a GPU busy for longer than it takes to queue their ops. */
const mostTokens = 4096;
/** Of one state, and tokens in them: each has memory for what is between its ops. */
const [mostKept, mostTokensKept] = [16, 8192];

/** Steps of an eighth or less, of eight tokens at least, so that few sizes are recorded. */
const sizeFor = (tokens: number): number => {
  const step = Math.min(128, Math.max(8, 2 ** Math.ceil(Math.log2(tokens)) / 16));
  return Math.ceil(tokens / step) * step;
};

/** A recorded pass over prompts of one size together, and what it reads. */
interface Recording {
  readonly size: number;
  readonly tensors: readonly Tensor[];
  readonly input: Tensor; // i32[..], see `inputOf`
  readonly graph: Graph | undefined;
  readonly run: () => void;
}

/**
 * Reads short prompts into a state that has seen nothing. On a GPU it takes longer to queue their ops than to
 * run them, so that these are recorded, once for each of a few sizes: the tokens that are missing of a size are a
 * sequence without a state.
 */
export class PromptGraphs implements Reserve {
  /** What they hold counts with their state. */
  readonly tensors = 0;
  readonly used = 0;
  readonly #model: Model;
  readonly #state: State;
  readonly #capture: boolean;
  readonly #recordings: Recording[] = []; // the longest unused first

  /** `capture` false: the same passes, each op called. */
  constructor(model: Model, state: State, capture: boolean) {
    this.#model = model;
    this.#state = state;
    this.#capture = capture;
    model.device.addReserve(this);
  }

  /** Whether such prompts are read faster in this way: few tokens, but not one for each. */
  static fits(model: Model, sequences: readonly Int32Array[]): boolean {
    const tokens = sequences.reduce((sum, { length }) => sum + length, 0);
    return model.device.id !== 'cpu' && tokens > sequences.length && tokens <= mostTokens;
  }

  /** Queues all of `sequences`, none of them empty, one for each row of the state. */
  run(sequences: readonly Int32Array[]): void {
    this.#model.check('generate');
    const tokens = sequences.reduce((sum, { length }) => sum + length, 0);
    const size = sizeFor(tokens);
    const recording = this.#take(size, tokens < size);
    try {
      recording.input.set(inputOf(sequences, size));
      recording.run();
    } catch (error) {
      dispose(recording);
      throw error;
    }
    this.#recordings.push(recording);
    const kept = () => this.#recordings.reduce((sum, { size }) => sum + size, 0);
    while (this.#recordings.length > mostKept || kept() > mostTokensKept) dispose(this.#recordings.shift()!);
    sequences.forEach((ids, row) => this.#state.consumed(row, ids));
  }

  /** The recording of that size, while it is used not among those that may be freed. */
  #take(size: number, padded: boolean): Recording {
    const all = size + 4 * this.#state.rows + 1 + (padded ? 2 : 0);
    const found = this.#recordings.findIndex((each) => each.size === size && each.input.size === all);
    return found >= 0 ? this.#recordings.splice(found, 1)[0]! : this.#record(size, padded, all);
  }

  #record(size: number, padded: boolean, all: number): Recording {
    const { device } = this.#model;
    const { rows } = this.#state;
    const tensors: Tensor[] = [];
    const own = (tensor: Tensor) => {
      tensors.push(keep(tensor));
      return tensor;
    };
    try {
      const input = own(Tensor.empty([all], 'i32', device));
      let at = 0;
      const ints = (count: number) => own(input.rows(at, (at += count)));
      const pieces = rows + (padded ? 1 : 0);
      // In the order of `inputOf`.
      const ids = ints(size);
      const batch = { offsets: ints(pieces + 1), slots: ints(pieces) };
      const [lasts, numbers] = [ints(rows), ints(rows)];
      const run = () =>
        scope(() => {
          const hidden = this.#model.step(ids, batch, this.#state);
          const from = this.#model.head(takeRows({ x: hidden, rows: lasts }));
          copySlots({ from, fromSlots: numbers, to: this.#state.logits, toSlots: numbers });
        });
      const graph = this.#capture ? capture(device, run) : undefined;
      return { size, tensors, input, graph, run: graph ? () => graph.replay() : run };
    } catch (error) {
      for (const tensor of tensors) tensor.dispose();
      throw error;
    }
  }

  /** What was recorded goes; it may still run. */
  free(): void {
    for (const recording of this.#recordings.splice(0)) dispose(recording);
  }
}

function dispose({ graph, tensors }: Recording): void {
  graph?.dispose();
  for (const tensor of tensors) tensor.dispose();
}

/** ids, offsets, slots, the last token of each sequence, and the numbers of the sequences. */
function inputOf(sequences: readonly Int32Array[], size: number): Int32Array {
  const numbers = [...sequences.keys()];
  const ends: number[] = [];
  for (const { length } of sequences) ends.push((ends.at(-1) ?? 0) + length);
  const missing = size - ends.at(-1)!;
  const input = new Int32Array(size + 4 * sequences.length + 1 + (missing > 0 ? 2 : 0));
  sequences.forEach((ids, i) => input.set(ids, ends[i]! - ids.length));
  const nobody = missing > 0;
  input.set(
    [
      ...[0, ...ends, ...(nobody ? [size] : [])],
      ...[...numbers, ...(nobody ? [-1] : [])],
      ...ends.map((end) => end - 1),
      ...numbers,
    ],
    size,
  );
  return input;
}
