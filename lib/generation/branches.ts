import { capture, type Graph } from '../capture';
import { DisposedError } from '../errors';
import type { Model } from '../models/model';
import type { State } from '../models/state';
import { copySlots, takeRows } from '../ops/elementwise';
import { sample } from '../ops/sample';
import { keep, scope, Tensor, type TypedArray } from '../tensor';
import { drawTensors } from './draw-tensors';
import { int32, type RowOptions } from './options';
import { Plan, type BranchRow, type Slots } from './plan';

/** How a block of tokens is drawn from: options of each row, and what only some generations need. */
export interface DrawOptions {
  readonly rows: readonly RowOptions[];
  /** Ids that are not drawn before `quiet`, and for each row the position where that ends. */
  readonly stop: readonly number[];
  readonly quiet: readonly number[];
}

/** What came of a block. Rows of `logits` and of what was drawn: `first(row) + i` follows i tokens of a branch. */
export interface Scanned {
  first(row: number): number;
  readonly tokens: Int32Array;
  readonly logprobs: Float32Array;
  /** f32[.., vocabSize]; until the next scan. */
  readonly logits: Tensor;
}

/**
 * Sequences with a second state each, in which a continuation is tried. One scan consumes what is
 * certain in the first state, and from the same beginning what is certain and what is tried in the
 * second, with logits after each tried token. If the trial holds, `promote` makes the second state
 * the first; if not, nothing has to be undone, for the first one never saw it.
 */
export class Branches {
  readonly model: Model;
  /** Two rows for each sequence. */
  readonly state: State;
  /** Which row is the first state of each sequence, and which the second. */
  readonly #slots: Slots[];
  readonly #draw: DrawOptions;
  readonly #capture: boolean;
  readonly #blocks = new Map<number, Block>();
  #last: { readonly plan: Plan; readonly logits: Tensor } | undefined;

  /** `state` becomes theirs. Blocks are padded to few sizes, each one recorded graph, where `capture` says so. */
  constructor(model: Model, state: State, draw: DrawOptions, capture: boolean) {
    this.model = model;
    this.state = state;
    const n = state.rows / 2;
    this.#slots = Array.from({ length: n }, (_, i) => ({ certain: i, tried: n + i }));
    this.#draw = draw;
    this.#capture = capture;
  }

  /** Tokens that are certain in row `row`, their marks, and the state's row where a trial goes on from them. */
  length(row: number): number {
    return this.state.lengths[this.#slots[row]!.certain]!;
  }
  marks(row: number): Uint32Array {
    return this.state.marks[this.#slots[row]!.certain]!;
  }
  triedSlot(row: number): number {
    return this.#slots[row]!.tried;
  }

  /** Scans what `rows` say; a row without an entry rests. Draws one token after each place. */
  async scan(rows: readonly (BranchRow | undefined)[]): Promise<Scanned> {
    this.model.check('generate');
    if (this.state.disposed) throw new DisposedError('generate: state is disposed');
    const plan = new Plan(rows, this.#slots, this.#capture);
    this.#forget();
    const block = this.#block(plan);
    let drawn: Promise<TypedArray>;
    try {
      block.run(plan);
      this.#last = { plan, logits: block.logits! };
      drawn = block.drawn.data();
    } finally {
      if (!this.#capture) block.disposeInputs();
    }
    rows.forEach((row, i) => row && this.state.consumed(this.#slots[i]!.certain, row.certain));
    const tokens = (await drawn) as Int32Array;
    const n = tokens.length / 2;
    return {
      first: (row) => plan.first(row),
      tokens: tokens.subarray(0, n),
      logprobs: new Float32Array(tokens.buffer, 4 * n, n),
      logits: block.logits!,
    };
  }

  /** Makes the trial of these rows certain: the states change places. */
  promote(rows: readonly number[], tried: readonly (readonly number[])[]): void {
    if (rows.length === 0) return;
    const { plan, logits } = this.#last!;
    for (const [i, row] of rows.entries()) {
      const { certain, tried: slot } = this.#slots[row]!;
      this.state.lengths[slot] = this.state.lengths[certain]!;
      this.state.marks[slot]!.set(this.state.marks[certain]!);
      this.#slots[row] = { certain: slot, tried: certain };
      this.state.consumed(slot, tried[i]!);
    }
    const ends = rows.map((row, i) => plan.first(row) + tried[i]!.length);
    const slots = rows.map((row) => this.#slots[row]!.certain);
    copyRows(this.state.device, [[logits, this.state.logits]], ends, slots);
  }

  /** Has the first states consume `left`, whatever was tried, and puts them into the first rows. */
  async catchUp(left: readonly (readonly number[])[]): Promise<void> {
    const { state } = this;
    const away = this.#slots.flatMap(({ certain }, row) => (certain === row ? [] : [row]));
    const from = away.map((row) => this.#slots[row]!.certain);
    copyStates(state, state, from, away);
    for (const row of away) this.#slots[row] = { certain: row, tried: this.#slots[row]!.certain };
    await this.model.run(
      left.map((ids) => Int32Array.from(ids)),
      state,
    );
  }

  /** A recorded block for all plans of its size, or one for this plan alone. */
  #block(plan: Plan): Block {
    const known = this.#blocks.get(plan.size);
    if (known) return known;
    const block = new Block(this.model, this.state, plan, this.#draw, this.#capture);
    if (this.#capture) this.#blocks.set(plan.size, block);
    return block;
  }

  /** Frees the logits of a block that was used once. */
  #forget(): void {
    if (!this.#capture) this.#last?.logits.dispose();
    this.#last = undefined;
  }

  dispose(): void {
    this.#forget();
    for (const block of this.#blocks.values()) block.dispose();
    this.state.dispose();
  }
}

/** Makes `state` what the first of its rows are in `from`. */
export function assign(state: State, from: State): void {
  const all = [...Array(state.rows).keys()];
  copyStates(from, state, all, all);
}

/** Rows `rows` of one state become rows `to` of another, or of itself. */
function copyStates(from: State, target: State, rows: readonly number[], to: readonly number[]): void {
  if (rows.length === 0) return;
  scope(() => {
    const pools = flatPools(from).map((pool, i) => [pool, flatPools(target)[i]!] as const);
    copyRows(target.device, [...pools, [from.logits, target.logits]], rows, to);
  });
  for (const [i, row] of rows.entries()) {
    target.lengths[to[i]!] = from.lengths[row]!;
    target.marks[to[i]!]!.set(from.marks[row]!);
  }
}

function copyRows(
  device: State['device'],
  pairs: readonly (readonly [Tensor, Tensor])[],
  rows: readonly number[],
  to: readonly number[],
): void {
  scope(() => {
    const [fromSlots, toSlots] = [rows, to].map((slots) =>
      Tensor.from(Int32Array.from(slots), [slots.length], { device }),
    ) as [Tensor, Tensor];
    for (const [from, target] of pairs) copySlots({ from, fromSlots, to: target, toSlots });
  });
}

/** Pools [rows, ...] as matrices. */
const flatPools = (state: State): Tensor[] =>
  state.pools.filter((pool) => pool.size > 0).map((pool) => pool.reshape([pool.shape[0]!, pool.stride]));

/** The tensors of one shape of scan, and the ops over them. */
class Block {
  readonly #model: Model;
  readonly #state: State;
  readonly #tensors: Tensor[] = [];
  readonly #input: Tensor; // i32[..]: all that changes from one scan to the next
  readonly #parts: ReadonlyMap<string, Tensor>;
  readonly #options: Parameters<typeof sample>[0];
  readonly #seen: Tensor | undefined;
  /** i32[2, n]: tokens and the bits of logprobs. */
  readonly drawn: Tensor;
  /** f32[n, vocabSize] */
  logits: Tensor | undefined;
  readonly graph: Graph<Tensor> | undefined;

  constructor(model: Model, state: State, plan: Plan, draw: DrawOptions, record: boolean) {
    this.#model = model;
    this.#state = state;
    const { device } = model;
    const own = (tensor: Tensor) => {
      this.#tensors.push(keep(tensor));
      return tensor;
    };
    const { places } = plan;
    const each = plan.rowOfPlace.map((row) => draw.rows[row]!);
    const ints = (values: readonly number[]) =>
      own(Tensor.from(Int32Array.from(values), [values.length], { device }));
    try {
      const { layout } = plan;
      this.#input = own(Tensor.empty([[...layout.values()].reduce((a, b) => a + b, 0)], 'i32', device));
      let at = 0;
      this.#parts = new Map(
        [...layout].map(([name, length]) => [name, own(this.#input.rows(at, (at += length)))]),
      );
      this.drawn = own(Tensor.empty([2, places], 'i32', device));
      const row = (i: number) => own(own(this.drawn.rows(i, i + 1)).reshape([places]));
      if (each.some(({ repetitionPenalty }) => repetitionPenalty !== 1))
        this.#seen = own(Tensor.empty([places, state.marks[0]!.length], 'i32', device));
      const holds = draw.stop.length > 0 && plan.rows.some((_, i) => draw.quiet[i]! > 0);
      this.#options = {
        logits: this.drawn, // replaced by each step's own
        ...drawTensors(device, each, own),
        ...(holds && {
          stop: ints(draw.stop),
          quiet: ints(plan.rowOfPlace.map((row) => Math.min(int32, draw.quiet[row]!))),
        }),
        ...(this.#seen && { seen: this.#seen }),
        position: this.#parts.get('position')!,
        token: row(0),
        logprob: own(row(1).as('f32')),
      };
      if (record) {
        this.graph = capture(device, () => this.#ops());
        this.logits = keep(this.graph.result);
      }
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Queues a scan. */
  run(plan: Plan): void {
    this.#input.set(plan.input(this.#state));
    if (this.#seen) this.#seen.set(plan.seen(this.#state));
    if (this.graph) this.graph.replay();
    else this.logits = keep(this.#ops());
  }

  #ops(): Tensor {
    const part = (name: string) => this.#parts.get(name)!;
    return scope(() => {
      for (const pool of flatPools(this.#state))
        copySlots({ from: pool, fromSlots: part('from'), to: pool, toSlots: part('to') });
      const batch = { offsets: part('offsets'), slots: part('slots') };
      const hidden = this.#model.step(part('ids'), batch, this.#state);
      const logits = this.#model.head(takeRows({ x: hidden, rows: part('places') }));
      // Where nothing certain is new the first logits are those that the state has.
      copySlots({ from: this.#state.logits, fromSlots: part('kept'), to: logits, toSlots: part('keptAt') });
      sample({ ...this.#options, logits });
      // Those after what is certain belong to the state.
      copySlots({ from: logits, fromSlots: part('firsts'), to: this.#state.logits, toSlots: part('moved') });
      return logits;
    });
  }

  /** All but the logits. */
  disposeInputs(): void {
    for (const tensor of this.#tensors) tensor.dispose();
  }

  dispose(): void {
    this.logits?.dispose();
    this.graph?.dispose();
    this.disposeInputs();
  }
}
