/** Every family that can be trained: it learns a small task, and goes on from a checkpoint to the same bits. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { device, Trainer, type TrainerOptions, type TrainingBatch } from '../../lib';
import type { JsonObject } from '../../lib/io/json';
import { rowsToBatch } from '../../lib/training/batch';
import { loadCheckpoint, saveCheckpoint } from '../../lib/training/checkpoints';
import { bits, randomFrom } from '../../lib/verify/cases';

const options: TrainerOptions = { steps: 60, learningRate: 5e-3, warmup: 4, weightDecay: 0.01, seed: 3 };

const families: Readonly<Record<string, JsonObject>> = {
  s4d: {
    ...{ model_type: 's4d', vocab_size: 17, hidden_size: 32, num_hidden_layers: 2, state_size: 16 },
  },
  's4d, bilinear, by recurrence': {
    ...{ model_type: 's4d', vocab_size: 17, hidden_size: 32, num_hidden_layers: 2, state_size: 16 },
    ...{ discretization: 'bilinear', state_initialization: 'real', execution: 'recurrent' },
  },
  moe_mamba: {
    ...{ model_type: 'moe_mamba', vocab_size: 17, hidden_size: 32, num_hidden_layers: 4, state_size: 8 },
    ...{
      num_experts: 4,
      num_experts_per_tok: 2,
      norm_topk_prob: true,
      expert_size: 48,
      initializer_range: 0.1,
    },
    ...{ capacity_factor: 1.25, router_jitter: 0.01, router_z_loss_coef: 1e-3, expert_bias: true },
    ...{ expert_activation: 'swiglu' },
  },
  mambabyte: {
    ...{
      model_type: 'mambabyte',
      hidden_size: 32,
      num_hidden_layers: 2,
      state_size: 8,
      initializer_range: 0.1,
    },
  },
  falcon_mamba: {
    ...{ model_type: 'falcon_mamba', vocab_size: 17, hidden_size: 32, num_hidden_layers: 2, state_size: 8 },
    ...{ initializer_range: 0.1 },
  },
  blackmamba: {
    ...{ hidden_size: 32, num_layers: 4, vocab_size: 17, state_size: 8, conv_dimension: 4 },
    ...{ ffn_hidden_size: 48, mamba_moe_layers: ['r', '4', 'r1', 'r4'], swiglu: true, add_bias_linear: true },
  },
};

/** Rows that count upwards from anywhere, by 1 or 2; the last one is shorter. */
function batchOf(step: number, rows = 8, length = 24): TrainingBatch {
  const random = randomFrom(step + 1);
  const batch = rowsToBatch(
    Array.from({ length: rows }, () => {
      const [from, by] = [Math.floor(17 * random()), 1 + Math.floor(2 * random())];
      return Array.from({ length: length + 1 }, (_, i) => (from + by * i) % 17);
    }),
  );
  const end = batch.ids.length - 7;
  const offsets = batch.offsets.map((offset) => Math.min(offset, end));
  return { ids: batch.ids.slice(0, end), labels: batch.labels.slice(0, end), offsets };
}

async function run(trainer: Trainer, from: number, to: number): Promise<number[]> {
  const reports = [];
  for (let i = from; i < to; i++) reports.push(trainer.step(batchOf(i)));
  return (await Promise.all(reports)).map(({ loss }) => loss);
}

const parametersOf = async (trainer: Trainer) =>
  Buffer.concat(await Promise.all(trainer.parameters.blocks.map(({ parameter }) => bits(parameter))));

describe.each(Object.entries(families))('%s', (_, config) => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'families-'));
  });
  afterEach(async () => {
    await rm(folder, { recursive: true });
    expect(device().memoryUsage().tensors).toBe(0);
  });

  it.each(['f32', 'bf16'] as const)('learns in %s', async (precision) => {
    const trainer = await Trainer.fromConfig(config, { ...options, precision });
    const losses = await run(trainer, 0, 60);
    expect(losses[0]).toBeGreaterThan(2.5);
    expect(losses.slice(-5).reduce((a, b) => a + b) / 5).toBeLessThan(1.2);
    // What was trained is what the model computes with afterwards, and what evaluates it.
    expect(await trainer.evaluate([batchOf(59)])).toBeCloseTo(losses.at(-1)!, 0);
    trainer.dispose();
  });

  it('goes on from a checkpoint to the same bits', async () => {
    const first = await Trainer.fromConfig(config, options);
    await run(first, 0, 3);
    await saveCheckpoint(folder, first);
    const losses = await run(first, 3, 6);
    const second = await Trainer.fromConfig(config, { ...options, seed: 4 });
    await loadCheckpoint(folder, second);
    expect(await run(second, 3, 6)).toEqual(losses);
    expect((await parametersOf(second)).equals(await parametersOf(first))).toBe(true);
    first.dispose();
    second.dispose();
  });
});
