import { addRmsNorm, normMatmul, rmsNorm } from '../../lib/ops/norm';
import { matmul } from '../../lib/ops/matmul';
import { scope, type DType, type Tensor } from '../../lib/tensor';
import { bits, normal, randomFrom, roundTo, toTensor } from '../../lib/verify/cases';
import { onEach } from '../devices';

describe.each(onEach)('on %s', (_, device) => {
  const random = (shape: readonly number[], dtype: DType, seed: number): Tensor => {
    const next = randomFrom(seed);
    const data = new Float64Array(shape.reduce((a, b) => a * b, 1)).map(() => normal(next));
    return toTensor({ shape, dtype, data: roundTo(data, dtype) }, device);
  };
  const same = async (got: Tensor, want: Tensor) => {
    expect([got.dtype, got.shape]).toEqual([want.dtype, want.shape]);
    expect((await bits(got)).equals(await bits(want))).toBe(true);
  };

  // Sizes on both sides of what one kernel takes: rows, columns, and what 16 bytes hold.
  it.each([
    [1, 768, 96],
    [2, 2560, 200],
    [1, 1032, 3],
    [2, 37, 70],
    [3, 256, 33],
    [17, 128, 65],
  ])('gives the bits of a norm and a product, %d rows of %d', async (t, d, n) => {
    for (const dtype of ['f32', 'bf16', 'f16'] as const) {
      const [residual, normWeight] = [random([t, d], 'f32', 2), random([d], 'f32', 3)];
      const [x, weight, bias] = [random([t, d], dtype, 1), random([n, d], dtype, 4), random([n], 'f32', 5)];
      const eps = 1e-3;

      const fused = normMatmul({ x, residual, normWeight, weight, bias, eps });
      const { y: normed, sum } = addRmsNorm({ x, residual, weight: normWeight, eps });
      await same(fused.sum, sum);
      await same(fused.normed, normed);
      await same(fused.y, matmul({ x: normed, weight, bias }));

      const first = normMatmul({ residual, normWeight, weight, eps, dtype: 'f32' });
      const rounded = rmsNorm({ x: residual, weight: normWeight, eps });
      await same(first.sum, residual);
      await same(first.normed, rounded);
      await same(first.y, matmul({ x: rounded, weight }));

      const halves = normMatmul({ residual, normWeight, weight, eps });
      const normedOnly = rmsNorm({ x: residual, weight: normWeight, eps, dtype });
      await same(halves.normed, normedOnly);
      await same(halves.y, matmul({ x: normedOnly, weight }));
    }
  });

  it('leaves what it reads as it was', async () => {
    const [x, residual] = [random([2, 64], 'bf16', 1), random([2, 64], 'f32', 2)];
    const before = await Promise.all([x, residual].map(bits));
    scope(() => {
      normMatmul({ x, residual, normWeight: random([64], 'f32', 3), weight: random([24, 64], 'bf16', 4) });
    });
    expect(await Promise.all([x, residual].map(bits))).toEqual(before);
  });

  it('names what does not fit', () => {
    const [residual, normWeight] = [random([2, 64], 'f32', 1), random([64], 'f32', 2)];
    const weight = random([24, 65], 'f32', 3);
    expect(() => normMatmul({ residual, normWeight, weight })).toThrow(
      'norm_matmul: weight is f32[24,65], expected W[n,d]; d is 64 by residual',
    );
  });
});
