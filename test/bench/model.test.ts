import { benchDecode, breakDown } from '../../lib/bench/decode';
import { openModel, prefillFlops, presetConfig, randomPrompts, stepWeightBytes } from '../../lib/bench/model';
import { benchPrefill, prefillOps } from '../../lib/bench/prefill';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/generation/causal-lm';
import { device } from '../../lib/device';

const config = presetConfig(16, 2, 40);
const layerWeights = 16 * 64 + 32 * (1 + 32) + 32 * 1 + 32 * 16; // in_proj, x_proj, dt_proj, out_proj
let model: CausalLM;
beforeAll(async () => {
  model = await AutoModelForCausalLM.fromConfig(config);
});
afterAll(() => model.dispose());

it('counts the work of a prompt', () => {
  expect(prefillFlops(model, 3, 7)).toBe(2 * 3 * (7 * 2 * layerWeights + 16 * 40));
});

it('counts the weights that a step reads', async () => {
  expect(stepWeightBytes(model)).toBe(4 * model.numParameters);
  const untied = await AutoModelForCausalLM.fromConfig(
    { ...config, tie_word_embeddings: false },
    { dtype: 'bf16' },
  );
  const matrices = 2 * layerWeights + 40 * 16;
  const others = untied.numParameters - matrices - 40 * 16;
  expect(stepWeightBytes(untied)).toBe(2 * matrices + 4 * others);
  untied.dispose();
});

it('draws the same prompts each time', () => {
  expect(randomPrompts(model, 2, 5)).toEqual(randomPrompts(model, 2, 5));
  expect(Math.max(...randomPrompts(model, 2, 50).flatMap((row) => [...row]))).toBeLessThan(40);
});

it('opens a folder', async () => {
  const opened = await openModel('test/fixtures/mamba-tiny', device('cpu'), 'f32');
  expect(opened.config.modelType).toBe('mamba');
  opened.dispose();
});

it('times prompts', async () => {
  const result = await benchPrefill(model, 'tiny', { batch: 2, length: 9 }, 2);
  expect(result).toMatchObject({
    bench: 'prefill',
    name: 'tiny, 2×9',
    model: 'tiny',
    dtype: 'f32',
    ms: { runs: 2 },
  });
  expect(result.figures['tokensPerSecond']).toBeCloseTo(18000 / result.ms.median);
});

it('times steps, against what memory gives', async () => {
  const result = await benchDecode(model, 'tiny', { batch: 2, steps: 3 }, { copy: 10, read: 10 }, 2);
  expect(result).toMatchObject({ bench: 'decode', name: 'tiny, batch 2', shape: { batch: 2, steps: 3 } });
  expect(result.figures['bytes']).toBe(stepWeightBytes(model));
});

it('names the ops of a prompt and of a step', async () => {
  const named = (ops: readonly { op: string; calls: number }[]) =>
    Object.fromEntries(ops.map(({ op, calls }) => [op, calls]));
  const layers = {
    matmul: 2 * 4 + 1,
    selective_scan: 2,
    causal_conv1d: 2,
    rms_norm: 1,
    add_rms_norm: 2,
    embedding: 1,
    copy_slots: 1,
  };
  expect(named(await prefillOps(model, { batch: 1, length: 6 }))).toEqual({ ...layers, take_rows: 1 });
  const { ops, figures } = await breakDown(model, 2, 3, 2);
  expect(named(ops)).toEqual({ ...layers, sample: 1 });
  expect(figures.ops).toBe(ops.reduce((sum, { calls }) => sum + calls, 0));
});

it('leaves nothing behind', async () => {
  const { used } = device('cpu').memoryUsage();
  await breakDown(model, 1, 2, 1);
  expect(device('cpu').memoryUsage().used).toBe(used);
});
