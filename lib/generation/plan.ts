import type { State } from '../models/state';

/** What a scan does with one sequence; the trial begins after what is certain. */
export interface BranchRow {
  /** Tokens that the first state consumes. */
  readonly certain: readonly number[];
  /** Tokens that only the second state consumes, after the certain ones. */
  readonly tried: readonly number[];
  /** Whether the second state follows even where nothing is tried. */
  readonly branch?: boolean;
}

/** The state's rows of one sequence. */
export interface Slots {
  readonly certain: number;
  readonly tried: number;
}

interface Piece {
  readonly slot: number;
  readonly ids: readonly number[];
}

/** Sizes that blocks are padded to, so that few graphs are recorded. */
const sizeFor = (tokens: number) => (tokens === 0 ? 0 : 2 ** Math.max(2, Math.ceil(Math.log2(tokens))));

/**
 * The packed tokens of a scan. Every row has two sequences, of its first and its second state, and as
 * many places (of logits) as there may be tried tokens and one more. A padded plan has the same
 * shapes for all scans of its size: sequences without anything to do are one token without a state,
 * and one more such sequence takes up the rest.
 */
export class Plan {
  readonly rows: readonly (BranchRow | undefined)[];
  /** Of the longest trial, or of what a padded plan has room for. */
  readonly size: number;
  /** Places in all, and the row of each. */
  readonly places: number;
  readonly rowOfPlace: readonly number[];
  readonly #slots: readonly Slots[];
  readonly #padded: boolean;
  readonly #pieces: Piece[] = [];
  readonly #places: number[] = []; // packed rows
  readonly #tokens: number;

  constructor(rows: readonly (BranchRow | undefined)[], slots: readonly Slots[], padded: boolean) {
    this.rows = rows;
    this.#slots = [...slots];
    this.#padded = padded;
    const n = rows.length;
    const longest = Math.max(
      0,
      ...rows.map((row) => Math.max(row?.tried.length ?? 0, (row?.certain.length ?? 0) - 1)),
    );
    const tried = Math.max(0, ...rows.map((row) => row?.tried.length ?? 0));
    this.size = padded ? sizeFor(longest) : tried;
    this.places = n * (this.size + 1);
    this.rowOfPlace = Array.from({ length: this.places }, (_, i) => Math.floor(i / (this.size + 1)));
    let at = 0;
    rows.forEach((row, i) => {
      const { certain = [], tried = [], branch = false } = row ?? {};
      const branches = tried.length > 0 || branch;
      const begin = at;
      at += this.#add(slots[i]!.certain, certain);
      const second = at;
      at += this.#add(slots[i]!.tried, branches ? [...certain, ...tried] : []);
      // Of the token before the first place: the last certain one, wherever it was scanned.
      const first = (branches ? second : begin) + certain.length - 1;
      for (let j = 0; j <= this.size; j++)
        this.#places.push(Math.max(0, Math.min(first + Math.min(j, tried.length), at - 1)));
    });
    // A first state's size + 1 tokens, a second one's 2 size + 1, and one at least of nobody.
    const room = padded ? n * (3 * this.size + 2) + 1 : Math.max(at, 1);
    if (room > at) at += this.#add(-1, Array<number>(room - at).fill(0));
    this.#tokens = at;
  }

  /** Adds a sequence; without tokens a padded plan has one that belongs to nobody. */
  #add(slot: number, ids: readonly number[]): number {
    if (ids.length > 0) this.#pieces.push({ slot, ids });
    else if (this.#padded) this.#pieces.push({ slot: -1, ids: [0] });
    else return 0;
    return this.#pieces.at(-1)!.ids.length;
  }

  /** The place of the logits that follow what is certain of a row. */
  first(row: number): number {
    return row * (this.size + 1);
  }

  /** The parts of `input` and their lengths. */
  get layout(): ReadonlyMap<string, number> {
    const n = this.rows.length;
    return new Map([
      ['ids', this.#tokens],
      ['offsets', this.#pieces.length + 1],
      ['slots', this.#pieces.length],
      ['from', n],
      ['to', n],
      ['places', this.places],
      ['kept', n],
      ['keptAt', n],
      ['firsts', n],
      ['moved', n],
      ['position', this.places],
    ]);
  }

  /** All that changes from scan to scan, in the order of `layout`; `state` as it is before. */
  input(state: State): Int32Array {
    const ends: number[] = [];
    for (const { ids } of this.#pieces) ends.push((ends.at(-1) ?? 0) + ids.length);
    const branches = this.rows.map((row) => row && (row.tried.length > 0 || row.branch));
    const certain = this.#slots.map((slots) => slots.certain);
    const kept = this.rows.map((row) => row && row.certain.length === 0);
    return Int32Array.from([
      ...this.#pieces.flatMap(({ ids }) => ids),
      ...[0, ...ends],
      ...this.#pieces.map(({ slot }) => slot),
      ...certain,
      ...branches.map((branch, i) => (branch ? this.#slots[i]!.tried : -1)),
      ...this.#places,
      ...certain,
      ...kept.map((is, i) => (is ? this.first(i) : -1)),
      ...this.rows.map((_, i) => this.first(i)),
      ...kept.map((is, i) => (is === false ? certain[i]! : -1)),
      ...this.rowOfPlace.map(
        (row, i) =>
          state.lengths[certain[row]!]! + (this.rows[row]?.certain.length ?? 0) + i - this.first(row),
      ),
    ]);
  }

  /** The marks of what has been seen at each place. */
  seen(state: State): Int32Array {
    const words = state.marks[0]!.length;
    const seen = new Int32Array(this.places * words);
    this.rows.forEach((row, i) => {
      const marks = Int32Array.from(state.marks[this.#slots[i]!.certain]!);
      const mark = (id: number) => (marks[id >> 5]! |= 1 << (id & 31));
      row?.certain.forEach(mark);
      for (let j = 0; j <= this.size; j++) {
        if (j > 0 && row && j <= row.tried.length) mark(row.tried[j - 1]!);
        seen.set(marks, (this.first(i) + j) * words);
      }
    });
    return seen;
  }
}
