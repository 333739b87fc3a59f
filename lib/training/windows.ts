import { createHash } from 'node:crypto';
import { checkNames, kindOf } from '../arguments';
import { FormatError } from '../errors';
import { isObject } from '../io/json';
import type { BatchSource, TrainingBatch } from './batch';
import { Corpus, type CorpusPart } from './corpus';
import { changeOf, type FileRecord } from './data-files';
import { permutation } from './permutation';

export interface WindowOptions {
  /** Tokens of a row. */
  readonly length: number;
  /** Rows of a batch. */
  readonly rows: number;
  /** In another order each time through, cut at other places; otherwise from beginning to end. Default true. */
  readonly shuffle?: boolean;
  /** Of the order. Default 0. */
  readonly seed?: number;
  /** Times through the corpus. Default: no end. */
  readonly epochs?: number;
  /** `separate`: the state starts anew where a document does; `joined` (default): rows go on over it. */
  readonly documents?: 'joined' | 'separate';
  /** Ids must be below this. */
  readonly vocabSize?: number;
}

const names: readonly (keyof WindowOptions)[] = [
  ...(['length', 'rows', 'shuffle', 'seed', 'epochs', 'documents', 'vocabSize'] as const),
];

const mostRows = 2 ** 20;
const mostTokens = 2 ** 26;

/** What is wrong with so many rows of a batch, if they are more than any memory is for. */
export function tooManyRows(rows: number, length: number): string | undefined {
  if (rows > mostRows) return `is ${rows}, expected at most ${mostRows}`;
  if (rows * length <= mostTokens) return undefined;
  return `is ${rows}, expected at most ${mostTokens} tokens in a batch; rows of ${length} can be ${Math.floor(mostTokens / length)}`;
}

/** How a corpus is cut the `epoch`th time. */
interface Cut {
  readonly epoch: number;
  readonly windows: number;
  /** Tokens `begin` to `end`, of which the last is only predicted. */
  window(index: number): readonly [begin: number, end: number];
}

/**
 * Batches of a corpus: windows of one length, packed without padding. Shuffled windows of an epoch are cut
 * from a place that the seed draws, so that those of the next have other edges, and come in an order that
 * takes no memory; what the cut leaves over at the ends has its turn in another epoch. Without `shuffle`
 * the last window may be shorter and every token but the first is predicted once. With separate documents
 * no token predicts the next document's first, and a batch has as many sequences as rows, or a multiple of
 * that, so that few shapes are recorded: last tokens of rows stand alone where that needs some, with
 * nothing to predict.
 */
export class Windows implements BatchSource {
  readonly #corpus: Corpus;
  readonly #options: Required<Omit<WindowOptions, 'vocabSize'>> & Pick<WindowOptions, 'vocabSize'>;
  /** By which a position is known to be of the same data and options; `state` is asked for it every step. */
  readonly #data: { readonly data: string; readonly files: readonly FileRecord[] };
  #cut: Cut;
  /** Windows of this epoch that were given out. */
  #at = 0;
  /** The batch that is being read ahead, and where it began. */
  #turn: Promise<unknown> = Promise.resolve(); // of those who ask for batches at the same time
  #ahead: { readonly epoch: number; readonly at: number; readonly batch: Promise<Ahead> } | undefined;

  /** @throws TypeError, RangeError for bad options, and for a corpus that is shorter than a row. */
  constructor(corpus: Corpus, options: WindowOptions) {
    if (!(corpus instanceof Corpus))
      throw new TypeError(`Windows: corpus is ${kindOf(corpus)}, expected a Corpus`);
    checkNames('Windows', options, names, 'options');
    const { length, rows, vocabSize } = options;
    const { shuffle = true, seed = 0, epochs = Infinity, documents = 'joined' } = options;
    const whole = (name: string, value: unknown, least = 1) => {
      if (typeof value !== 'number')
        throw new TypeError(`Windows: ${name} is ${kindOf(value)}, expected a whole number`);
      if (!Number.isSafeInteger(value) || value < least)
        throw new RangeError(`Windows: ${name} is ${value}, expected a whole number, ${least} or more`);
    };
    for (const [name, value] of Object.entries({ length, rows })) whole(name, value);
    const wrong = tooManyRows(rows, length);
    if (wrong !== undefined) throw new RangeError(`Windows: rows ${wrong}`);
    if (vocabSize !== undefined) whole('vocabSize', vocabSize);
    if (epochs !== Infinity) whole('epochs', epochs);
    whole('seed', seed, -Number.MAX_SAFE_INTEGER);
    if (typeof shuffle !== 'boolean')
      throw new TypeError(`Windows: shuffle is ${kindOf(shuffle)}, expected true or false`);
    if (documents !== 'joined' && documents !== 'separate')
      throw new TypeError(`Windows: documents is ${String(documents)}, expected joined or separate`);
    const most = shuffle ? length + 1 : 2;
    if (corpus.length < most)
      throw new RangeError(
        `Windows: corpus has ${corpus.length} tokens, expected at least ${most}` +
          (shuffle ? `, a row of length ${length} and what its last token predicts` : ''),
      );
    this.#corpus = corpus;
    this.#options = { length, rows, shuffle, seed, epochs, documents, vocabSize };
    const known = JSON.stringify([corpus.fingerprint, length, shuffle, seed, documents]);
    this.#data = { data: createHash('sha256').update(known).digest('hex'), files: corpus.records };
    this.#cut = this.#cutOf(0);
  }

  /** Batches of an epoch, as a rule: the last may be shared with the next one. */
  get batchesPerEpoch(): number {
    return Math.ceil(this.#cut.windows / this.#options.rows);
  }

  #cutOf(epoch: number): Cut {
    const { length, shuffle, seed } = this.#options;
    const tokens = this.#corpus.length;
    if (!shuffle) {
      const windows = Math.ceil((tokens - 1) / length);
      return {
        epoch,
        windows,
        window: (i) => [i * length, Math.min(tokens, (i + 1) * length + 1)],
      };
    }
    const own = createHash('sha256').update(`${seed}:${epoch}`).digest();
    const first = own.readUInt32LE(0) % Math.min(length, tokens - length);
    const windows = Math.floor((tokens - 1 - first) / length);
    const order = permutation(windows, own.readUIntLE(4, 6));
    return {
      epoch,
      windows,
      window: (i) => {
        const begin = first + order(i) * length;
        return [begin, begin + length + 1];
      },
    };
  }

  /**
   * The next batch; undefined after the last epoch. Calls take turns; the batch after it is read ahead.
   * @throws FormatError for a file that cannot be read, RangeError for an id beyond the vocabulary.
   */
  next(): Promise<TrainingBatch | undefined> {
    const batch = this.#turn.then(() => this.#next());
    this.#turn = batch.catch(() => {}); // whoever asked for it is told
    return batch;
  }

  async #next(): Promise<TrainingBatch | undefined> {
    const ahead =
      this.#ahead?.epoch === this.#cut.epoch && this.#ahead.at === this.#at
        ? this.#ahead.batch
        : this.#read(this.#cut, this.#at);
    this.#ahead = undefined;
    const { batch, cut, at } = await ahead;
    this.#cut = cut;
    this.#at = at;
    if (batch) {
      const next = this.#read(cut, at);
      next.catch(() => {}); // whoever asks for it is told
      this.#ahead = { epoch: cut.epoch, at, batch: next };
    }
    return batch;
  }

  /** The batches of the first epoch, each time anew and wherever `next` is: for `Trainer.evaluate`. */
  async *[Symbol.asyncIterator](): AsyncGenerator<TrainingBatch, void, undefined> {
    let [cut, at] = [this.#cutOf(0), 0];
    for (;;) {
      const ahead = await this.#read(cut, at, 1);
      if (!ahead.batch) return;
      yield ahead.batch;
      [cut, at] = [ahead.cut, ahead.at];
    }
  }

  async #read(cut: Cut, at: number, epochs = this.#options.epochs): Promise<Ahead> {
    const { rows, shuffle, documents } = this.#options;
    const parts: Promise<CorpusPart>[] = [];
    while (parts.length < rows) {
      if (at === cut.windows) {
        // A batch may hold the end of one epoch and the beginning of the next, but only rows of one length.
        if (cut.epoch + 1 >= epochs || (!shuffle && parts.length > 0)) break;
        [cut, at] = [this.#cutOf(cut.epoch + 1), 0];
      }
      const [begin, end] = cut.window(at++);
      parts.push(this.#corpus.read(begin, end));
    }
    if (parts.length === 0) return { batch: undefined, cut, at };
    const read = await Promise.all(parts);
    for (const { ids } of read) this.#check(ids);
    return { batch: packed(read, documents === 'separate'), cut, at };
  }

  #check(ids: Int32Array): void {
    const { vocabSize = 2 ** 31 } = this.#options;
    const wrong = ids.find((id) => id < 0 || id >= vocabSize);
    if (wrong !== undefined)
      throw new RangeError(`Windows: corpus has token ${wrong}, expected ids from 0 to ${vocabSize - 1}`);
  }

  /** Where it is: after the batches that `next` gave. */
  state(): unknown {
    return { epoch: this.#cut.epoch, at: this.#at, ...this.#data };
  }

  /** Goes on from a `state`. @throws FormatError where it is of other data, with a file's name, or other options. */
  restore(state: unknown): void {
    const { epoch, at, data, files } = isObject(state) ? state : {};
    const count = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
    if (!count(epoch) || !count(at)) throw new FormatError('restore: state holds no position in a corpus');
    if (data !== this.#data.data) {
      const changed = changeOf(files, this.#data.files);
      throw new FormatError(
        changed === undefined
          ? 'restore: state is of other parts of the files, or of other options of Windows'
          : `restore: state is of other data; ${changed}`,
      );
    }
    const cut = this.#cutOf(epoch);
    if (at > cut.windows)
      throw new FormatError(`restore: state is at window ${at}, expected at most ${cut.windows}`);
    this.#cut = cut;
    this.#at = at;
  }
}

interface Ahead {
  readonly batch: TrainingBatch | undefined;
  /** Where the next batch begins. */
  readonly cut: Cut;
  readonly at: number;
}

/** Rows one after the other; each has one token more, which is only predicted. */
function packed(rows: readonly CorpusPart[], separate: boolean): TrainingBatch {
  const tokens = rows.reduce((sum, { ids }) => sum + ids.length - 1, 0);
  const [ids, labels] = [new Int32Array(tokens), new Int32Array(tokens)];
  const begins = new Set<number>();
  let at = 0;
  for (const row of rows) {
    const length = row.ids.length - 1;
    ids.set(row.ids.subarray(0, length), at);
    labels.set(row.ids.subarray(1), at);
    begins.add(at);
    if (separate)
      for (const start of row.starts) {
        if (start > 0) labels[at + start - 1] = -100;
        if (start > 0 && start < length) begins.add(at + start);
      }
    at += length;
  }
  if (separate) standAlone(rows, labels, begins);
  return { ids, labels, offsets: Int32Array.from([...begins, tokens].sort((a, b) => a - b)) };
}

/** Makes sequences of rows' last tokens until there are a multiple of the rows. */
function standAlone(rows: readonly CorpusPart[], labels: Int32Array, begins: Set<number>): void {
  let missing = Math.ceil(begins.size / rows.length) * rows.length - begins.size;
  let end = 0;
  for (const { ids } of rows) {
    end += ids.length - 1;
    for (let at = end - 1; missing > 0 && at > end - ids.length + 1; at--) {
      if (begins.has(at)) continue;
      begins.add(at);
      labels[at] = -100;
      missing--;
      break;
    }
  }
}
