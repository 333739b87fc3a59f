import { checkFunction, kindOf } from '../arguments';
import { capture } from '../capture';
import { device as openDevice, type Device } from '../device';
import { ops, type Op } from '../op';
import type { DType, Tensor, TypedArray } from '../tensor';
import { attrsToTry, bits, decode, dtypeChoices, inputsOf, sizeNames, toTensor, type Case } from './cases';
import { argumentsOf, call, disposeAll, measure, relativeError, type Results } from './measure';
import { isSequential, packedAndPieces, roundingOn } from './pieces';
import { references } from './reference';

/**
 * What is compared: `f64` is the kernel with its reference; `again` one run with the next, to the bit;
 * `captured` a replayed graph with the plain call, to the bit; `pieces` packed sequences with each of them cut
 * into pieces, down to single tokens: to the bit on the CPU, within rounding on a GPU.
 */
export type VerifyCheck = 'f64' | 'again' | 'captured' | 'pieces';

/** All comparisons of one kind of one op's results in one dtype. */
export interface VerifyRow {
  readonly op: string;
  /** Of the results that were compared. */
  readonly dtype: DType;
  readonly check: VerifyCheck;
  readonly cases: number;
  /** The largest difference beside its bound, as shares of the largest magnitude: of the case nearest its bound. */
  readonly error: number;
  readonly bound: number;
  /** What that case was. */
  readonly worst: string;
  readonly passed: boolean;
  /** Why nothing could be compared. */
  readonly reason?: string;
}

interface Comparison {
  readonly dtype: DType;
  readonly error: number;
  readonly bound: number;
  readonly what: string;
}

const lengths = [1, 3, 33, 257, 1025];
const someLengths = [3, 33];
/** What the sizes are that are not tried: no tile, vector or warp is full. */
const other = 17;
/** Larger sizes no kernel promises to take, or they multiply. */
const most: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  selective_scan: { n: 256 },
  selective_scan_backward: { n: 256, t: 257 },
  mamba_step: { n: 256 },
  mamba_layer_step: { n: 256 },
  s4d_scan: { n: 256 },
  s4d_scan_backward: { n: 256 },
  s4d_kernel: { n: 256 },
  s4d_kernel_backward: { n: 256 },
  expert_matmul: { e: 33 },
  expert_combine: { k: 33 },
  expert_combine_backward: { k: 33 },
  expert_weight_gradient: { e: 33 },
  expert_column_sums: { e: 33 },
  turn_experts: { e: 33 },
  expert_up: { e: 33 },
  expert_down: { e: 33, k: 3 },
  expert_sum: { e: 33, k: 3 },
  norm_route_up: { e: 33 },
  expert_layer_step: { e: 33 },
};

const mostSeed = 0xffff;

/** Some of everything: more than one tile, vector and warp, and none of them full. */
const several = { t: 257, d: 150, m: 40, n: 70, k: 130, v: 1025 };

/** These sizes of an op, as far as it has them; the others are `other`. */
const withSizes = (op: Op, sizes: Case['sizes']) =>
  Object.fromEntries(
    sizeNames(op).map((name) => [name, Math.min(sizes[name] ?? other, most[op.opName]?.[name] ?? Infinity)]),
  );

/**
 * Every dtype × every length in the place of every size, and every form, attribute and absence; where tensors
 * have dtypes of their own, some lengths of every mixture.
 */
function casesOf(op: Op): Case[] {
  const names = sizeNames(op);
  const sized =
    names.length === 0
      ? lengths.map((n) => [n, withSizes(op, {})] as const) // other values at least
      : names.flatMap((name) => lengths.map((n) => [n, withSizes(op, { [name]: n })] as const));
  const optional = [...op.inputs].filter(([, spec]) => spec.optional).map(([name]) => name);
  const alternatives = Math.max(...[...op.inputs.values()].map(({ forms }) => forms.length));
  const variants: Partial<Case>[] = [
    ...Array.from({ length: alternatives }, (_, form) => ({ form })),
    ...attrsToTry(op).map((attrs) => ({ attrs })),
    ...optional.map((name) => ({ without: [name] })),
    { without: optional },
  ];
  const choices = dtypeChoices(op);
  const same = choices.filter((dtypes) => new Set(Object.values(dtypes)).size <= 1);
  // Dtypes innermost: their cases share the values that are drawn.
  const inEach = (dtypes: typeof choices, each: Omit<Case, 'dtypes'>) =>
    dtypes.map((chosen): Case => ({ ...each, dtypes: chosen }));
  const some = withSizes(op, { t: 33, d: 35 });
  return [
    ...sized.flatMap(([n, sizes], i) =>
      inEach(someLengths.includes(n) ? choices : same, { sizes, seed: i + 1 }),
    ),
    ...variants.flatMap((variant) => inEach(same, { sizes: some, ...variant })),
    ...inEach(same, { sizes: withSizes(op, several) }),
  ];
}

/** A case in words: `d 1025, T bf16`. */
function inWords({ sizes, dtypes = {}, without = [], form = 0, attrs = {} }: Case): string {
  const parts = [
    ...Object.entries(sizes).filter(([, n]) => n !== other),
    ...Object.entries(dtypes),
    ...Object.entries(attrs),
  ];
  const words = parts.map(([name, value]) => `${name} ${String(value)}`);
  if (form > 0) words.push(`form ${form}`);
  if (without.length > 0) words.push(`without ${without.join(', ')}`);
  return words.join(', ') || `all sizes ${other}`;
}

/** The case's own seed, of those that are tried with this one. */
const seeded = (each: Case, seed: number): Case => ({ ...each, seed: (each.seed ?? 1) + 0x10001 * seed });

async function* againstF64(op: Op, device: Device, seed: number): AsyncGenerator<Comparison> {
  for (const each of casesOf(op))
    for (const { result, dtype, error, bound } of await measure(op, device, seeded(each, seed)))
      yield { dtype, error, bound, what: `${result}; ${inWords(each)}` };
}

/** 0 for the same bits, otherwise how far they are apart. */
async function bitError(got: Tensor, wanted: Tensor): Promise<number> {
  if ((await bits(got)).equals(await bits(wanted))) return 0;
  const [a, b] = [decode(await got.data(), got.dtype), decode(await wanted.data(), wanted.dtype)];
  return relativeError(a, b) || Number.MIN_VALUE;
}

type Args = Readonly<Record<string, unknown>>;

/** Runs the same call twice from the same values, `second` as it likes. */
async function* repeated(
  op: Op,
  device: Device,
  seed: number,
  second: (args: Args) => { results: Results; free?: () => void },
): AsyncGenerator<Comparison> {
  const sizes = withSizes(op, several);
  for (const dtypes of dtypeChoices(op)) {
    const each = seeded({ sizes, dtypes }, seed);
    const inputs = inputsOf(op, each);
    const [before, after] = [0, 1].map(() => argumentsOf(op, each, device, toTensor, inputs)) as [Args, Args];
    const wanted = call(op, before);
    const { results, free } = second(after);
    try {
      for (const [result, tensor] of Object.entries(results)) {
        const error = await bitError(tensor, wanted[result]!);
        yield { dtype: tensor.dtype, error, bound: 0, what: `${result}; ${inWords(each)}` };
      }
    } finally {
      free?.();
      disposeAll(before, wanted, after, results);
    }
  }
}

const again = (op: Op, device: Device, seed: number) =>
  repeated(op, device, seed, (args) => ({ results: call(op, args) }));

const captured = (op: Op, device: Device, seed: number) =>
  repeated(op, device, seed, (args) => {
    const graph = capture(device, () => call(op, args));
    graph.replay();
    return { results: graph.result, free: () => graph.dispose() };
  });

const packing = { lengths: [1025, 1, 0, 257, 33, 3], slots: [3, 1, 4, -1, 0, 6] };
const steps = [1, 3, 33, 257, 1025];

async function* inPieces(op: Op, device: Device, seed: number): AsyncGenerator<Comparison> {
  if (!isSequential(op)) return;
  const on = Object.entries(op.schema.attrs ?? {}).filter(([, value]) => typeof value === 'boolean');
  const attrs = Object.fromEntries(on.map(([name]) => [name, true]));
  const forms = Math.max(...[...op.inputs.values()].map(({ forms }) => forms.length));
  for (const dtype of ['f32', 'bf16', 'f16'] as const)
    for (let form = 0; form < forms; form++)
      for (const step of steps) {
        const each = {
          ...packing,
          sizes: { d: 70, n: 16, g: 2, w: 4 },
          dtype,
          form,
          attrs,
          seed: seeded({ sizes: {} }, seed).seed,
        };
        for (const { result, dtype, packed, pieces } of await packedAndPieces(op, device, each, step)) {
          const error = sameBytes(packed, pieces)
            ? 0
            : relativeError(decode(pieces, dtype), decode(packed, dtype)) || Number.MIN_VALUE;
          const what = `${result}; pieces of ${step}${form > 0 ? `, form ${form}` : ''}`;
          yield { dtype, error, bound: roundingOn(device, dtype), what };
        }
      }
}

function sameBytes(a: TypedArray, b: TypedArray): boolean {
  const [x, y] = [a, b].map(({ buffer, byteOffset, byteLength }) =>
    Buffer.from(buffer, byteOffset, byteLength),
  );
  return x!.equals(y!);
}

const checks = { f64: againstF64, again, captured, pieces: inPieces } as const;

/** The comparison nearest to its bound, or over it by most. */
const share = ({ error, bound }: Comparison) => (error === 0 ? 0 : error / bound);

/** Runs one check of one op: a row for each dtype that its results have, or one that says why it failed. */
async function rowsOf(op: Op, device: Device, check: VerifyCheck, seed: number): Promise<VerifyRow[]> {
  const found = new Map<DType, { cases: number; worst: Comparison }>();
  const failed: VerifyRow[] = [];
  try {
    for await (const each of checks[check](op, device, seed)) {
      const { cases, worst } = found.get(each.dtype) ?? { cases: 0, worst: each };
      found.set(each.dtype, { cases: cases + 1, worst: share(each) > share(worst) ? each : worst });
    }
  } catch (error) {
    failed.push(unchecked(op.opName, check, (error as Error).message));
  }
  const rows = [...found].map(([dtype, { cases, worst }]): VerifyRow => {
    const { error, bound, what } = worst;
    return { op: op.opName, dtype, check, cases, error, bound, worst: what, passed: error <= bound };
  });
  return [...rows, ...failed];
}

const unchecked = (op: string, check: VerifyCheck, reason: string): VerifyRow => ({
  op,
  dtype: 'f32',
  check,
  cases: 0,
  error: NaN,
  bound: 0,
  worst: '',
  passed: false,
  reason,
});

/**
 * Holds every kernel of `device` against the same maths in f64, for every dtype, odd lengths, and sequences cut
 * in every way; see `VerifyCheck`. Takes about 40 seconds of processor time. A kernel without a reference is a
 * row that has not passed. `visit` sees the rows of each op as they come; another `seed` draws other values.
 * @throws RangeError unless `seed` is a whole number from 0 to 65535.
 */
export async function verify(
  on?: Device | string,
  visit?: (rows: readonly VerifyRow[]) => void,
  seed = 0,
): Promise<VerifyRow[]> {
  if (visit !== undefined) checkFunction('verify', visit, 'visit');
  if (typeof seed !== 'number') throw new TypeError(`verify: seed is ${kindOf(seed)}, expected a number`);
  if (!Number.isInteger(seed) || seed < 0 || seed > mostSeed)
    throw new RangeError(`verify: seed is ${seed}, expected a whole number from 0 to ${mostSeed}`);
  const device = openDevice(on);
  const all: VerifyRow[] = [];
  for (const name of new Set([...ops.keys(), ...device.kernels.keys()])) {
    const op = ops.get(name);
    const rows: VerifyRow[] = [];
    if (!op) rows.push(unchecked(name, 'f64', 'the op table has no such op'));
    else if (!(name in references))
      rows.push(unchecked(name, 'f64', 'there is no reference to hold it against'));
    else
      for (const check of Object.keys(checks) as VerifyCheck[])
        rows.push(...(await rowsOf(op, device, check, seed)));
    visit?.(rows);
    all.push(...rows);
  }
  return all;
}
