import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { AutoModelForCausalLM, device, moeMambaPresets, type CausalLM } from '../../lib';
import { familyOf } from '../../lib/models';
import { bits, inUse, logitsOf, randomIds, relativeError, take, temporaryFolder } from './checkpoints';

const tiny = {
  model_type: 'moe_mamba',
  vocab_size: 96,
  hidden_size: 32,
  num_hidden_layers: 4,
  num_experts: 5,
  router_bias: true,
};
const folder = temporaryFolder();
const onCpu = device().id === 'cpu';

describe.each([
  ['Switch', {}],
  [
    'top-2, SwiGLU, tied',
    { num_experts_per_tok: 2, expert_activation: 'swiglu', norm_topk_prob: true, tie_word_embeddings: true },
  ],
  ['sigmoid, biased GELU', { router: 'sigmoid', expert_activation: 'gelu', expert_bias: true }],
  ['Sinkhorn, GeGLU', { router: 'sinkhorn', expert_activation: 'geglu', expert_size: 7 }],
] as const)('%s', (_, change) => {
  let model: CausalLM;
  beforeAll(async () => {
    model = await AutoModelForCausalLM.fromConfig({ ...tiny, ...change }, { seed: 3 });
  });
  afterAll(() => model.dispose());
  const near = (a: Float32Array, b: Float32Array) => {
    if (onCpu) expect(bits(a)).toBe(bits(b));
    else expect(relativeError(a, b)).toBeLessThan(1e-5);
  };

  it('is saved, and loads again', async () => {
    await model.savePretrained(folder.path);
    const again = await AutoModelForCausalLM.fromPretrained(folder.path);
    expect(bits(await logitsOf(again, randomIds(50, 96)))).toBe(
      bits(await logitsOf(model, randomIds(50, 96))),
    );
    expect([...again.parameters.keys()]).toEqual([...model.parameters.keys()]);
    again.dispose();
  });

  it('gives the same answers whole, in pieces, and beside others', async () => {
    const ids = randomIds(70, 96);
    const whole = await logitsOf(model, ids);
    const state = model.createState();
    const parts: number[] = [];
    for (const [begin, end] of [
      [0, 1],
      [1, 30],
      [30, 31],
      [31, 70],
    ] as const)
      parts.push(
        ...(await take((await model.forward({ inputIds: ids.subarray(begin, end), state })).logits)),
      );
    state.dispose();
    near(Float32Array.from(parts), whole);
    const { logits } = await model.forward({ inputIds: [randomIds(70, 96, 9), ids] });
    near((await take(logits)).slice(70 * 96), whole);
  });

  it('generates with a recorded step what it does without', async () => {
    const run = (useGraph: boolean) =>
      model.generate([[1, 2, 3], [4]], { maxNewTokens: 12, eosTokenId: [], capture: useGraph }).completions();
    const [a, b] = [await run(true), await run(false)];
    expect(a.map(({ tokens }) => tokens)).toEqual(b.map(({ tokens }) => tokens));
  });

  it('shows its routers, padding left out, and leaves nothing behind', async () => {
    const before = inUse();
    const { logits, router } = await model.forward({ inputIds: [[1, 2, 3], [4]], outputRouter: true });
    const k = model.config.json['num_experts_per_tok'] ?? 1;
    expect(router!.map(({ experts }) => experts.shape)).toEqual([
      [2, 3, k],
      [2, 3, k],
    ]);
    const ids = (await router![1]!.experts.data()) as Int32Array;
    expect([...ids].map((id) => id >= 0)).toEqual([...ids].map((_, i) => i < 4 * (k as number)));
    for (const tensor of [logits, ...router!.flatMap((each) => Object.values(each))]) tensor.dispose();
    expect(inUse()).toEqual(before);
  });
});

it('has the sizes of the paper', () => {
  // Total and active parameters without embeddings: 542M and 26M; 2,439M and 117M.
  for (const [name, total, active] of [
    ['25M', 542, 26],
    ['100M', 2439, 117],
  ] as const) {
    const { config } = familyOf(moeMambaPresets[name]);
    const { hiddenSize: d, numLayers } = config;
    const mixer = 3 * d * 2 * d + 2 * d * (4 + 1 + 1 + 1 + 16) + 2 * d * (2 * (d / 16) + 32);
    const expert = 2 * d * 3 * d;
    const all = (experts: number) => (numLayers / 2) * (mixer + experts * expert + 42 * d + 2 * d);
    expect(Math.abs(all(42) / 1e6 - total)).toBeLessThan(total / 100);
    expect(Math.abs(all(1) / 1e6 - active)).toBeLessThan(1.6);
  }
});

it('refuses what makes no sense', () => {
  const config = (change: object) => () => familyOf({ ...tiny, ...change });
  expect(config({ num_experts_per_tok: 6 })).toThrow(
    'num_experts_per_tok is 6, expected at most num_experts, which is 5',
  );
  expect(config({ router: 'expert-choice' })).toThrow('router is "expert-choice", expected "softmax" or');
  expect(config({ expert_activation: 'tanh' })).toThrow('expert_activation is "tanh"');
  expect(config({ capacity_factor: -1 })).toThrow('capacity_factor is -1');
});

it('is what examples/moe-mamba.ts makes and runs', () => {
  const script = [join(__dirname, '..', 'typescript.cjs'), join(__dirname, '../../examples/moe-mamba.ts')];
  const out = execFileSync(process.execPath, ['--require', ...script], { encoding: 'utf8' });
  expect(out).toMatch(/^\d+ parameters\ntokens: (\d+ ){7}\d+\nrouter 0: (\d+ ){7}\d+, entropy /);
});
