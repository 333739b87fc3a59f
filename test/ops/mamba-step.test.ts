/** One op for a mixer's step: what the ops that it stands for give, one after the other. */
import { matmul } from '../../lib/ops/matmul';
import type { Op } from '../../lib/op';
import { causalConv1dPacked, mambaStep, selectiveScanPacked } from '../../lib/ops/scan';
import { scope, Tensor } from '../../lib/tensor';
import { inputsOf, read, toTensor, type Sizes } from '../../lib/verify/cases';
import { onEach } from '../devices';
import { expectSame, relativeError } from '../same';

const step = { f32: 1e-5, bf16: 2 ** -7, f16: 2 ** -10 } as const;
/** The distance of a state's two neighbours in 16 bits, as a share of it: at most. */
const unit = { bf16: 2 ** -7, f16: 2 ** -10 } as const;
type Args = Parameters<typeof mambaStep>[0];

// Batches on both sides of where CUDA changes its kernels; sizes that its fast kernels take, and not.
const sizes: readonly Sizes[] = [
  { b: 1, d: 1536, r: 48, n: 16, w: 4 },
  { b: 3, d: 96, r: 8, n: 16, w: 4 },
  { b: 8, d: 544, r: 40, n: 16, w: 4 },
  { b: 9, d: 544, r: 40, n: 16, w: 4 },
  { b: 21, d: 96, r: 8, n: 16, w: 4 },
  { b: 137, d: 64, r: 160, n: 16, w: 4 },
  { b: 2, d: 70, r: 5, n: 16, w: 4 },
  { b: 18, d: 64, r: 8, n: 33, w: 4 },
  { b: 2, d: 64, r: 8, n: 16, w: 3 },
];

// Of published models: CUDA has kernels of their own for many sequences of these in 16 bits.
const published: readonly Sizes[] = [
  { b: 70, d: 1536, r: 48, n: 16, w: 4 },
  { b: 17, d: 2048, r: 64, n: 16, w: 4 },
  { b: 18, d: 3072, r: 96, n: 16, w: 4 },
  { b: 67, d: 4096, r: 128, n: 16, w: 4 },
  { b: 20, d: 5120, r: 160, n: 16, w: 4 },
];

describe.each(onEach)('on %s', (_, device) => {
  const given = (each: Sizes, dtypes: Readonly<Record<string, 'f32' | 'bf16' | 'f16'>>): Args => {
    const inputs = inputsOf(mambaStep as unknown as Op, { sizes: each, dtypes });
    const tensors = Object.entries(inputs).map(([name, value]) => [name, toTensor(value, device)]);
    return Object.fromEntries(tensors) as Args;
  };

  /** The chain of ops, for the same arguments. */
  const oneByOne = (args: Args) => {
    const [d, r] = args.dtWeight.shape as [number, number];
    const n = args.A.shape[1]!;
    const { offsets, slots } = args;
    const u = causalConv1dPacked({
      x: args.xz.columns(0, d),
      weight: args.convWeight,
      bias: args.convBias,
      offsets,
      slots,
      state: args.convState,
      silu: true,
    });
    const dbc = matmul({ x: u, weight: args.xProj });
    const group = (begin: number) => dbc.columns(begin, begin + n).reshape([u.shape[0]!, 1, n]);
    const y = selectiveScanPacked({
      u,
      delta: matmul({ x: dbc.columns(0, r), weight: args.dtWeight }),
      A: args.A,
      B: group(r),
      C: group(r + n),
      D: args.D,
      z: args.xz.columns(d, 2 * d),
      deltaBias: args.dtBias,
      offsets,
      slots,
      state: args.scanState,
      deltaSoftplus: true,
    });
    return { y, u, dbc };
  };

  describe.each([
    { T: 'f32', W: 'f32' },
    { T: 'f32', W: 'bf16' },
    { T: 'bf16', W: 'bf16' },
    { T: 'f16', W: 'f16' },
  ] as const)('%p', (dtypes) => {
    const own = device.id === 'cpu' || dtypes.T === 'f32' ? [] : published.slice(dtypes.T === 'bf16' ? 0 : 3);
    it.each([...sizes, ...own])('gives what the ops give, %p', async (each) => {
      const args = given(each, dtypes);
      const other = given(each, dtypes);
      const got = mambaStep(args);
      const wanted = oneByOne(other);
      for (const name of ['u', 'dbc', 'y'] as const)
        expectSame(await got[name].data(), await wanted[name].data(), { on: device, dtype: dtypes.T });
      const { convState, scanState } = args;
      expectSame(await convState.data(), await other.convState.data(), { on: device, dtype: dtypes.T });
      // States are f32, but what goes into them was rounded to T.
      const [states, chained] = [await scanState.data(), await other.scanState.data()];
      if (device.id === 'cpu') expectSame(states, chained, { on: device });
      else expect(relativeError(states, chained)).toBeLessThanOrEqual(step[dtypes.T]);
    });

    it.each(['bf16', 'f16'] as const)('leaves states in %s beside those that f32 would be', async (S) => {
      const many = S === dtypes.T ? own : [];
      for (const each of [sizes[0]!, sizes[3]!, sizes[5]!, sizes[7]!, ...many]) {
        const args = given(each, { ...dtypes, S });
        const values = inputsOf(mambaStep as unknown as Op, { sizes: each, dtypes: { ...dtypes, S } });
        const scanState = toTensor({ ...values['scanState']!, dtype: 'f32' }, device);
        const wide = { ...given(each, { ...dtypes, S }), scanState };
        const y = { got: mambaStep(args).y, wanted: mambaStep(wide).y };
        expectSame(await y.got.data(), await y.wanted.data(), { on: device, dtype: dtypes.T });
        const [got, right] = [await read(args.scanState), await read(scanState)];
        // On a GPU the two may add up u and delta in other orders, which rounding to T then enlarges.
        const slack = device.id === 'cpu' ? 1e-6 : step[dtypes.T];
        const most = right.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
        const outside = got.filter(
          (v, i) => !(Math.abs(v - right[i]!) <= Math.abs(right[i]!) * unit[S] + 2 ** -24 + slack * most),
        );
        expect(outside).toHaveLength(0);
        expect(got.some((v, i) => v !== right[i])).toBe(true);
      }
    });

    it('gives a row the same bits on the CPU, and nearly so on a GPU, whatever stands beside it', async () => {
      const each = { b: 12, d: 96, r: 8, n: 16, w: 4 };
      const together = given(each, dtypes);
      const alone = given(each, dtypes);
      const all = await mambaStep(together).y.data();
      for (let row = 0; row < each.b; row++) {
        const one = mambaStep({
          ...alone,
          xz: alone.xz.rows(row, row + 1),
          offsets: Tensor.from(Int32Array.of(0, 1), [2], { device }),
          slots: alone.slots.rows(row, row + 1),
        });
        const wanted = all.subarray(row * each.d, (row + 1) * each.d);
        expectSame(await one.y.data(), wanted, { on: device, dtype: dtypes.T });
      }
    });
  });

  it.each([
    { S: 'bf16', b: 71, d: 1536, r: 48, n: 16, w: 4 },
    { S: 'f32', b: 73, d: 1536, r: 48, n: 16, w: 4 },
    { S: 'bf16', b: 37, d: 4096, r: 128, n: 16, w: 4 },
    { S: 'f32', b: 38, d: 5120, r: 160, n: 16, w: 4 },
  ] as const)(
    'gives a row of many the same bits again and again, and whatever stands beside it, %p',
    async ({ S, ...each }) => {
      const dtypes = { T: 'bf16', W: 'bf16', S } as const;
      const args = given(each, dtypes);
      const all = await read(mambaStep(args).y);
      const states = await read(args.scanState);
      for (const [from, to] of [
        [0, each.b],
        [0, each.b],
        [3, 20],
        [each.b - 19, each.b],
      ] as const) {
        const other = given(each, dtypes);
        const offsets = Int32Array.from({ length: to - from + 1 }, (_, i) => i);
        const { y } = mambaStep({
          ...other,
          xz: other.xz.rows(from, to),
          offsets: Tensor.from(offsets, [offsets.length], { device }),
          slots: other.slots.rows(from, to),
        });
        expect((await read(y)).every((v, i) => Object.is(v, all[from * each.d + i]))).toBe(true);
        if (to - from < each.b) continue;
        expect((await read(other.scanState)).every((v, i) => Object.is(v, states[i]))).toBe(true);
      }
    },
  );

  it.each([
    ['offsets', [0, 1, 3], 'offsets[2] is 3, expected 2'],
    ['offsets', [1, 1, 2], 'offsets[0] is 1, expected 0'],
    ['slots', [0, 4], 'slots[1] is 4, expected less than 4'],
  ] as const)('refuses %s %p when it is read, and works on', async (name, wrong, message) => {
    for (const T of ['f32', 'bf16'] as const) {
      const args = given({ b: 2, d: 64, r: 8, n: 16, w: 4 }, { T, W: T });
      const bad = Tensor.from(Int32Array.from(wrong), [wrong.length], { device });
      const { y } = mambaStep({ ...args, [name]: bad });
      await expect(y.data()).rejects.toThrow(message);
      await expect(mambaStep(args).y.data()).resolves.toBeDefined();
    }
  });

  it('refuses sizes that do not belong together', () => {
    const args = given({ b: 2, d: 64, r: 8, n: 16, w: 4 }, {});
    const wide = Tensor.empty([2, 130], 'f32', device);
    expect(() => mambaStep({ ...args, xz: wide })).toThrow('xz has 130 columns, expected 2 d = 128');
    const low = Tensor.empty([39, 64], 'f32', device);
    expect(() => mambaStep({ ...args, xProj: low })).toThrow('xProj has 39 rows, expected r + 2 n = 40');
  });

  it('makes nothing but its three outputs', () => {
    const args = given({ b: 2, d: 64, r: 8, n: 16, w: 4 }, {});
    const before = device.memoryUsage().tensors;
    scope(() => {
      mambaStep(args);
      expect(device.memoryUsage().tensors - before).toBe(3);
    });
    expect(device.memoryUsage().tensors).toBe(before);
  });
});
