import { checkFunction, kindOf } from './arguments';
import { Device } from './device';
import { DisposedError } from './errors';
import { deviceError, native, type GraphHandle } from './native';

/** Recorded ops that run again as one call. Made by `capture`. */
export class Graph<R = unknown> {
  readonly device: Device;
  /** What the captured function returned; tensors in it hold the results of the last replay. */
  readonly result: R;
  #handle: GraphHandle | undefined;

  constructor(device: Device, handle: GraphHandle, result: R) {
    this.device = device;
    this.#handle = handle;
    this.result = result;
  }

  /** Queues all recorded ops. */
  replay(): void {
    if (this.#handle === undefined) throw new DisposedError('replay: graph is disposed');
    try {
      native().replay(this.#handle);
    } catch (error) {
      throw deviceError('replay', error);
    }
  }

  /** Frees the graph and the memory of the tensors that were made inside it. */
  dispose(): void {
    if (this.#handle !== undefined) native().drop(this.#handle);
    this.#handle = undefined;
  }
}

/**
 * Records the ops that `fn` calls on `device`, without running them. Tensors made inside belong to
 * the graph; what varies from one replay to the next is a tensor that an op updates in place or that
 * `set` fills between replays. Nothing can be read or written while recording.
 */
export function capture<R>(device: Device, fn: () => R): Graph<R> {
  if (!(device instanceof Device))
    throw new TypeError(`capture: device is ${kindOf(device)}, expected a Device`);
  checkFunction('capture', fn);
  if (device.capturing) throw new Error('capture: a capture is under way already');
  native().beginCapture(device.handle);
  device.capturing = true;
  let result: R;
  try {
    result = fn();
    if (result instanceof Promise) {
      result.catch(() => {}); // it may fail on what is dropped here; this error says why
      throw new TypeError('capture: fn is async, expected a plain function');
    }
  } catch (error) {
    device.capturing = false;
    native().drop(native().endCapture(device.handle));
    throw error;
  }
  device.capturing = false;
  return new Graph(device, native().endCapture(device.handle), result);
}
