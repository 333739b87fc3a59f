import { benchScan, scanBytes, scanExponentials } from '../../lib/bench/scan';
import { device } from '../../lib/device';

const shape = { batch: 2, dim: 3, length: 5, state: 4 };

it('counts what any scan must move', () => {
  const perToken = 3 + 3 + 3 + 4 + 4 + 3; // u, delta, z, B, C, y
  const rest = 2 * 2 * 3 * 4 + 3 * 4 + 3 + 3; // states in and out, A, D, bias
  expect(scanBytes(shape, 'f32')).toBe(4 * (10 * perToken + rest));
  expect(scanBytes(shape, 'bf16')).toBe(2 * 10 * perToken + 4 * rest);
  expect(scanExponentials(shape)).toBe(10 * 3 * 4);
});

it.each(['f32', 'bf16', 'f16'] as const)('times a scan of %s and frees what it took', async (dtype) => {
  const cpu = device('cpu');
  const { used } = cpu.memoryUsage();
  const result = await benchScan(cpu, shape, dtype, { copy: 10, read: 10 }, 3);
  expect(result).toMatchObject({ bench: 'scan', name: '2×3×5×4', dtype, shape, ms: { runs: 3 } });
  const { bytes, gbPerSecond, shareOfCopy } = result.figures as Record<string, number>;
  expect(bytes).toBe(scanBytes(shape, dtype));
  expect(shareOfCopy).toBeCloseTo(gbPerSecond! / 10);
  expect(cpu.memoryUsage().used).toBe(used);
});
