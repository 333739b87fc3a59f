import { checkList, checkNumbers, checkRecord } from '../arguments';

/** Packed sequences for one pass, on the host. */
export interface TrainingBatch {
  /** [t] */
  readonly ids: Int32Array;
  /** [t]: what each token should predict; -100 is left out. */
  readonly labels: Int32Array;
  /** [s+1]: where sequences begin, and the end. */
  readonly offsets: Int32Array;
}

/** Where batches come from, in an order that can be taken up again. */
export interface BatchSource {
  /** The next micro-batch; undefined when there are no more. */
  next(): TrainingBatch | undefined | Promise<TrainingBatch | undefined>;
  /** What `restore` needs to go on from here: JSON. */
  state(): unknown;
  restore(state: unknown): void;
}

/** How many tokens of a batch count. */
export const countLabels = (batches: readonly TrainingBatch[]): number =>
  batches.reduce((sum, { labels }) => sum + labels.reduce((n, label) => n + Number(label !== -100), 0), 0);

/** Tokens of the longest sequence. */
export const longestOf = (offsets: Int32Array): number =>
  offsets.reduce((most, end, i) => (i > 0 ? Math.max(most, end - offsets[i - 1]!) : most), 0);

/** @throws TypeError, RangeError that name what is wrong with the batches of a step. */
export function checkBatches(call: string, batches: readonly TrainingBatch[], vocabSize: number): void {
  checkList(call, 'batches', batches, () => true, 'batch');
  if (batches.length === 0) throw new RangeError(`${call}: batches is empty, expected one or more`);
  for (const batch of batches) checkBatch(call, batch, vocabSize);
}

/** @throws TypeError, RangeError that name what is wrong with a batch. */
export function checkBatch(call: string, batch: TrainingBatch, vocabSize: number): void {
  checkRecord(call, batch, 'batch');
  const { ids, labels, offsets } = batch;
  for (const [name, value] of Object.entries({ ids, labels, offsets }))
    if (!(value instanceof Int32Array)) throw new TypeError(`${call}: ${name} is no Int32Array`);
  if (ids.length === 0) throw new RangeError(`${call}: ids is empty, expected tokens`);
  if (labels.length !== ids.length)
    throw new TypeError(`${call}: labels has ${labels.length} elements, expected ${ids.length}, as ids`);
  if (offsets.length < 2 || offsets[0] !== 0 || offsets.at(-1) !== ids.length)
    throw new RangeError(
      `${call}: offsets is [${offsets.length > 8 ? '...' : offsets.join()}], expected 0 to ${ids.length}, the tokens`,
    );
  for (let i = 1; i < offsets.length; i++)
    if (offsets[i]! <= offsets[i - 1]!)
      throw new RangeError(`${call}: offsets[${i}] is ${offsets[i]}, expected more than ${offsets[i - 1]}`);
  // Before any work: what a device finds wrong later comes after the parameters have moved.
  const most = vocabSize - 1;
  const wrong = ids.findIndex((id) => id < 0 || id > most);
  if (wrong >= 0) throw new RangeError(`${call}: ids[${wrong}] is ${ids[wrong]}, expected 0 to ${most}`);
  const odd = labels.findIndex((label) => label !== -100 && (label < 0 || label > most));
  if (odd >= 0)
    throw new RangeError(`${call}: labels[${odd}] is ${labels[odd]}, expected 0 to ${most}, or -100`);
}

/**
 * The usual batch: whole rows of one length, each token predicting the next. `rows` have one token more.
 * @throws TypeError, RangeError that name what is wrong with `rows`.
 */
export function rowsToBatch(rows: readonly ArrayLike<number>[]): TrainingBatch {
  checkRows(rows);
  const length = rows[0]!.length - 1;
  const [ids, labels] = [new Int32Array(rows.length * length), new Int32Array(rows.length * length)];
  rows.forEach((row, i) => {
    for (let j = 0; j < length; j++) {
      ids[i * length + j] = row[j]!;
      labels[i * length + j] = row[j + 1]!;
    }
  });
  return { ids, labels, offsets: Int32Array.from({ length: rows.length + 1 }, (_, i) => i * length) };
}

const isTokens = (row: unknown) =>
  Array.isArray(row) || (ArrayBuffer.isView(row) && !(row instanceof DataView));

function checkRows(rows: readonly ArrayLike<number>[]): void {
  checkList('rowsToBatch', 'rows', rows, isTokens, 'row of tokens');
  if (rows.length === 0) throw new RangeError('rowsToBatch: rows is empty, expected one or more');
  rows.forEach((row, i) => {
    checkNumbers('rowsToBatch', `rows[${i}]`, row);
    for (let j = 0; j < row.length; j++)
      if ((row[j]! | 0) !== row[j] || row[j]! < 0)
        throw new RangeError(`rowsToBatch: rows[${i}][${j}] is ${row[j]}, expected a token id`);
    const wanted = i === 0 ? '2 or more' : `${rows[0]!.length}, as the first`;
    if (row.length < 2 || row.length !== rows[0]!.length)
      throw new RangeError(`rowsToBatch: rows[${i}] has ${row.length} tokens, expected ${wanted}`);
  });
}
