import { benchS4D, s4dShapes } from '../../lib/bench/s4d';
import { onEach } from '../devices';

it.each(onEach)('times both executions on %s, and frees what it took', async (_, device) => {
  const shape = { batch: 2, dim: 5, length: 9, state: 6 };
  const { used } = device.memoryUsage();
  const [recurrent, convolutional] = await benchS4D(device, shape, 'bf16', 2);
  expect(recurrent).toMatchObject({
    bench: 's4d_recurrent',
    name: '2×5×9, N 6, recurrent',
    dtype: 'bf16',
    shape,
    ms: { runs: 2 },
    figures: { chosen: 1 },
  });
  const { kernelMs, toRecurrent, chosen } = convolutional!.figures;
  expect(convolutional).toMatchObject({ bench: 's4d_convolutional', shape });
  expect(chosen).toBe(0);
  expect(toRecurrent).toBeCloseTo(convolutional!.ms.median / recurrent!.ms.median);
  expect(kernelMs).toBeGreaterThan(0);
  expect(device.memoryUsage().used).toBe(used);
});

it('goes over lengths up to 65,536', () => {
  expect(Math.max(...s4dShapes.map(({ length }) => length))).toBe(65536);
});
