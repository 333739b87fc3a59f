/**
 * Offsets beyond 2³¹ elements: the rows at the end of a large tensor get what they get in a small one. Needs a GPU
 * with room for it; where there is none, it says so.
 */
import type { Device } from '../../lib/device';
import { add, cast, copySlots, takeRows, zeroSlots } from '../../lib/ops/elementwise';
import { embedding, matmul } from '../../lib/ops/matmul';
import { addRmsNorm, layerNorm, rmsNorm } from '../../lib/ops/norm';
import { causalConv1dPacked, selectiveScanPacked } from '../../lib/ops/scan';
import { scope, Tensor, type DType } from '../../lib/tensor';
import { bits, normal, randomFrom, roundTo, toTensor } from '../../lib/verify/cases';
import { devices, noGpu } from '../devices';
import { expectSame } from '../same';

const d = 4096;
const t = 2 ** 31 / d + 33; // 2³¹ elements, and some rows
const period = 17; // rows repeat: a small tensor holds all that there are
const need = 40 * 2 ** 30; // four tensors of 4 GiB and one in f32, and what the cache keeps

const on = devices.find(({ id, info }) => id.startsWith('cuda') && info.memory >= need);

/** The rows to look at: the first, around element 2³¹ and the last. */
const places = [0, 2 ** 30 / d - 1, 2 ** 31 / d - 2, t - 3];
const few = 3;

describe('offsets beyond 2³¹ elements', () => {
  if (!on) {
    it('are not tested without a GPU that has the memory', () => {
      console.info(`Offsets beyond 2³¹ elements: no GPU with ${need / 2 ** 30} GiB. ${noGpu ?? ''}`);
      expect(devices.every(({ id, info }) => id === 'cpu' || info.memory < need)).toBe(true);
    });
    return;
  }
  largeTests(on);
});

function largeTests(device: Device): void {
  const ints = (data: Int32Array | readonly number[]) =>
    Tensor.from(Int32Array.from(data), [data.length], { device });
  const random = (shape: readonly number[], dtype: DType, seed: number): Tensor => {
    const next = randomFrom(seed);
    const data = new Float64Array(shape.reduce((a, b) => a * b, 1)).map(() => normal(next));
    return toTensor({ shape, dtype, data: roundTo(data, dtype) }, device);
  };
  /** The numbers of the rows that a large tensor repeats. */
  const numbers = (rows: number) => ints(new Int32Array(rows).map((_, i) => i % period));
  /** A tensor of `rows` rows in which row i is row i mod `period` of `pattern`. */
  const repeated = (pattern: Tensor, rows = t) => takeRows({ x: pattern, rows: numbers(rows) });
  /** What stands in the rows from `begin` on. */
  const there = (pattern: Tensor, begin: number) =>
    takeRows({ x: pattern, rows: ints(Array.from({ length: few }, (_, i) => (begin + i) % period)) });

  afterEach(() => device.trim());

  type Rows = (pattern: Tensor, x: Tensor) => Tensor;
  const weight = () => random([d], 'f32', 2);
  const byRow: Readonly<Record<string, Rows>> = {
    take_rows: (_, x) => x,
    cast: (_, x) => cast({ x, dtype: 'f16' }),
    add: (_, x) => add(x, x),
    rms_norm: (_, x) => rmsNorm({ x, weight: weight() }),
    add_rms_norm: (_, x) => {
      const residual = cast({ x, dtype: 'f32' });
      return addRmsNorm({ x, residual, weight: weight() }).y;
    },
    layer_norm: (_, x) => layerNorm({ x, weight: weight() }),
    causal_conv1d: (_, x) =>
      // Every row is a sequence: neither its place nor its neighbours matter.
      causalConv1dPacked({
        x,
        weight: random([d, 4], 'f32', 3),
        offsets: ints(new Int32Array(x.shape[0]! + 1).map((_, i) => i)),
        silu: true,
      }),
  };

  it.each(Object.entries(byRow))('%s', async (_, rows) => {
    const pattern = random([period, d], 'bf16', 1);
    const y = scope(() => rows(pattern, repeated(pattern)));
    for (const begin of places) {
      const small = scope(() => rows(pattern, there(pattern, begin)));
      expect((await bits(y.rows(begin, begin + few))).equals(await bits(small))).toBe(true);
    }
    y.dispose();
  });

  // The order of a sum depends on how many rows there are: within rounding.
  it('matmul, of large x', async () => {
    const [pattern, weight] = [random([period, d], 'bf16', 1), random([24, d], 'bf16', 2)];
    const y = scope(() => matmul({ x: repeated(pattern), weight }));
    for (const begin of places) {
      const small = matmul({ x: there(pattern, begin), weight });
      const got = await y.rows(begin, begin + few).data();
      expectSame(got, await small.data(), { on: device, dtype: 'bf16' });
    }
    y.dispose();
  });

  it.each([1, 40])('matmul, of a large weight and %i rows', async (m) => {
    const [x, pattern] = [random([m, d], 'bf16', 1), random([period, d], 'bf16', 2)];
    const y = scope(() => matmul({ x, weight: repeated(pattern) })); // [m, t]
    const all = await y.data();
    const small = await matmul({ x, weight: pattern }).data(); // [m, period]
    for (const row of [0, m - 1])
      for (const begin of places) {
        const wanted = Uint16Array.from(
          { length: few },
          (_, i) => small[row * period + ((begin + i) % period)]!,
        );
        expectSame(all.subarray(row * t + begin, row * t + begin + few), wanted, {
          on: device,
          dtype: 'bf16',
        });
      }
    y.dispose();
  });

  it('matmul, of large y', async () => {
    const [pattern, weight] = [random([period, 64], 'bf16', 1), random([d, 64], 'bf16', 2)];
    const y = scope(() => matmul({ x: repeated(pattern), weight })); // [t, d]
    for (const begin of places) {
      const small = matmul({ x: there(pattern, begin), weight });
      const got = await y.rows(begin, begin + few).data();
      expectSame(got, await small.data(), { on: device, dtype: 'bf16' });
    }
    y.dispose();
  });

  it('embedding', async () => {
    const pattern = random([period, d], 'bf16', 1);
    const y = scope(() => {
      const weight = repeated(pattern);
      return embedding({ ids: ints(places), weight });
    });
    const small = embedding({ ids: ints(places.map((place) => place % period)), weight: pattern });
    expect((await bits(y)).equals(await bits(small))).toBe(true);
  });

  it('copy_slots and zero_slots', async () => {
    const pattern = random([period, d], 'bf16', 1);
    const pool = repeated(pattern);
    const last = t - 1;
    copySlots({ from: pattern, fromSlots: ints([3, 5]), to: pool, toSlots: ints([last, 1]) });
    zeroSlots({ pool, slots: ints([last - 1]) });
    expect((await bits(pool.rows(last, t))).equals(await bits(pattern.rows(3, 4)))).toBe(true);
    expect((await bits(pool.rows(1, 2))).equals(await bits(pattern.rows(5, 6)))).toBe(true);
    expect((await bits(pool.rows(last - 1, last))).every((byte) => byte === 0)).toBe(true);
    const beside = (last - 2) % period;
    expect(
      (await bits(pool.rows(last - 2, last - 1))).equals(await bits(pattern.rows(beside, beside + 1))),
    ).toBe(true);
    pool.dispose();
  });

  it('selective_scan: a short sequence behind a long one', async () => {
    const [u, delta, z] = [1, 2, 3].map((seed) => random([period, d], 'bf16', seed)) as [
      Tensor,
      Tensor,
      Tensor,
    ];
    const [B, C] = [4, 5].map((seed) => random([period, 16], 'bf16', seed)) as [Tensor, Tensor];
    const A = toTensor(
      { shape: [d, 16], dtype: 'f32', data: new Float64Array(d * 16).map((_, i) => -0.5 - (i % 16)) },
      device,
    );
    const run = (make: (pattern: Tensor) => Tensor, offsets: readonly number[]) => {
      const tokens = offsets.at(-1)!;
      return selectiveScanPacked({
        u: make(u),
        delta: make(delta),
        z: make(z),
        A,
        B: make(B).reshape([tokens, 1, 16]),
        C: make(C).reshape([tokens, 1, 16]),
        offsets: ints(offsets),
        deltaSoftplus: true,
      });
    };
    const y = scope(() => run((pattern) => repeated(pattern), [0, t - few, t]));
    const small = scope(() => run((pattern) => there(pattern, t - few), [0, few]));
    expectSame(await y.rows(t - few, t).data(), await small.data(), { on: device, dtype: 'bf16' });
    // The long one's first tokens are those of any sequence that begins like it.
    const begin = scope(() => run((pattern) => there(pattern, 0), [0, few]));
    expectSame(await y.rows(0, few).data(), await begin.data(), { on: device, dtype: 'bf16' });
    y.dispose();
  });
}
