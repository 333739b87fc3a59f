/**
 * On a GPU, how many sequences and channels there are decides which kernel scans them: each sequence of a call
 * must get what it gets alone, part by part.
 */
import { selectiveScanPacked } from '../../lib/ops/scan';
import { takeRows } from '../../lib/ops/elementwise';
import { scope, Tensor, type DType } from '../../lib/tensor';
import { normal, randomFrom, roundTo, toTensor } from '../../lib/verify/cases';
import { onEach } from '../devices';
import { expectSame } from '../same';

const n = 16;
const part = 600; // tokens of a call that has one sequence alone
const some = 9; // tokens at both ends of it that are compared
const period = 17; // rows of u, delta, z, B and C repeat

describe.each(onEach)('on %s', (_, device) => {
  const ints = (data: readonly number[]) => Tensor.from(Int32Array.from(data), [data.length], { device });
  const random = (shape: readonly number[], dtype: DType, seed: number, from = 0, scale = 1) => {
    const next = randomFrom(seed);
    const data = new Float64Array(shape.reduce((a, b) => a * b, 1)).map(() => from + scale * normal(next));
    return toTensor({ shape, dtype, data: roundTo(data, dtype) }, device);
  };
  const most = device.id === 'cpu' ? 32 : Infinity;

  // Enough for rings of 320, 256, 128, 96, 40, 32 and 16 channels, for relays, for pieces, and for the plans of short
  // sequences.
  it.each([
    ['bf16', 4096, [300, 257, 511, 264, 300, 289, 301, 257]],
    ['f32', 4096, [300, 257, 511, 264, 300, 289, 301, 257]],
    ['f16', 8192, [513, 290]],
    ['bf16', 1536, [300, 257, 511, 264, 300, 289, 301, 257]],
    ['bf16', 5120, [300, 257, 511, 264, 300, 289, 301, 257]],
    ['bf16', 4096, [1201]],
    ['f32', 3072, [601]],
    ['f16', 5120, [901]],
    ['bf16', 1000, [600]],
    ['bf16', 1000, [1100]],
    ['f16', 760, [1025, 933]],
    ['bf16', 1000, [9000]],
    ['f32', 1000, [9000]],
    ['bf16', 1536, [40000]],
    ['f16', 1000, [20000, 40000, 3]],
    ['f32', 1024, [20000, 17, 15001]],
    ['bf16', 64, [3000, 5]],
    ['f32', 64, [5, 3001]],
    ['bf16', 1000, [3, 3000]],
    ['bf16', 2048, [64, 3, 33, 70, 1, 64, 65, 31]],
    ['bf16', 4000, [16, 1, 33, 70, 3, 16, 17, 16, 40, 2, 64, 31, 32, 9, 16, 16, 5]],
    ['f32', 4000, [16, 1, 33, 70, 3, 16, 17, 16, 40, 2, 64, 31, 32, 9, 16, 16, 5]],
  ] as const)('%s, %i channels, sequences of %j', (dtype, width, lengths) =>
    check(dtype, width, lengths, -1),
  );

  // Of a long sequence in pieces, what comes long before a piece's end is forgotten there, but not with small dt.
  it.each([
    ['bf16', 64, [5000]],
    ['f32', 64, [5000]],
  ] as const)('%s, %i channels, sequences of %j that forget nothing', (dtype, width, lengths) =>
    // Decays are nearly one. A step after the other rounds each of them, by up to 2^-24, and with rows that repeat
    // these errors add up: a recurrence in f32 with exact exponentials ends 2.6e-5 from one in f64.
    check(dtype, width, lengths, -8, Math.max(...lengths) * 2 ** -24),
  );

  async function check(
    dtype: DType,
    width: number,
    lengths: readonly number[],
    bias: number,
    within?: number,
  ) {
    const d = Math.min(width, most);
    const offsets = lengths.reduce<number[]>((all, length) => [...all, all.at(-1)! + length], [0]);
    const rows = (pattern: Tensor, begin: number, end: number) =>
      takeRows({
        x: pattern,
        rows: ints(Array.from({ length: end - begin }, (_, i) => (begin + i) % period)),
      });
    const patterns = scope(() => ({
      u: random([period, d], dtype, 1),
      delta: random([period, d], dtype, 2, -2),
      z: random([period, d], dtype, 3),
      B: random([period, n], dtype, 4),
      C: random([period, n], dtype, 5),
      A: random([d, n], 'f32', 6, -2, 0.5),
      D: random([d, 1], 'f32', 7).reshape([d]),
      deltaBias: random([d, 1], 'f32', 8, bias).reshape([d]),
      state: random([lengths.length + 1, d, n], 'f32', 9),
    }));
    const { u, delta, z, B, C, A, D, deltaBias, state } = patterns;
    const values = Float32Array.from((await state.data()) as Float32Array);
    const run = (
      begin: number,
      end: number,
      starts: readonly number[],
      own: readonly number[],
      pool: Tensor,
    ) =>
      scope(() => {
        const group = (x: Tensor) => rows(x, begin, end).reshape([end - begin, 1, n]);
        return selectiveScanPacked({
          u: rows(u, begin, end),
          delta: rows(delta, begin, end),
          z: rows(z, begin, end),
          B: group(B),
          C: group(C),
          A,
          D,
          deltaBias,
          offsets: ints(starts),
          slots: ints(own),
          state: pool,
          deltaSoftplus: true,
        });
      });
    const slots = lengths.map((_, i) => lengths.length - i);
    const [packed, single] = [state, Tensor.from(values, state.shape, { device })];
    const y = run(0, offsets.at(-1)!, offsets, slots, packed);
    for (const [i, slot] of slots.entries()) {
      const end = offsets[i + 1]!;
      for (let begin = offsets[i]!; begin < end; begin += part) {
        const stop = Math.min(begin + part, end);
        const alone = run(begin, stop, [0, stop - begin], [slot], single);
        const edge = Math.min(stop - begin, some);
        for (const from of [0, stop - begin - edge]) {
          const rows = (of: Tensor, at: number) => of.rows(at + from, at + from + edge).data();
          expectSame(await rows(y, begin), await rows(alone, 0), { on: device, dtype, within });
        }
        alone.dispose();
      }
    }
    expectSame(await packed.data(), await single.data(), { on: device, within });
    for (const tensor of [y, single]) tensor.dispose();
    for (const tensor of Object.values(patterns)) tensor.dispose();
  }
});
