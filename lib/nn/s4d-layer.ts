import { checkFlag, checkNames, checkNumbers, kindOf } from '../arguments';
import { device as openDevice, type Device } from '../device';
import { DisposedError } from '../errors';
import { scope, sizeOf, Tensor } from '../tensor';
import { S4DMixer, s4dInits, s4dRules, type S4DConfig } from './s4d';
import { s4dModes, type S4DMode } from './s4d-cost';
import { Weights } from './weights';

type Values = Float32Array | readonly number[];

export interface S4DOptions {
  /** Channels. */
  readonly dModel: number;
  /** N: the real size of each channel's state; even, at most 512. Default 64. */
  readonly dState?: number;
  /** Where A starts (Gu et al. 2022, section 4.2). Default `lin`. */
  readonly init?: S4DConfig['init'];
  /** Default `zoh`, zero-order hold. */
  readonly discretization?: S4DConfig['discretization'];
  /** Δ starts log-uniform between these. Default 0.001 and 0.1. */
  readonly dtMin?: number;
  readonly dtMax?: number;
  /** Of the parameters that are drawn. Default 0. */
  readonly seed?: number;
  /** Instead of drawn ones: `log_dt` [d], `log_A_real` and `A_imag` [d, N/2], `C` [d, N/2, 2], `D` [d]. */
  readonly parameters?: Readonly<Record<string, Values>>;
  readonly device?: Device | string;
}

export interface S4DInput {
  readonly batch: number;
  readonly length: number;
  /** [batch, length, dModel] */
  readonly u: Values;
  /** [batch, dModel, dState/2, 2] (real, imaginary), as `lastState`; zero if absent. */
  readonly initialState?: Values;
  /** Also gives `lastState`; it makes the call a recurrence. Default: where `initialState` is given. */
  readonly returnState?: boolean;
  /** Default `auto`. */
  readonly mode?: S4DMode;
}

export interface S4DOutput {
  /** [batch, length, dModel] */
  readonly y: Float32Array;
  /** [batch, dModel, dState/2, 2] */
  readonly lastState?: Float32Array;
}

/** Packed sequences on the layer's device. */
export interface S4DPacked {
  /** T[t, dModel], of any float dtype. */
  readonly u: Tensor;
  /** i32[s+1]: sequence i is rows `offsets[i]` to `offsets[i+1]`. */
  readonly offsets: Tensor;
  /** i32[s]: the row of `state` of each sequence; row i without it, negative for none. */
  readonly slots?: Tensor;
  /** f32[p, dModel, dState/2, 2]: where sequences start from, updated. It makes the call a recurrence. */
  readonly state?: Tensor;
  /** Tokens of the longest sequence, where it is known: a convolution is that long. */
  readonly longest?: number;
  readonly mode?: S4DMode;
}

const optionNames: readonly (keyof S4DOptions)[] = [
  ...(['dModel', 'dState', 'init', 'discretization', 'dtMin', 'dtMax'] as const),
  ...(['seed', 'parameters', 'device'] as const),
];
const inputNames: readonly (keyof S4DInput)[] = [
  ...(['batch', 'length', 'u', 'initialState', 'returnState', 'mode'] as const),
];
const packedNames: readonly (keyof S4DPacked)[] = [
  ...(['u', 'offsets', 'slots', 'state', 'longest', 'mode'] as const),
];

function checkWhole(call: string, sizes: Readonly<Record<string, unknown>>): void {
  for (const [name, value] of Object.entries(sizes))
    if (!Number.isSafeInteger(value) || (value as number) < 1)
      throw new RangeError(`${call}: ${name} is ${String(value)}, expected a whole number, 1 or more`);
}
function checkChoice(call: string, name: string, value: unknown, allowed: readonly string[]): void {
  if (!allowed.includes(value as string))
    throw new RangeError(`${call}: ${name} is ${String(value)}, expected ${allowed.join(', ')}`);
}

/** Throws unless `values` are numbers, as many as `shape` says. */
function checkValues(call: string, name: string, values: unknown, shape: readonly number[]): void {
  if (!(values instanceof Float32Array) && !Array.isArray(values))
    throw new TypeError(`${call}: ${name} is ${kindOf(values)}, expected a Float32Array or numbers`);
  if (values.length !== sizeOf(shape))
    throw new TypeError(`${call}: ${name} has ${values.length} elements, expected [${shape.join(',')}]`);
  if (Array.isArray(values)) checkNumbers(call, name, values);
}

function configOf(options: S4DOptions): S4DConfig {
  const { dModel, dState = 64, init = 'lin', discretization = 'zoh', dtMin = 1e-3, dtMax = 0.1 } = options;
  checkWhole('S4D', { dModel, dState });
  if (dState % 2 !== 0 || dState > 512)
    throw new RangeError(`S4D: dState is ${dState}, expected an even number, at most 512`);
  checkChoice('S4D', 'init', init, s4dInits);
  checkChoice('S4D', 'discretization', discretization, s4dRules);
  for (const [name, value] of Object.entries({ dtMin, dtMax }))
    if (!(value > 0 && value < Infinity))
      throw new RangeError(`S4D: ${name} is ${String(value)}, expected a positive number`);
  if (dtMin > dtMax) throw new RangeError(`S4D: dtMin is ${dtMin}, expected at most dtMax, ${dtMax}`);
  return { dModel, dState, init, discretization, dtMin, dtMax };
}

/**
 * S4D (Gu et al. 2022) as a layer from sequences to sequences, `y = SSM(u) + D·u` for each channel:
 * one set of weights, computed as a recurrence or as a convolution, whichever is faster. Its input,
 * state and output are as `selectiveScan` and `selectiveScanPacked` have them.
 */
export class S4D {
  readonly config: S4DConfig;
  readonly device: Device;
  readonly #weights: Weights;
  readonly #mixer: S4DMixer;
  #disposed = false;

  private constructor(config: S4DConfig, device: Device, weights: Weights, mixer: S4DMixer) {
    this.config = config;
    this.device = device;
    this.#weights = weights;
    this.#mixer = mixer;
  }

  /** A layer with the paper's initialisation, or with `parameters`. @throws TypeError, RangeError by name. */
  static async create(options: S4DOptions): Promise<S4D> {
    checkNames('S4D', options, optionNames);
    const config = configOf(options);
    const { seed = 0, parameters = {} } = options;
    if (!Number.isSafeInteger(seed))
      throw new TypeError(`S4D: seed is ${String(seed)}, expected a whole number`);
    const device = openDevice(options.device);
    const weights = new Weights({ device, dtype: 'f32', seed });
    const layer = new S4D(config, device, weights, new S4DMixer(weights, config));
    try {
      checkNames('S4D', parameters, [...layer.parameters.keys()], 'parameters');
      await weights.load();
      for (const [name, values] of Object.entries(parameters)) {
        const own = layer.parameters.get(name)!;
        checkValues('S4D', `parameters.${name}`, values, own.shape);
        own.set(Float32Array.from(values));
      }
      layer.ready();
      return layer;
    } catch (error) {
      layer.dispose();
      throw error;
    }
  }

  /** `log_dt`, `log_A_real`, `A_imag`, `C` and `D`: write to them, then call `ready`. */
  get parameters(): ReadonlyMap<string, Tensor> {
    return this.#weights.parameters;
  }

  /** Makes the discrete system anew after parameters have changed. */
  ready(): void {
    this.#check('S4D.ready');
    this.#mixer.ready();
  }

  /** Plain arrays in and out. @throws TypeError, RangeError that name the argument, before any work. */
  async run(input: S4DInput): Promise<S4DOutput> {
    this.#check('S4D.run');
    checkNames('S4D.run', input, inputNames);
    const { batch, length, u, initialState, returnState = initialState !== undefined, mode = 'auto' } = input;
    checkWhole('S4D.run', { batch, length });
    checkChoice('S4D.run', 'mode', mode, s4dModes);
    checkFlag('S4D.run', 'returnState', returnState);
    const { dModel, dState } = this.config;
    const stateShape = [batch, dModel, dState / 2, 2];
    checkValues('S4D.run', 'u', u, [batch, length, dModel]);
    if (initialState) checkValues('S4D.run', 'initialState', initialState, stateShape);
    const first = initialState ?? (returnState ? new Float32Array(sizeOf(stateShape)) : undefined);
    const { device } = this;
    const { y, state } = scope(() => {
      const state = first && Tensor.from(first, stateShape, { device });
      const offsets = Int32Array.from({ length: batch + 1 }, (_, i) => i * length);
      const y = this.forward({
        u: Tensor.from(u, [batch * length, dModel], { device }),
        offsets: Tensor.from(offsets, [batch + 1], { device }),
        ...(state && { state }),
        longest: length,
        mode,
      });
      return { y, state };
    });
    try {
      const [values, lastState] = await Promise.all([y.data(), returnState ? state!.data() : undefined]);
      return { y: values as Float32Array, ...(lastState && { lastState: lastState as Float32Array }) };
    } finally {
      y.dispose();
      state?.dispose();
    }
  }

  /**
   * Packed sequences that stay on the device, queued like an op: T[t, dModel].
   * @throws TypeError for other shapes; DeviceError where `mode` asks for FFTs that the device lacks.
   */
  forward(input: S4DPacked): Tensor {
    this.#check('S4D.forward');
    checkNames('S4D.forward', input, packedNames);
    const { u, mode = 'auto', longest, ...where } = input;
    checkChoice('S4D.forward', 'mode', mode, s4dModes);
    for (const [name, tensor] of Object.entries({ u, offsets: where.offsets }))
      if (!(tensor instanceof Tensor))
        throw new TypeError(`S4D.forward: ${name} is ${kindOf(tensor)}, expected a tensor`);
    if (longest !== undefined) checkWhole('S4D.forward', { longest });
    return this.#mixer.forward(u, { ...where, mode, ...(longest !== undefined && { longest }) });
  }

  #check(call: string): void {
    if (this.#disposed) throw new DisposedError(`${call}: layer is disposed`);
  }

  dispose(): void {
    this.#disposed = true;
    this.#mixer.dispose();
    this.#weights.dispose();
  }
}
