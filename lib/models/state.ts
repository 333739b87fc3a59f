import { createHash } from 'node:crypto';
import { kindOf } from '../arguments';
import type { Device } from '../device';
import { DisposedError, FormatError } from '../errors';
import { isObject, parseJsonObject } from '../io/json';
import { copySlots } from '../ops/elementwise';
import { dtypeBytes, scope, sizeOf, Tensor, type DType } from '../tensor';
import type { StatePart } from './family';
import { Pools } from './pools';

const magic = 'SELSCAN\0';
const version = 1;
const digestBytes = 32;

/** What binds a state to a kind of model: its family and sizes. */
export interface StateLayout {
  readonly modelType: string;
  readonly vocabSize: number;
  readonly parts: readonly StatePart[];
}

/** One row for each sequence: a copy of what the model remembers of it. */
interface Header {
  readonly layout: StateLayout;
  readonly rows: number;
  readonly lengths: readonly number[];
}

/** The pools, and the logits that the last token left. */
const partsOf = (layout: StateLayout): readonly StatePart[] => [
  ...layout.parts,
  { name: 'logits', shape: [layout.vocabSize], dtype: 'f32' },
];
const marksOf = (layout: StateLayout) => Math.ceil(layout.vocabSize / 32);

/**
 * Everything that a model remembers of its sequences, as a value: a few MiB a sequence, however
 * long. It can be continued, forked, turned into bytes and back.
 */
export class State {
  readonly device: Device;
  readonly layout: StateLayout;
  /** Number of sequences. */
  readonly rows: number;
  /** Tokens consumed by each sequence. */
  readonly lengths: number[];
  /** One tensor [rows, ...] for each part of the layout. */
  readonly pools: readonly Tensor[];
  /** The next token's logits, for each sequence that has consumed at least one token. f32[rows, vocabSize] */
  readonly logits: Tensor;
  /** For each sequence one bit for each token id that it has consumed. */
  readonly marks: readonly Uint32Array[];
  readonly #all: Pools;
  #user: string | undefined;
  #disposed = false;

  constructor(device: Device, layout: StateLayout, rows: number) {
    this.device = device;
    this.layout = layout;
    this.rows = rows;
    // The tensors first: the device knows whether there is room for so many.
    this.#all = new Pools(partsOf(layout), rows, device);
    this.logits = this.#all.tensors.at(-1)!;
    this.pools = this.#all.tensors.slice(0, -1);
    this.lengths = Array<number>(rows).fill(0);
    this.marks = Array.from({ length: rows }, () => new Uint32Array(marksOf(layout)));
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** Forgets everything: sequences that have seen nothing yet. */
  clear(): void {
    this.#all.zero();
    this.lengths.fill(0);
    for (const marks of this.marks) marks.fill(0);
  }

  /** Bytes of one sequence's state on the device. */
  static bytesPerSequence(layout: StateLayout): number {
    return partsOf(layout).reduce((sum, { shape, dtype }) => sum + sizeOf(shape) * dtypeBytes[dtype], 0);
  }

  /** Throws unless the state is alive and nobody else is changing it. */
  check(call: string): void {
    if (this.#disposed) throw new DisposedError(`${call}: state is disposed`);
    if (this.#user)
      throw new Error(
        `${call}: state is in use by ${this.#user}; wait for its end, or continue a fork made before`,
      );
  }

  /** Takes the state for one user until the returned function is called. */
  acquire(call: string): () => void {
    this.check(call);
    this.#user = call;
    return () => (this.#user = undefined);
  }

  /** Notes that sequence `row` has consumed `ids`. */
  consumed(row: number, ids: ArrayLike<number>): void {
    this.lengths[row]! += ids.length;
    const marks = this.marks[row]!;
    for (let i = 0; i < ids.length; i++) marks[ids[i]! >> 5]! |= 1 << (ids[i]! & 31);
  }

  /** An independent copy of all sequences, or of those in `rows` (in that order, repeats allowed). */
  fork(rows: readonly number[] = this.lengths.map((_, i) => i)): State {
    this.check('fork');
    const given: unknown = rows;
    if (!Array.isArray(given)) throw new TypeError(`fork: rows is ${kindOf(given)}, expected an array`);
    for (const row of rows) {
      if (!Number.isInteger(row) || row < 0 || row >= this.rows) {
        throw new RangeError(`fork: rows holds ${row}, expected numbers from 0 to ${this.rows - 1}`);
      }
    }
    if (rows.length === 0) throw new RangeError('fork: rows is empty, expected at least one');
    const copy = new State(this.device, this.layout, rows.length);
    copy.#fill(() => {
      const fromSlots = Tensor.from(Int32Array.from(rows), [rows.length], { device: this.device });
      const toSlots = Tensor.from(Int32Array.from(rows.keys()), [rows.length], { device: this.device });
      for (const [i, from] of [...this.pools, this.logits].entries()) {
        const to = copy.pools[i] ?? copy.logits;
        if (from.size > 0) copySlots({ from: flat(from), fromSlots, to: flat(to), toSlots });
      }
    });
    rows.forEach((row, i) => {
      copy.lengths[i] = this.lengths[row]!;
      copy.marks[i]!.set(this.marks[row]!);
    });
    return copy;
  }

  /** The state as bytes: versioned, checksummed, and bound to the kind of model that made it. */
  async snapshot(): Promise<Uint8Array> {
    const release = this.acquire('snapshot');
    try {
      const header: Header = { layout: this.layout, rows: this.rows, lengths: [...this.lengths] };
      const json = Buffer.from(JSON.stringify(header));
      const front = Buffer.alloc(16);
      front.write(magic, 'latin1');
      front.writeUInt32LE(version, 8);
      front.writeUInt32LE(json.byteLength, 12);
      const contents = await Promise.all([...this.pools, this.logits].map((tensor) => tensor.data()));
      const body = Buffer.concat([front, json, ...[...this.marks, ...contents].map(bytesOf)]);
      return new Uint8Array(Buffer.concat([body, createHash('sha256').update(body).digest()]));
    } finally {
      release();
    }
  }

  /**
   * The state that `snapshot` made into bytes.
   * @throws FormatError when they are truncated or altered, or belong to another kind of model.
   */
  static restore(bytes: Uint8Array, device: Device, layout: StateLayout): State {
    const { header, body } = open(bytes);
    const differs = difference(header.layout, layout);
    if (differs) throw new FormatError(`restore: bytes are the state of another model; ${differs}`);
    const { rows, lengths } = header;
    const wanted = rows * (marksOf(layout) * 4 + State.bytesPerSequence(layout));
    if (body.byteLength !== wanted) {
      throw new FormatError(`restore: bytes hold ${body.byteLength} bytes of state, expected ${wanted}`);
    }
    const state = new State(device, layout, rows);
    let at = 0;
    const take = (count: number) => body.slice(at, (at += count)).buffer;
    lengths.forEach((length, i) => (state.lengths[i] = length));
    for (const marks of state.marks) marks.set(new Uint32Array(take(marks.byteLength)));
    state.#fill(() => {
      for (const tensor of [...state.pools, state.logits]) {
        const buffer = take(tensor.size * dtypeBytes[tensor.dtype]);
        tensor.set(tensor.dtype === 'f32' ? new Float32Array(buffer) : new Uint16Array(buffer));
      }
    });
    return state;
  }

  /** Runs `fn`, which gives a new state its contents; when that fails the state goes too. */
  #fill(fn: () => void): void {
    try {
      scope(fn);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  dispose(): void {
    this.#disposed = true;
    this.#all.dispose();
  }
}

/** Throws unless `state` is a free one of `rows` sequences, for such a model on this device. */
export function checkState(
  call: string,
  state: State,
  device: Device,
  layout: StateLayout,
  rows: number,
): void {
  if (!(state instanceof State)) throw new TypeError(`${call}: state is ${typeof state}, expected a State`);
  state.check(call);
  if (state.device !== device || JSON.stringify(state.layout) !== JSON.stringify(layout)) {
    throw new TypeError(`${call}: state belongs to another model or device`);
  }
  if (state.rows !== rows) {
    throw new RangeError(`${call}: state has ${state.rows} sequences, expected ${rows}`);
  }
}

/** A pool [rows, ...] as a matrix. */
function flat(pool: Tensor): Tensor {
  return pool.reshape([pool.shape[0]!, pool.stride]);
}

const bytesOf = (array: ArrayBufferView) => Buffer.from(array.buffer, array.byteOffset, array.byteLength);

function open(bytes: Uint8Array): { header: Header; body: Uint8Array } {
  if (!(bytes instanceof Uint8Array)) throw new TypeError('restore: bytes is no Uint8Array');
  const buffer = bytesOf(bytes);
  if (buffer.byteLength < 16 + digestBytes || buffer.toString('latin1', 0, 8) !== magic) {
    throw new FormatError('restore: bytes are no snapshot, or are cut off at the front');
  }
  if (buffer.readUInt32LE(8) !== version) {
    throw new FormatError(
      `restore: bytes are a snapshot of version ${buffer.readUInt32LE(8)}, expected ${version}`,
    );
  }
  const end = buffer.byteLength - digestBytes;
  const digest = createHash('sha256').update(buffer.subarray(0, end)).digest();
  if (!digest.equals(buffer.subarray(end)))
    throw new FormatError('restore: bytes are truncated or altered; the checksum differs');
  const length = buffer.readUInt32LE(12);
  if (length > end - 16) throw new FormatError('restore: bytes are cut off within the header');
  const header = parseJsonObject(buffer.subarray(16, 16 + length), 'restore: header');
  if (!isHeader(header)) throw new FormatError('restore: bytes have a header that makes no sense');
  return { header, body: new Uint8Array(buffer.subarray(16 + length, end)) };
}

/** A checksum proves nothing about who wrote the bytes. */
function isHeader(header: object): header is Header {
  const { rows, lengths, layout } = header as Partial<Header>;
  const isCount = (n: unknown) => Number.isSafeInteger(n) && (n as number) >= 0;
  const isPart = (part: unknown) => isObject(part) && Array.isArray(part['shape']);
  return (
    isCount(rows) &&
    rows! > 0 &&
    Array.isArray(lengths) &&
    lengths.length === rows &&
    lengths.every(isCount) &&
    isObject(layout) &&
    Array.isArray(layout.parts) &&
    layout.parts.every(isPart)
  );
}

function difference(got: StateLayout, wanted: StateLayout): string | undefined {
  if (got.modelType !== wanted.modelType)
    return `it is a ${String(got.modelType)}, this one a ${wanted.modelType}`;
  if (got.vocabSize !== wanted.vocabSize)
    return `its vocabulary is ${got.vocabSize}, here ${wanted.vocabSize}`;
  const show = ({ name, dtype, shape }: { name: string; dtype: DType; shape: readonly number[] }) =>
    `${name} ${dtype}[${shape.join(',')}]`;
  const theirs = got.parts.map(show);
  const ours = wanted.parts.map(show);
  const i = ours.findIndex((part, i) => part !== theirs[i]);
  if (i >= 0) return `it has ${theirs[i] ?? 'nothing'} where this one has ${ours[i]}`;
  return theirs.length === ours.length ? undefined : `it has ${theirs.length} parts, this one ${ours.length}`;
}
