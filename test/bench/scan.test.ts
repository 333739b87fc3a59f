import { benchConv, convBytes } from '../../lib/bench/conv';
import { evenOffsets, randomRows, setsOf } from '../../lib/bench/rotation';
import {
  benchScan,
  benchScanBackward,
  benchScanSteps,
  peerScanShapes,
  scanBackwardBytes,
  scanBytes,
  scanExponentials,
  scanInputs,
  scanStep,
} from '../../lib/bench/scan';
import { device, type Device } from '../../lib/device';
import { selectiveScanPacked } from '../../lib/ops/scan';
import { scope } from '../../lib/tensor';

const bandwidth = { copy: 10, read: 10 };

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
  const result = await benchScan(cpu, shape, dtype, { bandwidth, runs: 3 });
  expect(result).toMatchObject({ bench: 'scan_fwd', name: '2×3×5×4', dtype, shape, ms: { runs: 3 } });
  const { bytes, gbPerSecond, shareOfCopy } = result.figures as Record<string, number>;
  expect(bytes).toBe(scanBytes(shape, dtype));
  expect(shareOfCopy).toBeCloseTo(gbPerSecond! / 10);
  expect(cpu.memoryUsage().used).toBe(used);
});

it('moves no states that start from zero and are not kept', () => {
  expect(scanBytes(shape, 'f32') - scanBytes(shape, 'f32', true)).toBe(4 * 2 * 2 * 3 * 4);
  expect(peerScanShapes).toHaveLength(10);
});

it('counts the share of the special-function bound', async () => {
  const options = { bandwidth, expBound: 5e12, fresh: true, runs: 2 };
  const { figures } = await benchScan(device('cpu'), shape, 'f32', options);
  expect(figures['shareOfExp']).toBeCloseTo(figures['gigaExpPerSecond']! / 5000);
});

it('times the gradients of a scan', async () => {
  const cpu = device('cpu');
  const { used } = cpu.memoryUsage();
  const perToken = 7 * 3 + 4 * 4; // u, delta, z and their gradients, dy; B, C and theirs
  expect(scanBackwardBytes(shape, 'bf16')).toBe(2 * 10 * perToken + 4 * 2 * (3 * 4 + 3 + 3));
  const result = await benchScanBackward(cpu, shape, 'bf16', { bandwidth, runs: 2 });
  expect(result).toMatchObject({ bench: 'scan_bwd', name: '2×3×5×4', dtype: 'bf16', shape });
  expect(result.figures['bytes']).toBe(scanBackwardBytes(shape, 'bf16'));
  expect(cpu.memoryUsage().used).toBe(used);
});

it('steps through the same scan as the fused op', async () => {
  const cpu = device('cpu');
  const { used } = cpu.memoryUsage();
  const [whole, steps] = scope(() => {
    const inputs = scanInputs(cpu, shape, 'f32');
    const again = { ...scanInputs(cpu, shape, 'f32'), offsets: evenOffsets(cpu, shape.batch, 1) };
    const y = selectiveScanPacked({ ...inputs, deltaSoftplus: true });
    return [y, Array.from({ length: shape.length }, (_, t) => scanStep(again, shape, t))];
  });
  const expected = await whole.data();
  for (const [t, y] of steps.entries()) {
    const got = await y.data();
    for (let b = 0; b < shape.batch; b++) {
      const row = b * shape.length + t;
      const of = (data: ArrayLike<number>, at: number) => Array.from(data).slice(at * 3, at * 3 + 3);
      expect(of(got, b)).toEqual(of(expected, row));
    }
    y.dispose();
  }
  whole.dispose();
  const result = await benchScanSteps(cpu, shape, 'bf16', { bandwidth, runs: 2 });
  expect(result).toMatchObject({ bench: 'scan_steps', name: '2×3×5×4, step by step', shape });
  expect(cpu.memoryUsage().used).toBe(used);
});

it('times a convolution', async () => {
  const cpu = device('cpu');
  const { used } = cpu.memoryUsage();
  const conv = { batch: 2, dim: 3, length: 5, width: 4 };
  expect(convBytes(conv, 'bf16')).toBe(2 * 2 * 30 + 4 * 3 * 5);
  const result = await benchConv(cpu, conv, 'f16', { bandwidth, runs: 2 });
  expect(result).toMatchObject({ bench: 'conv_fwd', name: '2×3×5, 4 wide', dtype: 'f16', shape: conv });
  expect(cpu.memoryUsage().used).toBe(used);
});

it('goes round more than a GPU keeps in its cache', () => {
  const gpu = { id: 'cuda:0' } as Device;
  expect(setsOf(device('cpu'), 1)).toBe(1);
  expect([2 ** 32, 2 ** 30, 2 ** 29 - 1, 1].map((bytes) => setsOf(gpu, bytes))).toEqual([1, 1, 3, 64]);
});

it('repeats few rows in random order', async () => {
  const x = randomRows(device('cpu'), [3000, 1000], 'f32', [2, 3], 7);
  const data = (await x.data()) as Float32Array;
  x.dispose();
  const firsts = new Set(Array.from({ length: 3000 }, (_, i) => data[i * 1000]));
  expect(firsts.size).toBeGreaterThan(200);
  expect(firsts.size).toBeLessThanOrEqual(263);
  expect(data.every((value) => value >= 2 && value <= 3)).toBe(true);
});
