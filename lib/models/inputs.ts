import { Tensor } from '../tensor';

/** Token ids of one sequence; of a model of bytes, the bytes. */
export type Ids = readonly number[] | Int32Array | Uint32Array | Uint8Array | BigInt64Array;
/** Token ids: one sequence, several, or a tensor i32[batch, length]. */
export type IdsBatch = Ids | readonly Ids[] | Tensor;

const isIds = (value: unknown): value is Ids =>
  ArrayBuffer.isView(value) || (Array.isArray(value) && (value.length === 0 || typeof value[0] === 'number'));

async function rowsOf(call: string, name: string, value: IdsBatch): Promise<readonly Ids[]> {
  if (value instanceof Tensor) {
    if (value.dtype !== 'i32' || value.shape.length !== 2) {
      throw new TypeError(`${call}: ${name} is ${value}, expected i32[batch,length]`);
    }
    const [batch, length] = value.shape as [number, number];
    const data = (await value.data()) as Int32Array;
    return Array.from({ length: batch }, (_, i) => data.subarray(i * length, (i + 1) * length));
  }
  if (isIds(value)) return [value];
  if (Array.isArray(value) && value.every(isIds)) return value;
  throw new TypeError(
    `${call}: ${name} is ${typeof value}, expected token ids: an array or typed array, several, or a tensor`,
  );
}

/** Whole numbers within [least, most], as one Int32Array a row. */
export async function integerRows(
  call: string,
  name: string,
  value: IdsBatch,
  least: number,
  most: number,
): Promise<Int32Array[]> {
  const rows = await rowsOf(call, name, value);
  return rows.map((row, i) => {
    const out = new Int32Array(row.length);
    for (let j = 0; j < row.length; j++) {
      const id = Number(row[j]);
      if (!Number.isInteger(id) || id < least || id > most) {
        throw new RangeError(
          `${call}: ${name}[${i}][${j}] is ${String(row[j])}, expected a whole number from ${least} to ${most}`,
        );
      }
      out[j] = id;
    }
    return out;
  });
}

/** A rectangle of ids with the places that count: which are tokens, and which are padding. */
export interface Dense {
  readonly batch: number;
  readonly length: number;
  /** The tokens of each sequence, from the first that counts to the last. */
  readonly sequences: readonly Int32Array[];
  /** For a sequence with padding in the middle: 1 where its tokens are padding, else 0. */
  readonly muted: readonly (Int32Array | undefined)[];
  /** For each token of each sequence, its column. */
  readonly columns: readonly Int32Array[];
}

/**
 * Packs at the door: what the mask hides on the left and the right, and what is missing of shorter
 * rows, is left out.
 */
export function pack(
  call: string,
  rows: readonly Int32Array[],
  mask: readonly Int32Array[] | undefined,
): Dense {
  if (rows.length === 0) throw new RangeError(`${call}: inputIds is empty, expected at least one sequence`);
  const length = Math.max(...rows.map((row) => row.length));
  if (mask && (mask.length !== rows.length || mask.some((row, i) => row.length !== rows[i]!.length))) {
    throw new TypeError(`${call}: attentionMask has another shape than inputIds`);
  }
  const columns = rows.map((row, i) => {
    const all = Int32Array.from(row.keys());
    return mask ? all.subarray(Math.max(0, mask[i]!.indexOf(1)), mask[i]!.lastIndexOf(1) + 1) : all;
  });
  const sequences = rows.map((row, i) => columns[i]!.map((j) => row[j]!));
  const muted = columns.map((row, i) => {
    const padding = row.map((j) => (mask?.[i]![j] === 0 ? 1 : 0));
    return padding.includes(1) ? padding : undefined;
  });
  const empty = sequences.findIndex((sequence) => sequence.length === 0);
  if (empty >= 0) throw new RangeError(`${call}: inputIds[${empty}] is empty, expected at least one token`);
  return { batch: rows.length, length, sequences, muted, columns };
}

/** For each place of the rectangle the id that should follow, -100 where none counts. */
export function targetsOf(
  call: string,
  labels: readonly Int32Array[],
  rows: readonly Int32Array[],
  { batch, length, columns }: Dense,
): Int32Array {
  if (labels.length !== rows.length || labels.some((row, i) => row.length !== rows[i]!.length)) {
    throw new TypeError(`${call}: labels has another shape than inputIds`);
  }
  const wrong = labels.flatMap((row) => [...row]).find((id) => id < 0 && id !== -100);
  if (wrong !== undefined) throw new RangeError(`${call}: labels hold ${wrong}, expected token ids or -100`);
  const targets = new Int32Array(batch * length).fill(-100);
  columns.forEach((row, i) => {
    for (const j of row) targets[i * length + j] = labels[i]![j + 1] ?? -100;
  });
  return targets;
}
