import { AutoModelForCausalLM, type CausalLM } from '../../lib';
import { familyOf } from '../../lib/models';
import { activations } from '../../lib/verify/moe-reference';
import { plainKernel } from '../nn/s4d-plain';
import { bits, inUse, logitsOf, randomIds, relativeError, take, temporaryFolder } from './checkpoints';
import { parametersOf } from './plain';

const tiny = { model_type: 's4d', vocab_size: 96, hidden_size: 24, num_hidden_layers: 3, state_size: 16 };
const folder = temporaryFolder();
const [, gelu, , sigmoid] = activations;

/** The published block in plain loops: each layer's S4D as the convolution's own sum. */
async function plainLogits(model: CausalLM, ids: Int32Array, bilinear: boolean): Promise<number[]> {
  const all = await parametersOf(model);
  const d = 24;
  const at = (name: string) => all.get(name)!;
  const linear = (x: readonly number[], w: Float32Array, bias?: Float32Array) =>
    Array.from({ length: w.length / x.length }, (_, i) =>
      x.reduce((sum, value, j) => sum + value * w[i * x.length + j]!, bias?.[i] ?? 0),
    );
  const norm = (x: readonly number[], name: string) => {
    const mean = x.reduce((a, b) => a + b, 0) / d;
    const scale = 1 / Math.sqrt(x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / d + 1e-5);
    return x.map((v, i) => (v - mean) * scale * at(`${name}.weight`)[i]! + at(`${name}.bias`)[i]!);
  };
  let x = [...ids].map((id) => [...at('backbone.embeddings.weight').subarray(id * d, (id + 1) * d)]);
  for (let i = 0; i < 3; i++) {
    const name = `backbone.layers.${i}`;
    const u = x.map((row) => norm(row, `${name}.norm`));
    const get = (parameter: string) => at(`${name}.s4d.${parameter}`);
    const system = {
      ...{ d, n: 8, bilinear, D: get('D'), C: get('C') },
      ...{ log_dt: get('log_dt'), log_A_real: get('log_A_real'), A_imag: get('A_imag') },
    };
    const kernels = Array.from({ length: d }, (_, c) => plainKernel(system, c, ids.length));
    x = x.map((row, t) => {
      const y = row.map((_, c) => {
        let sum = system.D[c]! * u[t]![c]!;
        for (let k = 0; k <= t; k++) sum += kernels[c]![k]! * u[t - k]![c]!;
        return gelu!(sum);
      });
      const out = linear(y, at(`${name}.output_linear.weight`), at(`${name}.output_linear.bias`));
      return row.map((value, c) => value + out[c]! * sigmoid!(out[d + c]!));
    });
  }
  return x.flatMap((row) => linear(norm(row, 'backbone.norm_f'), at('lm_head.weight')));
}

describe.each([
  ['S4D-Lin, zero-order hold', {}],
  ['S4D-Real, bilinear', { state_initialization: 'real', discretization: 'bilinear' }],
] as const)('%s', (_, change) => {
  let model: CausalLM;
  beforeAll(async () => {
    model = await AutoModelForCausalLM.fromConfig({ ...tiny, ...change }, { seed: 3 });
  });
  afterAll(() => model.dispose());

  it('gives what its formula says, by either execution', async () => {
    const ids = randomIds(41, 96);
    const wanted = await plainLogits(model, ids, 'discretization' in change);
    for (const execution of ['recurrent', 'convolutional']) {
      const told = await AutoModelForCausalLM.fromConfig({ ...tiny, ...change, execution }, { seed: 3 });
      expect(relativeError(await logitsOf(told, ids), Float32Array.from(wanted))).toBeLessThan(1e-5);
      told.dispose();
    }
  });

  it('is saved, and loads again', async () => {
    await model.savePretrained(folder.path);
    const again = await AutoModelForCausalLM.fromPretrained(folder.path);
    const ids = randomIds(50, 96);
    expect(bits(await logitsOf(again, ids))).toBe(bits(await logitsOf(model, ids)));
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
    expect(relativeError(Float32Array.from(parts), whole)).toBeLessThan(1e-5);
    const { logits } = await model.forward({ inputIds: [randomIds(70, 96, 9), ids] });
    expect(relativeError((await take(logits)).slice(70 * 96), whole)).toBeLessThan(1e-5);
  });

  it('generates with a recorded step what it does without, and from a restored state', async () => {
    const run = (useGraph: boolean) =>
      model.generate([[1, 2, 3], [4]], { maxNewTokens: 12, eosTokenId: [], capture: useGraph }).completions();
    const [a, b] = [await run(true), await run(false)];
    expect(a.map(({ tokens }) => tokens)).toEqual(b.map(({ tokens }) => tokens));

    const state = model.createState();
    const half = await model.generate([1, 2, 3], { maxNewTokens: 6, eosTokenId: [], state }).completions();
    const restored = model.restoreState(await state.snapshot());
    const rest = await model.generate([], { maxNewTokens: 6, eosTokenId: [], state: restored }).completions();
    expect([...half[0]!.tokens, ...rest[0]!.tokens]).toEqual(a[0]!.tokens);
    state.dispose();
    restored.dispose();
  });

  it('leaves padding out, in the middle too, and nothing behind', async () => {
    const before = inUse();
    const { logits } = await model.forward({
      inputIds: [
        [0, 1, 2, 3],
        [1, 7, 2, 3],
      ],
      attentionMask: [
        [0, 1, 1, 1],
        [1, 0, 1, 1],
      ],
    });
    const padded = await take(logits);
    const alone = await logitsOf(model, [1, 2, 3]);
    expect(relativeError(padded.slice(96, 4 * 96), alone)).toBeLessThan(1e-5);
    expect(relativeError(padded.slice(6 * 96), alone.slice(96))).toBeGreaterThan(1e-4); // time has passed
    expect(inUse()).toEqual(before);
  });
});

it('refuses what makes no sense', () => {
  const config = (change: object) => () => familyOf({ ...tiny, ...change });
  expect(config({ state_size: 7 })).toThrow('state_size is 7, expected an even number, at most 512');
  expect(config({ state_initialization: 'legs' })).toThrow(
    'state_initialization is "legs", expected "lin" or',
  );
  expect(config({ discretization: 'euler' })).toThrow(
    'discretization is "euler", expected "zoh" or "bilinear"',
  );
  expect(config({ execution: 'fast' })).toThrow('execution is "fast", expected "auto" or');
  expect(config({ time_step_min: 1 })).toThrow('time_step_min is 1, expected at most time_step_max, 0.1');
  expect(config({ expand: 2 })).toThrow('there is no field expand in this kind of model');
});

it('keeps its states in f32', async () => {
  await expect(AutoModelForCausalLM.fromConfig(tiny, { stateDtype: 'bf16' })).rejects.toThrow(
    's4d: stateDtype is bf16, expected f32',
  );
});
