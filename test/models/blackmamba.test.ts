import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { AutoModelForCausalLM, type CausalLM } from '../../lib';
import { familyOf } from '../../lib/models';
import { parseJsonObject } from '../../lib/io/json';
import {
  answers,
  FIXTURES,
  logitsOf,
  open,
  relativeError,
  rowsOf,
  take,
  temporaryFolder,
} from './checkpoints';

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

it('gates with SiLU where config.json says so, otherwise with GELU', () => {
  const text = readFileSync(join(FIXTURES, 'blackmamba-tiny', 'config.json'));
  const of = (change: object) => familyOf({ ...parseJsonObject(text, 'config.json'), ...change }).config;
  expect(of({})).toMatchObject({ network: { activation: 'geglu' } });
  expect(of({ expert_activation: 'silu' })).toMatchObject({ network: { activation: 'swiglu' } });
  expect(of({ expert_activation: 'silu', swiglu: false })).toMatchObject({ network: { activation: 'silu' } });
});

describe.each(['1', '3'])('a layer r%s', (network) => {
  const small = {
    hidden_size: 16,
    num_layers: 1,
    state_size: 4,
    conv_dimension: 4,
    vocab_size: 40,
    ffn_hidden_size: 24,
    swiglu: true,
    add_bias_linear: false,
  };
  /** A model of one layer whose parameters are those of `from`, some by other names, some zero. */
  const like = async (layer: string, from: CausalLM, rename: (name: string) => string, zero?: RegExp) => {
    const made = await AutoModelForCausalLM.fromConfig({ ...small, mamba_moe_layers: [layer] });
    for (const [name, tensor] of made.parameters) {
      const values = (await from.parameters.get(rename(name))!.data()) as Float32Array;
      await tensor.write(new Uint8Array((zero?.test(name) ? values.map(() => 0) : values).slice().buffer));
    }
    return made;
  };

  it('is a mixer and a network beside each other, each with its norm', async () => {
    const both = await AutoModelForCausalLM.fromConfig({ ...small, mamba_moe_layers: [`r${network}`] });
    const same = (name: string) => name;
    const asNetwork = (name: string) =>
      name.replace('.mixer.', '.moe.').replace(/\.norm\.weight/, '.norm_moe.weight');
    const pairs = [
      [await like(`r${network}`, both, same, /linear_fc2/), await like('r', both, same)],
      [await like(`r${network}`, both, same, /out_proj/), await like(network, both, asNetwork)],
    ] as const;
    for (const [one, other] of pairs) {
      const [a, b] = [await logitsOf(one, [1, 2, 3, 4]), await logitsOf(other, [1, 2, 3, 4])];
      expect(relativeError(a, b)).toBeLessThan(1e-6);
      expect(relativeError(a, await logitsOf(both, [1, 2, 3, 4]))).toBeGreaterThan(1e-4);
    }
    for (const model of [both, ...pairs.flat()]) model.dispose();
  });
});

describe('examples/blackmamba.ts', () => {
  const folder = temporaryFolder();
  it('reads a released folder, runs it and saves it', async () => {
    const script = [join(__dirname, '..', 'typescript.cjs'), join(__dirname, '../../examples/blackmamba.ts')];
    const args = [join(FIXTURES, 'blackmamba-tiny'), folder.at('made'), '5,6,7'];
    const out = execFileSync(process.execPath, ['--require', ...script, ...args], { encoding: 'utf8' });
    expect(out).toMatch(
      /^blackmamba, \d+ parameters\ntokens: (\d+ ){15}\d+\nrouter 0: experts \d \d \d; load /,
    );
    const model = await AutoModelForCausalLM.fromPretrained(folder.at('made'));
    expect(model.config.modelType).toBe('blackmamba');
    model.dispose();
  });
});
