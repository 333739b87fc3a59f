import { AutoModelForCausalLM, device, type CausalLM } from '../../lib';
import { PromptGraphs } from '../../lib/generation/prompt-graphs';
import { native } from '../../lib/native';
import type { State } from '../../lib/models/state';
import { inUse, open, randomIds, tinyConfig } from '../models/checkpoints';
import { relativeError } from '../same';

const s4d = { model_type: 's4d', hidden_size: 32, vocab_size: 256, num_hidden_layers: 2 };
const bytes = { ...tinyConfig, model_type: 'mambabyte' };
const models: readonly (readonly [string, () => Promise<CausalLM>])[] = [
  ...['mamba-tiny', 'falcon-mamba-tiny', 'blackmamba-tiny'].map((name) => [name, () => open(name)] as const),
  ['s4d', () => AutoModelForCausalLM.fromConfig(s4d, { seed: 3 })],
  ['mambabyte', () => AutoModelForCausalLM.fromConfig(bytes, { seed: 3 })],
];
const sequences = (lengths: readonly number[], seed = 1) =>
  lengths.map((length, i) => randomIds(length, 256, seed + i));
const valuesOf = (state: State) =>
  Promise.all([...state.pools, state.logits].map(async (pool) => Float64Array.from(await pool.data())));

describe.each(models)('a recorded pass of %s', (_, make) => {
  let model: CausalLM;
  beforeAll(async () => {
    model = await make();
  });
  afterAll(() => model.dispose());

  it.each([true, false])('leaves the state that `run` leaves (capture: %p)', async (recorded) => {
    for (const lengths of [[2], [8], [5, 1, 17], [64], [100], [30, 210]]) {
      const [state, wanted] = [model.createState(lengths.length), model.createState(lengths.length)];
      const graphs = new PromptGraphs(model, state, recorded);
      for (const seed of [1, 9]) {
        const prompts = sequences(lengths, seed);
        for (const each of [state, wanted]) each.clear();
        graphs.run(prompts);
        await model.run(prompts, wanted);
        expect([state.lengths, state.marks]).toEqual([wanted.lengths, wanted.marks]);
        const want = await valuesOf(wanted);
        (await valuesOf(state)).forEach((got, i) => expect(relativeError(got, want[i]!)).toBeLessThan(1e-5));
      }
      graphs.free();
      state.dispose();
      wanted.dispose();
    }
  });
});

describe('passes', () => {
  let model: CausalLM;
  beforeAll(async () => {
    model = await open('mamba-tiny');
  });
  afterAll(() => model.dispose());

  it('are recorded once for each of a few sizes, and let go', async () => {
    const before = inUse();
    const state = model.createState();
    const graphs = new PromptGraphs(model, state, true);
    const record = jest.spyOn(native(), 'beginCapture');
    const lengths = [9, 10, 15, 9, 14, 16, 16];
    for (const length of lengths) {
      state.clear();
      graphs.run(sequences([length]));
    }
    // 16 tokens are a size by themselves, without any that are missing.
    expect(record).toHaveBeenCalledTimes(2);
    const held: number[] = [];
    for (let length = 17; length < 4096; length += 170) {
      state.clear();
      graphs.run(sequences([length]));
      held.push(inUse().tensors);
    }
    expect(Math.max(...held) - before.tensors).toBeLessThan(16 * 8 + 40);
    expect(held.at(-1)).toBeLessThan(Math.max(...held));
    record.mockRestore();
    await state.logits.data();
    graphs.free();
    state.dispose();
    expect(inUse()).toEqual(before);
  });

  it('are freed with what else is kept for reuse', async () => {
    const state = model.createState();
    const graphs = new PromptGraphs(model, state, true);
    graphs.run(sequences([9]));
    graphs.run(sequences([300]));
    await state.logits.data();
    const { tensors, used } = inUse();
    device().trim();
    expect(inUse().tensors).toBeLessThan(tensors);
    expect(inUse().used).toBeLessThan(used);
    state.clear();
    graphs.run(sequences([9]));
    const wanted = model.createState();
    await model.run(sequences([9]), wanted);
    const [got, want] = await Promise.all([state, wanted].map((each) => each.logits.data()));
    expect(relativeError(Float64Array.from(got!), Float64Array.from(want!))).toBeLessThan(1e-5);
    graphs.free();
    for (const each of [state, wanted]) each.dispose();
  });

  it('of prompts of one size make way for others, not for wrong answers', async () => {
    const lengths = Array.from({ length: 30 }, (_, i) => 2 + ((i * 37) % 300));
    const run = async (capture: boolean) => {
      const rows: unknown[] = [];
      for (const length of [...lengths, ...lengths]) {
        const options = { maxNewTokens: 3, eosTokenId: [], capture };
        rows.push(await model.generate(randomIds(length, 256, length), options).completions());
      }
      return rows;
    };
    expect(await run(true)).toEqual(await run(false));
  });

  it.each(['cpu', 'cuda:0'])('are for prompts of few tokens, on a GPU (%s)', (id) => {
    const on = { ...model, device: { ...device(), id } } as unknown as CausalLM;
    const fits = (lengths: readonly number[]) => PromptGraphs.fits(on, sequences(lengths));
    const wanted = id === 'cpu' ? [false, false, false] : [true, true, true];
    expect([fits([2]), fits([1, 1, 2]), fits([4096])]).toEqual(wanted);
    expect([fits([1]), fits([1, 1]), fits([4097]), fits([4000, 97])]).toEqual([false, false, false, false]);
  });
});
