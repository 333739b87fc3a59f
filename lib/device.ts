import { kindOf } from './arguments';
import {
  deviceError,
  native,
  type DeviceHandle,
  type Fft,
  type MemoryUse,
  type TensorHandle,
  spentHandle,
} from './native';

export interface DeviceInfo {
  /** The name that opens it: `cpu`, `cuda:0`, ... */
  readonly id: string;
  /** The processor's or card's own name. */
  readonly name: string;
  /** Instruction level, or compute capability and driver. */
  readonly detail: string;
  /** Bytes of memory in all. */
  readonly memory: number;
  /** Threads in use, or multiprocessors. */
  readonly units: number;
  /**
   * On CUDA: which cuBLASLt large matmuls use, or what was tried and what to install. It is looked for at the
   * first matmul of more than a few rows.
   */
  readonly blas?: string;
}

/** Tensors that are kept in case they are wanted again, and what they hold. */
export interface Reserve {
  readonly tensors: number;
  readonly used: number;
  free(): void;
}

/** A queue with memory: work is queued in order and runs by itself; only reading waits. */
export class Device {
  readonly id: string;
  readonly kernels: ReadonlyMap<string, { readonly id: number; readonly signature: string }>;
  /** Set while `capture` records on this device. */
  capturing = false;
  readonly handle: DeviceHandle;
  #fft: Fft | undefined;
  readonly #reserves = new Set<WeakRef<Reserve>>();

  constructor(id: string, handle: DeviceHandle) {
    this.id = id;
    this.handle = handle;
    const { kernels } = native().describe(handle);
    this.kernels = new Map(kernels.map(({ name, signature }, index) => [name, { id: index, signature }]));
  }

  get info(): DeviceInfo {
    const { name, detail, memory, units, blas } = native().describe(this.handle);
    return { id: this.id, name, detail, memory, units, ...(blas && { blas }) };
  }

  /** The library of FFTs, which convolutions of whole sequences need; looked for when first asked. */
  get fft(): Fft {
    return (this.#fft ??= native().fft(this.handle));
  }

  /** Live handles and bytes. */
  memoryUsage(): MemoryUse {
    const { tensors, used, cached, peak } = this.held();
    const kept = { tensors: 0, used: 0 };
    for (const reserve of this.#living()) {
      kept.tensors += reserve.tensors;
      kept.used += reserve.used;
    }
    return { tensors: tensors - kept.tensors, used: used - kept.used, cached: cached + kept.used, peak };
  }

  /** As `memoryUsage`, but what a reserve holds is in use. */
  held(): MemoryUse {
    return native().usage(this.handle);
  }

  /** Counts what `reserve` holds as kept for reuse, and has it freed when memory runs out. */
  addReserve(reserve: Reserve): void {
    this.#reserves.add(new WeakRef(reserve));
  }

  *#living(): Iterable<Reserve> {
    for (const weak of this.#reserves) {
      const reserve = weak.deref();
      if (reserve) yield reserve;
      else this.#reserves.delete(weak);
    }
  }

  /** Memory for a tensor; `dtype` by its number. */
  alloc(dtype: number, shape: readonly number[]): TensorHandle {
    try {
      return native().alloc(this.handle, dtype, shape, spentHandle());
    } catch (error) {
      const before = this.held().used;
      for (const reserve of this.#living()) reserve.free();
      if (this.held().used === before) throw error;
      return native().alloc(this.handle, dtype, shape);
    }
  }

  /** Refuses to allocate beyond `bytes` (0: no limit but the system's). */
  setMemoryLimit(bytes: number): void {
    if (!Number.isSafeInteger(bytes) || bytes < 0) {
      throw new RangeError(`setMemoryLimit: bytes is ${bytes}, expected a whole number, 0 or more`);
    }
    native().setMemoryLimit(this.handle, bytes);
  }

  /** Gives memory that is kept for reuse back to the system. */
  trim(): void {
    for (const reserve of this.#living()) reserve.free();
    native().trim(this.handle);
  }

  /** Resolves with the device's clock in milliseconds once all that is queued now has run. */
  async stamp(): Promise<number> {
    try {
      return await native().stamp(this.handle);
    } catch (error) {
      throw deviceError('stamp', error);
    }
  }
}

const opened = new Map<string, Device>();

/** The addon reads these when the CPU is opened; what it would not understand is refused here. */
const variables: Readonly<Record<string, readonly [RegExp, string]>> = {
  SELECTIVE_SCAN_LEVEL: [/^(v4|v3|base)?$/, 'v4, v3 or base'],
  SELECTIVE_SCAN_THREADS: [/^([1-9]\d{0,3})?$/, 'a whole number, 1 or more'],
};

function checkEnvironment(): void {
  for (const [name, [allowed, wanted]] of Object.entries(variables)) {
    const value = process.env[name];
    if (value !== undefined && !allowed.test(value)) {
      throw new RangeError(`device: ${name} is '${value}', expected ${wanted}`);
    }
  }
}

/**
 * Opens a device: `cpu`, `cuda` or `cuda:<index>`; the same one each time. Without a name it is
 * the one that the environment variable SELECTIVE_SCAN_DEVICE names, or the CPU.
 * @throws DeviceError with all that was tried, when there is no such device.
 */
export function device(given?: string | Device): Device {
  if (given instanceof Device) return given;
  const name = given === undefined ? process.env['SELECTIVE_SCAN_DEVICE'] || 'cpu' : given;
  if (typeof name !== 'string') throw new TypeError(`device: name is ${kindOf(name)}, expected a string`);
  const match = /^(?:(cpu)|(cuda)(?::(\d{1,3}))?)$/.exec(name);
  if (!match) {
    const what = given === undefined ? 'SELECTIVE_SCAN_DEVICE' : 'name';
    throw new RangeError(`device: ${what} is '${name}', expected cpu, cuda or cuda:<index>`);
  }
  const index = Number(match[3] ?? 0);
  const id = match[1] ?? `cuda:${index}`;
  const known = opened.get(id);
  if (known) return known;
  checkEnvironment();
  try {
    const made = new Device(id, native().open(match[1] ?? 'cuda', index));
    opened.set(id, made);
    return made;
  } catch (error) {
    throw deviceError(`device: '${name}' is not available`, error);
  }
}

/** How many threads CPU kernels use. The default is the number of cores, or SELECTIVE_SCAN_THREADS. */
export function threads(): number {
  return native().threads();
}

/** Sets how many threads CPU kernels of this process use: 1 to 256. */
export function setThreads(count: number): void {
  if (!Number.isInteger(count) || count < 1 || count > 256) {
    throw new RangeError(`setThreads: count is ${count}, expected a whole number from 1 to 256`);
  }
  native().threads(count);
}
