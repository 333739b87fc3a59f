import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type CausalLM } from '../../lib';
import { familyOf } from '../../lib/models';
import { parseJsonObject } from '../../lib/io/json';
import { answers, FIXTURES, logitsOf, open, relativeError, rowsOf, take } from './checkpoints';

// Answers of Zyphra's own code for its own files, see test/fixtures/README.md
describe.each([
  ['blackmamba-tiny', [4, 4]],
  ['blackmamba-bias', [8, 4]],
] as const)('%s', (name, experts) => {
  const expected = answers(name);
  const { shape, values } = expected('input_ids');
  const inputIds = rowsOf(values as Int32Array, shape[1]!);
  let model: CausalLM;
  beforeAll(async () => {
    model = await open(name);
  });
  afterAll(() => model.dispose());

  it('gives the logits', async () => {
    const { logits } = await model.forward({ inputIds });
    expect(logits.shape).toEqual(expected('logits').shape);
    expect(relativeError(await take(logits), expected('logits').values)).toBeLessThan(1e-4);
  });

  it('generates the greedy tokens', async () => {
    const { shape, values } = expected('generated');
    const rows = await model.generate(inputIds, { maxNewTokens: shape[1], eosTokenId: [] }).completions();
    const wanted = rowsOf(values as Int32Array, shape[1]!).map((row) => [...row]);
    expect(rows.map(({ tokens }) => tokens)).toEqual(wanted);
  });

  it('shows what its routers do', async () => {
    const { logits, router } = await model.forward({ inputIds, outputRouter: true });
    logits.dispose();
    expect(router!.map(({ load }) => load.shape)).toEqual(experts.map((e) => [e]));
    for (const { experts, load, entropy, dropped } of router!) {
      const counts = (await load.data()) as Int32Array;
      const ids = [...((await experts.data()) as Int32Array)];
      expect([...counts]).toEqual([...counts.keys()].map((e) => ids.filter((id) => id === e).length));
      expect(ids).toHaveLength(shape[0]! * shape[1]!);
      expect((await entropy.data())[0]).toBeGreaterThan(0);
      expect((await dropped.data())[0]).toBe(0);
    }
    for (const tensor of router!.flatMap((each) => Object.values(each))) tensor.dispose();
  });
});

it('activation and layers of config.json that are not known are refused', async () => {
  const text = readFileSync(join(FIXTURES, 'blackmamba-tiny', 'config.json'));
  const config = (change: object) => () => familyOf({ ...parseJsonObject(text, 'config.json'), ...change });
  expect(config({})().config.modelType).toBe('blackmamba');
  expect(config({ mamba_moe_layers: ['r', '16', 'r', '8'] })).toThrow('expected 4 of "r", "1" to "9"');
  expect(config({ mamba_moe_layers: ['r'] })).toThrow('expected 4 of');
  expect(config({ expert_activation: 'relu' })).toThrow('expected "gelu" or "silu"');
  expect(config({ surprise: 1 })).toThrow('no field surprise');
  await expect(logitsOf(await open('blackmamba-tiny'), [1, 2])).resolves.toHaveLength(512);
});
