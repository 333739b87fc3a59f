import { AutoModelForCausalLM, type CausalLM } from '../../lib';
import { inUse, logitsOf, tinyConfig } from './checkpoints';
import { parametersOf } from './plain';

const fresh = (change: object = {}, seed?: number) =>
  AutoModelForCausalLM.fromConfig({ ...tinyConfig, ...change }, { seed });
const softplus = (x: number) => Math.log1p(Math.exp(x));
const mixer = 'backbone.layers.1.mixer.';

async function parameters(change: object = {}, seed?: number) {
  const model = await fresh(change, seed);
  const values = await parametersOf(model);
  model.dispose();
  return (name: string) => [...values.get(name)!];
}
const mean = (values: readonly number[]) => values.reduce((sum, x) => sum + x, 0) / values.length;
const deviation = (values: readonly number[]) =>
  Math.sqrt(mean(values.map((x) => x * x)) - mean(values) ** 2);

describe('a fresh model', () => {
  it('has Δ biases whose softplus is log-uniform in [time_step_min, time_step_max]', async () => {
    const get = await parameters({ time_step_min: 0.002, time_step_max: 0.5, hidden_size: 256 });
    const dt = get(`${mixer}dt_proj.bias`).map(softplus);
    expect(Math.min(...dt)).toBeGreaterThan(0.002 * 0.9999);
    expect(Math.max(...dt)).toBeLessThan(0.5 * 1.0001);
    // The logarithm's mean and deviation are those of a uniform distribution.
    const logs = dt.map(Math.log);
    const width = Math.log(0.5 / 0.002);
    expect(Math.abs(mean(logs) - (Math.log(0.002) + width / 2))).toBeLessThan(0.05 * width);
    expect(Math.abs(deviation(logs) - width / Math.sqrt(12))).toBeLessThan(0.05 * width);
  });

  it('keeps Δ above time_step_floor', async () => {
    const get = await parameters({ time_step_min: 0.001, time_step_max: 0.01, time_step_floor: 0.005 });
    const dt = get(`${mixer}dt_proj.bias`).map(softplus);
    expect(Math.min(...dt)).toBeCloseTo(0.005, 6);
    expect(Math.max(...dt)).toBeGreaterThan(0.005);
  });

  it('has A = -(1, ..., n), D = 1 and norms of 1', async () => {
    const get = await parameters({ state_size: 5 });
    const row = [1, 2, 3, 4, 5].map((n) => Math.fround(Math.log(n)));
    expect(get(`${mixer}A_log`)).toEqual(Array.from({ length: 128 }, () => row).flat());
    for (const name of [`${mixer}D`, 'backbone.norm_f.weight', 'backbone.layers.0.norm.weight']) {
      expect(new Set(get(name))).toEqual(new Set([1]));
    }
  });

  it('has Δ weights as time_step_scale and time_step_init_scheme say', async () => {
    const change = { time_step_rank: 4, time_step_scale: 3 };
    const random = (await parameters(change))(`${mixer}dt_proj.weight`);
    expect(Math.max(...random.map(Math.abs))).toBeLessThanOrEqual(1.5);
    expect(deviation(random)).toBeGreaterThan(0.7);
    const constant = (await parameters({ ...change, time_step_init_scheme: 'constant' }))(
      `${mixer}dt_proj.weight`,
    );
    expect(new Set(constant)).toEqual(new Set([1.5]));
  });

  it('has matrices of initializer_range, and biases of 0 in the projections', async () => {
    const get = await parameters({ initializer_range: 0.03, use_bias: true });
    for (const name of ['backbone.embeddings.weight', `${mixer}in_proj.weight`]) {
      expect(Math.abs(mean(get(name)))).toBeLessThan(0.002);
      expect(deviation(get(name))).toBeGreaterThan(0.0285);
      expect(deviation(get(name))).toBeLessThan(0.0315);
    }
    for (const name of ['in_proj', 'out_proj'])
      expect(new Set(get(`${mixer}${name}.bias`))).toEqual(new Set([0]));
  });

  it('is the same for the same seed, and another for another', async () => {
    const models: CausalLM[] = [];
    for (const seed of [1, 1, 2, 2 ** 32 + 1, undefined]) models.push(await fresh({}, seed));
    const logits = await Promise.all(models.map((model) => logitsOf(model, [1, 2, 3])));
    expect(logits[1]).toEqual(logits[0]);
    for (const other of [2, 3, 4]) expect(logits[other]).not.toEqual(logits[0]);
    for (const model of models) model.dispose();
  });

  it('has no tokenizer unless it is given one', async () => {
    const model = await fresh();
    expect(model.tokenizer).toBeUndefined();
    model.dispose();
  });

  it('leaves nothing behind when it is disposed, once or twice', async () => {
    const before = inUse();
    const model = await fresh();
    expect(inUse().used).toBeGreaterThan(before.used);
    model.dispose();
    model.dispose();
    expect(inUse()).toEqual(before);
  });
});
