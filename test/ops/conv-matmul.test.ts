import { matmul } from '../../lib/ops/matmul';
import { causalConv1dPacked, convMatmul } from '../../lib/ops/scan';
import { Tensor, type DType } from '../../lib/tensor';
import { bits, normal, randomFrom, read, roundTo, toTensor } from '../../lib/verify/cases';
import { onEach } from '../devices';

describe.each(onEach)('on %s', (where, device) => {
  const onGpu = where !== 'cpu';
  const random = (shape: readonly number[], dtype: DType, seed: number, scale = 1): Tensor => {
    const next = randomFrom(seed);
    const data = new Float64Array(shape.reduce((a, b) => a * b, 1)).map(() => scale * normal(next));
    return toTensor({ shape, dtype, data: roundTo(data, dtype) }, device);
  };
  const i32 = (values: readonly number[]) =>
    Tensor.from(Int32Array.from(values), [values.length], { device });

  /** Both ways from the same states; says by how much of its norm y differs. */
  const compare = async (
    lengths: readonly number[],
    [d, n, w]: readonly [number, number, number],
    dtype: DType,
    { bias = true, kept = true, wide = 2 * d, rows = lengths.map((_, i) => (i % 3 === 1 ? -1 : i)) } = {},
  ) => {
    const t = lengths.reduce((a, b) => a + b, 0);
    const ends = lengths.map((_, i) => lengths.slice(0, i + 1).reduce((a, b) => a + b, 0));
    const [offsets, slots] = [i32([0, ...ends]), i32(rows)];
    const x = random([t, wide], dtype, 1).columns(0, d);
    const weight = random([n, d], dtype, 2, 1 / Math.sqrt(d));
    const convWeight = random([d, w], 'f32', 3, 0.5);
    const convBias = bias ? random([d], 'f32', 4) : undefined;
    const states = () => (kept ? random([lengths.length, d, w - 1], dtype, 5) : undefined);
    const [before, after] = [states(), states()];

    const conv = { x, weight: convWeight, bias: convBias, offsets, slots, silu: true };
    const u = causalConv1dPacked({ ...conv, state: before });
    const got = convMatmul({ x, convWeight, convBias, offsets, slots, state: after, weight });
    expect((await bits(got.u)).equals(await bits(u))).toBe(true);
    if (before) expect((await bits(after!)).equals(await bits(before))).toBe(true);
    const [y, wanted] = [await read(got.y), await read(matmul({ x: u, weight }))];
    const norm = (values: Float64Array) => Math.sqrt(values.reduce((sum, v) => sum + v * v, 0));
    return norm(y.map((v, i) => v - wanted[i]!)) / norm(wanted);
  };

  it('is a convolution and a product, whatever the sizes', async () => {
    for (const dtype of ['f32', 'bf16', 'f16'] as const)
      for (const [d, n, w] of [
        [5, 3, 4],
        [128, 40, 4],
        [256, 33, 2],
      ] as const)
        expect(await compare([1, 2, 3, 30], [d, n, w], dtype)).toBeLessThan(dtype === 'f32' ? 1e-6 : 4e-3);
  });

  // As many tokens as fill a Hopper card, whose tiles have 128 of them: sequences that start at every place of one,
  // that are shorter than the taps, and a last tile with few tokens. The first sizes are those of no model.
  const tokens = onGpu ? 16_000 : 300;
  const lengths = [1, 1, 2, 3, 4, 126, 1, 130, 5];
  const many = [...lengths, tokens - lengths.reduce((a, b) => a + b, 0), 17];
  it.each([
    [128, 34],
    [256, 80],
    [128, 96],
    [384, 128],
    [256, 160],
    [128, 192],
    [128, 194],
    [192, 80],
  ])('gives the same of many tokens: %d channels, %d columns', async (d, n) => {
    const wide = d + 8;
    expect(await compare(many, [d, n, 4], 'bf16', { wide })).toBeLessThan(4e-3);
    if (d > 128) return;
    expect(await compare(many, [d, n, 4], 'f16', { wide, bias: false, kept: false })).toBeLessThan(5e-4);
  });

  it('takes rows of any stride', async () => {
    expect(await compare(many, [128, 80, 4], 'bf16', { wide: 131 })).toBeLessThan(4e-3);
    expect(await compare(many, [128, 80, 3], 'bf16')).toBeLessThan(4e-3);
  });

  it('gives the same bits twice', async () => {
    const [x, weight] = [random([tokens, 256], 'bf16', 1), random([80, 256], 'bf16', 2)];
    const given = {
      x,
      weight,
      convWeight: random([256, 4], 'f32', 3),
      offsets: i32([0, 2000 % tokens, tokens]),
    };
    const [first, second] = [convMatmul(given), convMatmul(given)];
    expect((await bits(second.y)).equals(await bits(first.y))).toBe(true);
  });

  it('says at the next read what is wrong with offsets', async () => {
    const [x, weight] = [random([tokens, 128], 'bf16', 1), random([80, 128], 'bf16', 2)];
    const convWeight = random([128, 4], 'f32', 3);
    const { y } = convMatmul({ x, weight, convWeight, offsets: i32([0, tokens + 5, tokens]) });
    await expect(read(y)).rejects.toThrow(/conv_matmul: offsets\[\d\] is/);
  });

  it('names what does not fit', () => {
    const [x, offsets] = [random([3, 8], 'f32', 1), i32([0, 3])];
    const convWeight = random([8, 4], 'f32', 2);
    expect(() => convMatmul({ x, convWeight, offsets, weight: random([5, 9], 'f32', 3) })).toThrow(
      'conv_matmul: weight is f32[5,9], expected W[n,d]; d is 8 by x',
    );
    expect(() =>
      convMatmul({ x, convWeight: random([8, 0], 'f32', 2), offsets, weight: random([5, 8], 'f32', 3) }),
    ).toThrow('conv_matmul: convWeight has no taps, expected 1 or more');
  });
});
