import { benchDecode, benchGenerate, breakDown } from '../../lib/bench/decode';
import { openModel, prefillFlops, presetConfig, randomPrompts, stepWeightBytes } from '../../lib/bench/model';
import { benchPrefill, prefillOps, withLinearity } from '../../lib/bench/prefill';
import { modelOfRandomWeights } from '../../lib/bench/random-weights';
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
  const opened = await openModel('test/fixtures/mamba-tiny', device('cpu'), { dtype: 'f32' });
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
  expect(result).toMatchObject({
    bench: 'decode_step',
    name: 'tiny, batch 2',
    shape: { batch: 2, steps: 3 },
  });
  expect(result.figures['bytes']).toBe(stepWeightBytes(model));
});

it('names the ops of a prompt and of a step', async () => {
  const named = (ops: readonly { op: string; calls: number }[]) =>
    Object.fromEntries(ops.map(({ op, calls }) => [op, calls]));
  const layers = { rms_norm: 1, add_rms_norm: 2, embedding: 1 };
  expect(named(await prefillOps(model, { batch: 1, length: 6 }))).toEqual({
    ...layers,
    matmul: 2 * 3 + 1,
    selective_scan: 2,
    conv_matmul: 2,
    take_rows: 1,
    copy_slots: 1,
  });
  const { ops, figures } = await breakDown(model, 2, 3, 2);
  expect(named(ops)).toEqual({ ...layers, matmul: 2 * 2 + 1, mamba_step: 2, sample: 1 });
  expect(figures.ops).toBe(ops.reduce((sum, { calls }) => sum + calls, 0));
});

it('times generate beside its steps', async () => {
  const result = await benchGenerate(model, 'tiny', { batch: 2, newTokens: 3 }, 2);
  expect(result).toMatchObject({ bench: 'generate', dtype: 'f32', shape: { batch: 2, newTokens: 3 } });
  const { stepMs, toStep, promptMs, afterPromptMs, afterPromptToStep } = result.figures;
  expect(toStep).toBeCloseTo(result.ms.median / stepMs!);
  expect(afterPromptToStep).toBeCloseTo(afterPromptMs! / stepMs!);
  expect(promptMs).toBeGreaterThan(0);
});

it('says whether time is linear in the length', async () => {
  const short = await benchPrefill(model, 'tiny', { batch: 1, length: 4 }, 1);
  const long = { ...short, shape: { batch: 1, length: 8 }, ms: { ...short.ms, median: 3 * short.ms.median } };
  expect(withLinearity(long, [short]).figures['tokenTimeToShortest']).toBeCloseTo(1.5);
  expect(withLinearity(short, [long]).figures).not.toHaveProperty('tokenTimeToShortest');
  expect(short.figures['beyondWeightsBytes']).toBeGreaterThan(0);
});

it.each(['f32', 'bf16'] as const)('makes random weights of %s: one layer, repeated', async (dtype) => {
  const made = await modelOfRandomWeights({ ...config, vocab_size: 70000 }, device('cpu'), dtype);
  const read = async (name: string) => made.parameters.get(name)!.data();
  const at = (layer: number) => `backbone.layers.${layer}.mixer`;
  for (const name of ['in_proj.weight', 'dt_proj.bias', 'A_log', 'conv1d.weight', 'D']) {
    expect(await read(`${at(1)}.${name}`)).toEqual(await read(`${at(0)}.${name}`));
  }
  const embeddings = await read('backbone.embeddings.weight'); // larger than what is drawn
  const rows = new Set(Array.from({ length: 70000 }, (_, i) => embeddings.slice(16 * i, 16 * i + 16).join()));
  expect(rows.size).toBe(70000);
  const state = made.createState(1);
  await made.run([Int32Array.of(1, 69999)], state);
  expect((await state.logits.data()).every(Number.isFinite)).toBe(true);
  state.dispose();
  made.dispose();
});

it('leaves nothing behind', async () => {
  const { used } = device('cpu').memoryUsage();
  await breakDown(model, 1, 2, 1);
  await benchDecode(model, 'tiny', { batch: 2, steps: 2 }, { copy: 10, read: 10 }, 1);
  await benchGenerate(model, 'tiny', { batch: 1, newTokens: 2 }, 1);
  expect(device('cpu').memoryUsage().used).toBe(used);
});
