import { benchExperts, loopOverExperts } from '../../lib/bench/experts';
import { mixturePresets, openModel, expertLayers, stepWeightBytes } from '../../lib/bench/model';
import { modelOfRandomWeights } from '../../lib/bench/random-weights';
import { device } from '../../lib/device';
import type { CausalLM } from '../../lib/generation/causal-lm';
import { type MixtureBackbone } from '../../lib/models/mixture';
import { type MoE } from '../../lib/nn/moe';
import { Tensor } from '../../lib/tensor';
import { familyOf } from '../../lib/models';
import { CausalLM as Model } from '../../lib/generation/causal-lm';
import { Weights } from '../../lib/nn/weights';

const small = { ...mixturePresets['blackmamba-1.5b'], hidden_size: 32, ffn_hidden_size: 48, vocab_size: 60 };
let model: CausalLM;
beforeAll(async () => {
  model = await modelOfRandomWeights(
    { ...small, num_layers: 2, mamba_moe_layers: ['r', '8'] },
    device('cpu'),
    'f32',
  );
});
afterAll(() => model.dispose());

it('counts the experts that a step reads', () => {
  const [layer] = expertLayers(model);
  expect(layer).toEqual({ experts: 8, size: 3 * 32 * 48, bytes: 4 * 3 * 32 * 48 });
  expect(stepWeightBytes(model) - stepWeightBytes(model, [1])).toBe(7 * layer!.bytes);
});

it.each([1, 20])('the plain loop over experts gives what the layer gives, %d tokens', async (tokens) => {
  const { network } = (model.backbone as MixtureBackbone).parts.layers[1]!;
  const x = Tensor.from(
    Float32Array.from({ length: tokens * 32 }, (_, i) => Math.sin(i * i)),
    [tokens, 32],
  );
  const [loop, layer] = [await loopOverExperts(network as MoE, x), (network as MoE).forward(x)];
  const [a, b] = [await loop.data(), await layer.data()];
  a.forEach((value, i) => expect(Math.abs(value - b[i]!)).toBeLessThan(1e-6));
  for (const tensor of [x, loop, layer]) tensor.dispose();
});

it('times layers of experts beside routing and the loop', async () => {
  const { used } = device('cpu').memoryUsage();
  const result = await benchExperts(model, 'tiny', 9, { copy: 10, read: 10 }, 2);
  expect(result).toMatchObject({
    bench: 'experts',
    name: 'tiny, 9 tokens',
    shape: { tokens: 9 },
    ms: { runs: 2 },
  });
  const { toLoop, loopMs, bytes, expertsRead, routingMs } = result.figures;
  expect(toLoop).toBeCloseTo(loopMs! / result.ms.median);
  expect(bytes).toBeCloseTo(expertsRead! * 4 * 3 * 32 * 48);
  expect(routingMs).toBeGreaterThan(0);
  expect(device('cpu').memoryUsage().used).toBe(used);
});

it('refuses a model without experts', async () => {
  const dense = await openModel('test/fixtures/mamba-tiny', device('cpu'), { dtype: 'f32' });
  await expect(benchExperts(dense, 'dense', 1, { copy: 1, read: 1 }, 1)).rejects.toThrow(
    'no layers of experts',
  );
  dense.dispose();
});

it.each([
  ['blackmamba-1.5b', 1.46e9, 0.343e9],
  ['blackmamba-2.8b', 2.77e9, 0.629e9],
  ['dense-340m', 0.344e9, 0.344e9],
  ['dense-630m', 0.63e9, 0.63e9],
])('%s has the published number of parameters, and so many active', (name, all, active) => {
  const { config } = familyOf(mixturePresets[name]!);
  const weights = new Weights({ device: device('cpu'), dtype: 'bf16' });
  const made = new Model(config, { device: device('cpu'), dtype: 'bf16', weights });
  expect(Math.abs(made.numParameters / all - 1)).toBeLessThan(0.02);
  const resting = expertLayers(made).reduce((sum, { size, experts }) => sum + size * (experts - 1), 0);
  expect(Math.abs((made.numParameters - resting) / active - 1)).toBeLessThan(0.02);
  made.dispose();
});
