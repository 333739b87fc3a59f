import { setThreads, threads } from '../../lib/device';
import { matmul } from '../../lib/ops/matmul';
import { scope, type DType, type Tensor } from '../../lib/tensor';
import { bits, normal, randomFrom, read, roundTo, toTensor } from '../../lib/verify/cases';
import { onEach } from '../devices';
import { expectSame } from '../same';

describe.each(onEach)('on %s', (_, device) => {
  const random = (shape: readonly number[], dtype: DType, seed: number): Tensor => {
    const next = randomFrom(seed);
    const data = new Float64Array(shape.reduce((a, b) => a * b, 1)).map(() => normal(next));
    return toTensor({ shape, dtype, data: roundTo(data, dtype) }, device);
  };

  it.each(['f32', 'bf16', 'f16'] as const)('gives a row the same in any batch, %s', async (dtype) => {
    const x = random([33, 300], dtype, 1);
    const weight = random([270, 300], dtype, 2);
    const all = await matmul({ x, weight }).data();
    for (const m of [1, 2, 5, 8, 17, 33])
      for (const begin of [0, 33 - m]) {
        const some = await matmul({ x: x.rows(begin, begin + m), weight }).data();
        expectSame(some, all.subarray(begin * 270, (begin + m) * 270), { on: device, dtype });
      }
  });

  it('gives the same bits with any number of threads', async () => {
    const before = threads();
    const x = random([40, 515], 'f32', 3);
    const weight = random([333, 515], 'bf16', 4);
    try {
      const all = [];
      for (const count of [1, 2, 3, 8]) {
        setThreads(count);
        expect(threads()).toBe(count);
        all.push(await bits(matmul({ x, weight })));
      }
      for (const each of all) expect(each.equals(all[0]!)).toBe(true);
    } finally {
      setThreads(before);
    }
  });

  it('is the bias where there is nothing to sum', async () => {
    const bias = random([5], 'f32', 5);
    const y = scope(() => matmul({ x: random([3, 0], 'f32', 6), weight: random([5, 0], 'f32', 7), bias }));
    const row = [...(await read(bias))];
    expect([...(await read(y))]).toEqual([...row, ...row, ...row]);
  });

  it('passes on what is not finite', async () => {
    const x = toTensor(
      { shape: [3, 2], dtype: 'f32', data: Float64Array.of(NaN, 1, Infinity, 1, 1, 1) },
      device,
    );
    const weight = toTensor({ shape: [1, 2], dtype: 'f32', data: Float64Array.of(1, 2) }, device);
    expect([...(await read(matmul({ x, weight })))]).toEqual([NaN, Infinity, 3]);
  });
});
