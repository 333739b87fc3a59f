import { checkFunction, checkRecord, kindOf } from './arguments';
import { device as openDevice, type Device } from './device';
import { DisposedError } from './errors';
import { deviceError, native, releaseHandle, spentHandle, type TensorHandle } from './native';
import { checkShape, sizeOf, type Range } from './shape';

export { sizeOf };

export type DType = 'f32' | 'bf16' | 'f16' | 'i32';
export const dtypes: readonly DType[] = ['f32', 'bf16', 'f16', 'i32'];
export const dtypeBytes: Readonly<Record<DType, number>> = { f32: 4, bf16: 2, f16: 2, i32: 4 };

export type TypedArray = Float32Array | Int32Array | Uint16Array;
export type TensorLike = Tensor | Float32Array | Int32Array | readonly number[];

const arrayOf = { f32: Float32Array, i32: Int32Array, bf16: Uint16Array, f16: Uint16Array } as const;

const scopes: Set<Tensor>[] = [];

type Watcher = (view: Tensor, base: Tensor, again: (tensor: Tensor) => Tensor, columns?: Range) => void;
let viewed: Watcher = () => {};
/** Has `watcher` told of every view: `again` makes the same of another tensor, `columns` are a matrix's. */
export function onView(watcher: Watcher): void {
  viewed = watcher;
}
const disposeSymbol: typeof Symbol.dispose = Symbol.dispose ?? Symbol.for('Symbol.dispose');

/**
 * An array on a device, row-major; only rows (dimension 0) may be strided. Its contents are what
 * the device's queue has written by the time that they are read.
 */
export class Tensor {
  readonly device: Device;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Elements from one row to the next. */
  readonly stride: number;
  #handle: TensorHandle | undefined;

  private constructor(
    device: Device,
    dtype: DType,
    shape: readonly number[],
    stride: number,
    handle: TensorHandle,
  ) {
    this.device = device;
    this.dtype = dtype;
    this.shape = shape;
    this.stride = stride;
    this.#handle = handle;
    scopes.at(-1)?.add(this);
  }

  /** A tensor with undefined contents. @throws DeviceError when the device is out of memory. */
  static empty(shape: readonly number[], dtype: DType, on?: Device | string): Tensor {
    const device = openDevice(on);
    checkShape('Tensor', shape);
    const code = dtypes.indexOf(dtype);
    if (code < 0)
      throw new TypeError(`Tensor: dtype is ${String(dtype)}, expected one of ${dtypes.join(', ')}`);
    try {
      const handle = device.alloc(code, shape);
      return new Tensor(device, dtype, [...shape], sizeOf(shape.slice(1)), handle);
    } catch (error) {
      throw deviceError(`Tensor of ${dtype}[${shape.join(',')}]`, error);
    }
  }

  /**
   * A tensor with the values of `data`: f32 from a Float32Array or numbers, i32 from an Int32Array;
   * `dtype` bf16 or f16 takes the raw bits from a Uint16Array.
   */
  static from(
    data: TypedArray | readonly number[],
    shape: readonly number[] = [data?.length],
    options: { readonly dtype?: DType; readonly device?: Device | string } = {},
  ): Tensor {
    checkRecord('Tensor.from', options, 'options');
    const dtype = options.dtype ?? (data instanceof Int32Array ? 'i32' : 'f32');
    const Wanted = arrayOf[dtype];
    if (!Wanted)
      throw new TypeError(`Tensor.from: dtype is ${String(dtype)}, expected one of ${dtypes.join(', ')}`);
    if (!(data instanceof Wanted) && !(Array.isArray(data) && (dtype === 'f32' || dtype === 'i32'))) {
      throw new TypeError(`Tensor.from: data is ${kindOf(data)}, expected ${Wanted.name} for ${dtype}`);
    }
    checkShape('Tensor.from', shape);
    if (data.length !== sizeOf(shape)) {
      throw new TypeError(
        `Tensor.from: data has ${data.length} elements, expected ${sizeOf(shape)} for [${shape.join(',')}]`,
      );
    }
    const made = Tensor.empty(shape, dtype, options.device);
    try {
      made.set(data instanceof Wanted ? data : Wanted.from(data));
      return made;
    } catch (error) {
      made.dispose();
      throw error;
    }
  }

  /** Whether `dispose` was called. */
  get disposed(): boolean {
    return this.#handle === undefined;
  }

  /** The addon's handle; `call` and `name` say who asks, for the error when it is disposed. */
  handle(call: string, name: string): TensorHandle {
    if (this.#handle === undefined) throw new DisposedError(`${call}: ${name} is disposed`);
    return this.#handle;
  }

  /** Number of elements. */
  get size(): number {
    return sizeOf(this.shape);
  }

  /** Whether rows lie one directly after the other. */
  get dense(): boolean {
    const row = sizeOf(this.shape.slice(1));
    return this.stride === row || row === 0 || this.shape[0]! <= 1;
  }

  toString(): string {
    return `${this.dtype}[${this.shape.join(',')}]`;
  }

  #view(
    call: string,
    offset: number,
    shape: readonly number[],
    stride: number,
    again: ((tensor: Tensor) => Tensor) | undefined,
    { dtype = this.dtype, columns }: { dtype?: DType; columns?: Range } = {},
  ): Tensor {
    const from = this.handle(call, 'tensor');
    const handle = native().view(from, dtypes.indexOf(dtype), offset, shape, stride, spentHandle());
    const view = new Tensor(this.device, dtype, shape, stride, handle);
    if (again) viewed(view, this, again, columns);
    return view;
  }

  /** The same bits as another dtype of the same size, in place, with no gradient: f32 as i32, or back. */
  as(dtype: DType): Tensor {
    if (dtypeBytes[dtype] !== dtypeBytes[this.dtype]) {
      throw new TypeError(
        `as: dtype is ${String(dtype)}, expected one of ${dtypeBytes[this.dtype]} bytes for ${this}`,
      );
    }
    return this.#view('as', 0, this.shape, this.stride, undefined, { dtype });
  }

  /** Rows `begin` to `end` (not included), in place. */
  rows(begin: number, end: number): Tensor {
    this.#checkRange('rows', begin, end, this.shape[0]!);
    const shape = [end - begin, ...this.shape.slice(1)];
    return this.#view('rows', begin * this.stride, shape, this.stride, (tensor) => tensor.rows(begin, end));
  }

  /** Columns `begin` to `end` (not included) of a matrix, in place. */
  columns(begin: number, end: number): Tensor {
    if (this.shape.length !== 2) throw new TypeError(`columns: tensor is ${this}, expected two dimensions`);
    this.#checkRange('columns', begin, end, this.shape[1]!);
    const again = (tensor: Tensor) => tensor.columns(begin, end);
    const shape = [this.shape[0]!, end - begin];
    return this.#view('columns', begin, shape, this.stride, again, { columns: [begin, end] });
  }

  /** The same elements in another shape. Rows that are strided can only be split or kept. */
  reshape(shape: readonly number[]): Tensor {
    checkShape('reshape', shape);
    const same = shape[0] === this.shape[0] && (shape.length > 1 || this.dense);
    if (sizeOf(shape) !== this.size || (!same && !this.dense)) {
      throw new TypeError(
        `reshape: tensor is ${this}, expected as many elements as [${shape.join(',')}]${this.dense ? '' : ', row by row'}`,
      );
    }
    const stride = same ? this.stride : sizeOf(shape.slice(1));
    return this.#view('reshape', 0, [...shape], stride, (tensor) => tensor.reshape(shape));
  }

  #checkRange(call: string, begin: number, end: number, most: number): void {
    if (!Number.isInteger(begin) || !Number.isInteger(end) || begin < 0 || end < begin || end > most) {
      throw new RangeError(`${call}: range is ${begin} to ${end}, expected one within 0 to ${most}`);
    }
  }

  /** Overwrites the contents; the values are taken at once. The tensor must be dense. */
  set(values: TypedArray): void {
    const handle = this.handle('set', 'tensor');
    if (!this.dense) throw new TypeError(`set: tensor is ${this} with strided rows, expected a dense one`);
    if (!(values instanceof arrayOf[this.dtype])) {
      throw new TypeError(
        `set: values is ${kindOf(values)}, expected ${arrayOf[this.dtype].name} for ${this.dtype}`,
      );
    }
    if (values.length !== this.size) {
      throw new TypeError(`set: values has ${values.length} elements, expected ${this.size}`);
    }
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    try {
      void native().write(handle, 0, bytes, true);
    } catch (error) {
      throw deviceError('set', error);
    }
  }

  /** Writes raw bytes at `byteOffset`. They must not change until the promise resolves. */
  async write(bytes: Uint8Array, byteOffset = 0): Promise<void> {
    const handle = this.handle('write', 'tensor');
    if (!this.dense) throw new TypeError(`write: tensor is ${this} with strided rows, expected a dense one`);
    if (!(bytes instanceof Uint8Array))
      throw new TypeError(`write: bytes is ${kindOf(bytes)}, expected Uint8Array`);
    const room = this.size * dtypeBytes[this.dtype];
    if (!Number.isSafeInteger(byteOffset) || byteOffset < 0 || byteOffset + bytes.length > room) {
      throw new RangeError(
        `write: byteOffset is ${byteOffset} for ${bytes.length} bytes, expected them within ${room}`,
      );
    }
    try {
      await native().write(handle, byteOffset, bytes, false);
    } catch (error) {
      throw deviceError('write', error);
    }
  }

  /**
   * The contents: Float32Array for f32, Int32Array for i32, Uint16Array (raw bits) for bf16 and f16.
   * @throws DeviceError when something queued before it failed. Strided rows: `cast` makes them dense.
   */
  async data(): Promise<TypedArray> {
    const handle = this.handle('data', 'tensor');
    if (!this.dense) throw new TypeError(`data: tensor is ${this} with strided rows, expected a dense one`);
    if (this.device.capturing) throw new Error('data: nothing can be read while a graph is captured');
    try {
      const bytes = await native().read(handle);
      if (this.dtype === 'f32') return new Float32Array(bytes);
      return this.dtype === 'i32' ? new Int32Array(bytes) : new Uint16Array(bytes);
    } catch (error) {
      throw deviceError('data', error);
    }
  }

  /** Frees the memory as soon as the queue is done with it. Any later use is a `DisposedError`. */
  dispose(): void {
    if (this.#handle === undefined) return;
    releaseHandle(this.#handle);
    this.#handle = undefined;
    for (const scope of scopes) scope.delete(this);
  }

  [disposeSymbol](): void {
    this.dispose();
  }
}

/** The tensors in a value: itself, or those in an array or a plain object, at any depth. */
export function tensorsIn(value: unknown, found: Tensor[] = []): Tensor[] {
  if (value instanceof Tensor) found.push(value);
  else if (Array.isArray(value)) for (const item of value) tensorsIn(item, found);
  else if (value && Object.getPrototypeOf(value) === Object.prototype) {
    for (const item of Object.values(value)) tensorsIn(item, found);
  }
  return found;
}

/**
 * Runs `fn` and disposes every tensor that it made and did not return (in an array or a record
 * counts as returned). `fn` must not be async: queueing work takes no waiting.
 */
export function scope<R>(fn: () => R): R {
  checkFunction('scope', fn);
  const own = new Set<Tensor>();
  scopes.push(own);
  let result: R | undefined;
  try {
    result = fn();
    if (result instanceof Promise) {
      result.catch(() => {}); // it fails on the tensors that are disposed here; this error says why
      throw new TypeError('scope: fn is async, expected a plain function');
    }
    return result;
  } finally {
    scopes.splice(scopes.lastIndexOf(own), 1);
    const kept = new Set(tensorsIn(result));
    for (const tensor of own) {
      if (kept.has(tensor)) scopes.at(-1)?.add(tensor);
      else tensor.dispose();
    }
  }
}

/** Takes a tensor out of the scopes around it, so that it lives until it is disposed. */
export function keep<T extends Tensor>(tensor: T): T {
  if (!(tensor instanceof Tensor))
    throw new TypeError(`keep: tensor is ${kindOf(tensor)}, expected a tensor`);
  for (const scope of scopes) scope.delete(tensor);
  return tensor;
}
