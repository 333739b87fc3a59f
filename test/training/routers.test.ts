/** Routers in training: even loads where something sees to it, losses that count, and what is told of them. */
import { device, Trainer, type TrainerOptions, type TrainingBatch, type TrainingStep } from '../../lib';
import type { JsonObject } from '../../lib/io/json';
import { rowsToBatch } from '../../lib/training/batch';
import { randomFrom } from '../../lib/verify/cases';

const words = 32;
const config = {
  ...{ model_type: 'moe_mamba', vocab_size: words, hidden_size: 32, num_hidden_layers: 4, state_size: 8 },
  ...{ num_experts: 4, expert_size: 48, initializer_range: 0.1 },
};
const options: TrainerOptions = { steps: 120, learningRate: 1e-3, warmup: 10, schedule: 'constant', seed: 1 };

/** Words as often as 1 / rank, as they are in texts: half of all are five of them. */
function batchOf(step: number, rows = 8, length = 64): TrainingBatch {
  const random = randomFrom(step + 1);
  const shares = Array.from({ length: words }, (_, i) => 1 / (i + 1));
  const all = shares.reduce((a, b) => a + b);
  const word = () => {
    let left = all * random();
    return Math.max(
      0,
      shares.findIndex((share) => (left -= share) < 0),
    );
  };
  return rowsToBatch(Array.from({ length: rows }, () => Array.from({ length: length + 1 }, word)));
}

async function train(
  change: JsonObject,
  more: Partial<TrainerOptions>,
  steps = 120,
): Promise<TrainingStep[]> {
  const trainer = await Trainer.fromConfig({ ...config, ...change }, { ...options, ...more });
  const reports = [];
  for (let i = 0; i < steps; i++) reports.push(trainer.step(batchOf(i)));
  const done = await Promise.all(reports);
  trainer.dispose();
  return done;
}
const entropies = (steps: readonly TrainingStep[]) => steps.slice(40).map(({ router }) => router!.entropy);

afterEach(() => expect(device().memoryUsage().tensors).toBe(0));

it.each([
  ['the balancing loss', {}, { routerBalance: 0.1 }],
  ['Sinkhorn', { router: 'sinkhorn' }, { routerBalance: 0 }],
] as const)('keeps loads even by %s', async (_, change, more) => {
  expect(Math.min(...entropies(await train(change, more)))).toBeGreaterThan(0.9);
});

it.each(['softmax', 'sigmoid'] as const)('has uneven loads by %s alone', async (router) => {
  const own = entropies(await train({ router }, { routerBalance: 0 }));
  expect(Math.max(...own)).toBeLessThan(0.9);
  expect(own.at(-1)).toBeLessThan(0.75);
});

it('drops what has no room, and says how many', async () => {
  const tokens = 8 * 64;
  const [first] = await train({ capacity_factor: 0.5 }, {}, 1);
  // Half of the choices have room where loads are even; there are two routers.
  expect(first!.router!.dropped).toBeGreaterThanOrEqual(tokens);
  expect(first!.router!.dropped).toBeLessThan(2 * tokens);
  const [roomy] = await train({ capacity_factor: 4 }, {}, 1);
  expect(roomy!.router!.dropped).toBe(0);
});

it('adds the losses of routers to the gradient, and not to the loss that it tells', async () => {
  const [none, balance, z] = await Promise.all(
    [
      { routerBalance: 0, routerZ: 0 },
      { routerBalance: 3, routerZ: 0 },
      { routerBalance: 0, routerZ: 3 },
    ].map(async (more) => (await train({}, more, 1))[0]!),
  );
  expect(balance!.loss).toBe(none!.loss);
  expect(z!.loss).toBe(none!.loss);
  for (const other of [balance!, z!])
    expect(Math.abs(other.gradientNorm - none!.gradientNorm)).toBeGreaterThan(1e-3);
  expect(none!.router!.balance).toBeGreaterThanOrEqual(1);
  expect(none!.router!.z).toBeGreaterThan(0);
});

it('takes micro-batches together, as far as the noise is the same', async () => {
  const run = async (parts: boolean) => {
    const roomy = { ...config, capacity_factor: 4, router_z_loss_coef: 0.1, router_aux_loss_coef: 0 };
    const trainer = await Trainer.fromConfig(roomy, options);
    const [a, b] = [batchOf(0), batchOf(1)];
    const both: TrainingBatch = {
      ids: Int32Array.from([...a.ids, ...b.ids]),
      labels: Int32Array.from([...a.labels, ...b.labels]),
      offsets: Int32Array.from([...a.offsets, ...b.offsets.slice(1).map((offset) => offset + 512)]),
    };
    const done = await trainer.step(parts ? [a, b] : both);
    trainer.dispose();
    return done;
  };
  const [whole, parts] = [await run(false), await run(true)];
  expect(parts.loss).toBeCloseTo(whole.loss, 5);
  expect(parts.gradientNorm).toBeCloseTo(whole.gradientNorm, 4);
  expect(parts.router!.z).toBeCloseTo(whole.router!.z, 4);
});

it('refuses weights of losses that there are not', async () => {
  const plain = { model_type: 'mamba', vocab_size: 17, hidden_size: 16, num_hidden_layers: 1 };
  await expect(Trainer.fromConfig(plain, { ...options, routerBalance: 0.1 })).rejects.toThrow(
    'Trainer.fromConfig: routerBalance is 0.1, expected none; the model has no routers',
  );
  await expect(Trainer.fromConfig(config, { ...options, routerZ: -1 })).rejects.toThrow(
    'routerZ is -1, expected one from 0 to 1000',
  );
});
