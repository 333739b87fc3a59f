import { checkFlag, checkNames, checkNumbers, kindOf } from '../arguments';
import { device as openDevice, type Device } from '../device';
import { scope, Tensor } from '../tensor';
import { selectiveScanPacked } from './scan';

type Values = Float32Array | readonly number[];

export interface SelectiveScanInput {
  readonly batch: number;
  readonly length: number;
  readonly dim: number;
  /** State size N. */
  readonly dState: number;
  /** Groups that share B and C; `dim` is a multiple of it. Default 1. */
  readonly groups?: number;
  /** [batch, length, dim] */
  readonly u: Values;
  /** [batch, length, dim] */
  readonly delta: Values;
  /** [dim, dState] */
  readonly A: Values;
  /** [batch, length, groups, dState], or [dim, dState] for a time-invariant system. */
  readonly B: Values;
  /** As B. */
  readonly C: Values;
  /** [dim] */
  readonly D?: Values;
  /** [batch, length, dim] */
  readonly z?: Values;
  /** [dim] */
  readonly deltaBias?: Values;
  readonly deltaSoftplus?: boolean;
  /** [batch, dim, dState]; zero if absent. */
  readonly initialState?: Values;
  readonly device?: Device | string;
}

export interface SelectiveScanOutput {
  /** [batch, length, dim] */
  readonly y: Float32Array;
  /** [batch, dim, dState] */
  readonly lastState: Float32Array;
}

const inputNames: readonly (keyof SelectiveScanInput)[] = [
  ...(['batch', 'length', 'dim', 'dState', 'groups'] as const),
  ...(['u', 'delta', 'A', 'B', 'C', 'D', 'z', 'deltaBias', 'deltaSoftplus'] as const),
  ...(['initialState', 'device'] as const),
];

/**
 * The selective scan (Gu and Dao 2023, algorithm 2) on plain arrays, row-major: see
 * `selectiveScanPacked` for the formula, and for scans that stay on the device. B and C are taken as
 * per token where their length allows both.
 * @throws TypeError, RangeError that name the argument, before any work.
 */
export async function selectiveScan(input: SelectiveScanInput): Promise<SelectiveScanOutput> {
  checkNames('selectiveScan', input, inputNames);
  const { batch, length, dim, dState, groups = 1 } = input;
  for (const [name, value] of Object.entries({ batch, length, dim, dState, groups })) {
    if (!Number.isSafeInteger(value) || value < 1) {
      throw new RangeError(`selectiveScan: ${name} is ${String(value)}, expected a whole number, 1 or more`);
    }
  }
  if (dim % groups !== 0)
    throw new RangeError(`selectiveScan: groups is ${groups}, expected a divisor of dim, ${dim}`);
  checkFlag('selectiveScan', 'deltaSoftplus', input.deltaSoftplus);
  const tokens = batch * length;
  const device = openDevice(input.device);

  const { y, state } = scope(() => {
    const take = (name: keyof SelectiveScanInput, ...shapes: readonly (readonly number[])[]): Tensor => {
      const values = input[name] as Values;
      if (!(values instanceof Float32Array) && !Array.isArray(values)) {
        throw new TypeError(
          `selectiveScan: ${name} is ${kindOf(values)}, expected a Float32Array or numbers`,
        );
      }
      const shape = shapes.find((shape) => shape.reduce((a, b) => a * b, 1) === values.length);
      if (!shape) {
        const wanted = shapes.map((shape) => `[${shape.join(',')}]`).join(' or ');
        throw new TypeError(`selectiveScan: ${name} has ${values.length} elements, expected ${wanted}`);
      }
      if (Array.isArray(values)) checkNumbers('selectiveScan', name, values);
      return Tensor.from(values, shape, { device });
    };
    const optional = (name: keyof SelectiveScanInput, ...shapes: readonly (readonly number[])[]) =>
      input[name] === undefined ? undefined : take(name, ...shapes);
    const ints = (values: Int32Array) => Tensor.from(values, [values.length], { device });
    const perToken = [tokens, groups, dState];
    // First what there must be as much of as the sizes say: nothing larger is made for sizes alone.
    const [u, A] = [take('u', [tokens, dim]), take('A', [dim, dState])];
    const state =
      optional('initialState', [batch, dim, dState]) ??
      Tensor.from(new Float32Array(batch * dim * dState), [batch, dim, dState], { device });
    const y = selectiveScanPacked({
      u,
      delta: take('delta', [tokens, dim]),
      A,
      B: take('B', perToken, [dim, dState]),
      C: take('C', perToken, [dim, dState]),
      D: optional('D', [dim]),
      z: optional('z', [tokens, dim]),
      deltaBias: optional('deltaBias', [dim]),
      offsets: ints(Int32Array.from({ length: batch + 1 }, (_, i) => i * length)),
      state,
      deltaSoftplus: input.deltaSoftplus ?? false,
    });
    return { y, state };
  });
  try {
    const [values, lastState] = await Promise.all([y.data(), state.data()]);
    return { y: values as Float32Array, lastState: lastState as Float32Array };
  } finally {
    y.dispose();
    state.dispose();
  }
}
