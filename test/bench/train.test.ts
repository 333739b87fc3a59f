import { presetConfig } from '../../lib/bench/model';
import { TrainingBench } from '../../lib/bench/train';
import { device } from '../../lib/device';

const shape = { batch: 2, length: 5 };

it.each(['f32', 'bf16'] as const)(
  'times steps in %s, tells of their ops and frees what it took',
  async (precision) => {
    const cpu = device('cpu');
    const { used } = cpu.memoryUsage();
    const bench = await TrainingBench.open(cpu, 'tiny', presetConfig(8, 2, 40), precision);
    const result = await bench.time(shape, 2);
    expect(result).toMatchObject({
      bench: 'train_step',
      name: 'tiny, 2×5',
      model: 'tiny',
      dtype: precision,
      shape,
      ms: { runs: 2 },
    });
    expect(result.figures['tokensPerSecond']).toBeCloseTo(10_000 / result.ms.median);
    const calls = new Map((await bench.ops(shape)).map(({ op, calls }) => [op, calls]));
    expect(calls.get('selective_scan_backward')).toBe(2);
    expect(calls.get('adamw')).toBe(bench.parameters.blocks.length);
    expect((await bench.optimizer.report()).taken).toBeGreaterThan(3);
    bench.dispose();
    expect(cpu.memoryUsage().used).toBe(used);
  },
);

it('does not pass off steps that move no parameter', async () => {
  const bench = await TrainingBench.open(device('cpu'), 'tiny', presetConfig(8, 2, 40), 'f32');
  const { parameter } = bench.parameters.blocks[0]!;
  parameter.set(new Float32Array(parameter.size).fill(NaN));
  await expect(bench.time(shape, 1)).rejects.toThrow('tiny: the norm of the gradient is NaN, the loss NaN');
  bench.dispose();
});
