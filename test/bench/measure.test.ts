import { quantile, spread, timeQueued, timeRuns } from '../../lib/bench/measure';
import { device } from '../../lib/device';
import { add } from '../../lib/ops/elementwise';
import { Tensor } from '../../lib/tensor';

it('interpolates between values', () => {
  expect(quantile([3, 1, 2], 0.5)).toBe(2);
  expect(quantile([4, 1, 2, 3], 0.5)).toBe(2.5);
  expect(quantile([7], 0.9)).toBe(7);
  expect(quantile([0, 10], 0.9)).toBe(9);
  expect(() => quantile([], 0.5)).toThrow('quantile: values is empty');
});

it('describes repeated timings', () => {
  expect(spread([5, 1, 3])).toEqual({ median: 3, p10: 1.4, p90: 4.6, runs: 3 });
});

it('runs once more than it counts', async () => {
  const work = jest.fn(async () => {});
  expect((await timeRuns(device('cpu'), work, 4)).runs).toBe(4);
  expect(work).toHaveBeenCalledTimes(5);
});

it('repeats what is too short to be timed', async () => {
  const one = Tensor.from([1], [1, 1]);
  const enqueue = jest.fn(() => add(one, one).dispose());
  expect((await timeQueued(device('cpu'), enqueue, 3)).runs).toBe(3);
  expect(enqueue.mock.calls.length).toBeGreaterThan(5);
});
