import { addonPath, loadAddon } from './loader';
import { DeviceError } from './errors';

declare const handle: unique symbol;
/** Opaque values that the addon hands out. */
export type DeviceHandle = { readonly [handle]: 'device' };
export type TensorHandle = { readonly [handle]: 'tensor' };
export type GraphHandle = { readonly [handle]: 'graph' };

export interface Description {
  readonly name: string;
  readonly detail: string;
  readonly memory: number;
  readonly units: number;
  readonly blas: string;
  readonly kernels: readonly { readonly name: string; readonly signature: string }[];
}

/** The library of FFTs: which one, or why there is none and what to install. */
export interface Fft {
  readonly found: boolean;
  readonly text: string;
}

export interface MemoryUse {
  /** Live tensor handles. */
  readonly tensors: number;
  /** Bytes in live tensors and graphs. */
  readonly used: number;
  /** Bytes kept for reuse: what was freed, and idle states of `generate`. */
  readonly cached: number;
  /** The largest `used` so far. */
  readonly peak: number;
}

export interface Native {
  open(kind: string, index: number): DeviceHandle;
  describe(device: DeviceHandle): Description;
  fft(device: DeviceHandle): Fft;
  usage(device: DeviceHandle): MemoryUse;
  setMemoryLimit(device: DeviceHandle, bytes: number): void;
  trim(device: DeviceHandle): void;
  threads(count?: number): number;
  /** `spent`: a released handle, which becomes the new one. */
  alloc(device: DeviceHandle, dtype: number, shape: readonly number[], spent?: TensorHandle): TensorHandle;
  view(
    tensor: TensorHandle,
    dtype: number,
    offset: number,
    shape: readonly number[],
    stride: number,
    spent?: TensorHandle,
  ): TensorHandle;
  release(tensor: TensorHandle): void;
  read(tensor: TensorHandle): Promise<ArrayBuffer>;
  write(
    tensor: TensorHandle,
    byteOffset: number,
    bytes: Uint8Array,
    copy: boolean,
  ): Promise<void> | undefined;
  stamp(device: DeviceHandle): Promise<number>;
  run(device: DeviceHandle, kernel: number, ...args: readonly (TensorHandle | number | undefined)[]): void;
  beginCapture(device: DeviceHandle): void;
  endCapture(device: DeviceHandle): GraphHandle;
  replay(graph: GraphHandle): void;
  drop(graph: GraphHandle): void;
}

let loaded: Native | undefined;

/** The addon, loaded on first use. */
export function native(): Native {
  return (loaded ??= loadAddon(addonPath()) as Native);
}

/** Released handles that nobody holds any more. */
const spent: TensorHandle[] = [];
const mostSpent = 256;

/** A handle to be used again, where there is one: for `alloc` and `view`. */
export const spentHandle = (): TensorHandle | undefined => spent.pop();

/** Gives a handle back. Nobody may use it afterwards. */
export function releaseHandle(handle: TensorHandle): void {
  native().release(handle);
  if (spent.length < mostSpent) spent.push(handle);
}

/**
 * Turns what the addon throws about a device into a `DeviceError`, with the call's name in front. The
 * addon's errors belong to the context that loaded it first, so that `instanceof` would not do in jest.
 */
export function deviceError(call: string, error: unknown): unknown {
  const { code, message } = (error ?? {}) as { code?: unknown; message?: unknown };
  if (code !== 'SELECTIVE_SCAN_DEVICE') return error;
  return new DeviceError(`${call}: ${String(message)}`, { cause: error });
}
