import { device, type CausalLM, type GenerateOptions, type State } from '../../lib';
import { bits, inUse, logitsOf } from '../models/checkpoints';
import { noisy, size } from './drafters';

const onCpu = device().id === 'cpu';
const prompt = [5, 17, 200, 3, 5];
let model: CausalLM;
let near: CausalLM;
let hostile: CausalLM;
beforeAll(async () => {
  model = await noisy(0);
  near = await noisy(0.35);
  hostile = await noisy(10);
});
afterAll(() => [model, near, hostile].forEach((each) => each.dispose()));

const run = async (options: GenerateOptions, prompts: number[] | number[][] = prompt) =>
  model.generate(prompts, { eosTokenId: [], maxNewTokens: 40, ...options }).completions();
const one = async (options: GenerateOptions) => (await run(options))[0]!;
/** All that a state holds. */
async function contents(state: State): Promise<unknown> {
  const tensors = await Promise.all([...state.pools, state.logits].map((tensor) => tensor.data()));
  return {
    lengths: state.lengths,
    marks: state.marks,
    bits: tensors.map((data) => bits(data as Float32Array)),
  };
}

describe('greedy tokens are those without a drafter', () => {
  it.each([1, 2, 3, 4, 7, 16, 50])('in blocks of %d', async (draftTokens) => {
    const wanted = await one({});
    for (const drafter of [model, near, hostile])
      for (const capture of [true, false]) {
        const { tokens, logprobs, finishReason } = await one({ drafter, draftTokens, capture });
        expect(tokens).toEqual(wanted.tokens);
        expect(finishReason).toBe('length');
        logprobs.forEach((logprob, i) => expect(logprob).toBeCloseTo(wanted.logprobs[i]!, onCpu ? 6 : 3));
      }
  });

  it('for prompts of other lengths beside each other', async () => {
    const prompts = [[1], prompt, [7, 8, 9, 10, 11, 12, 13, 14, 15]];
    const options = { maxNewTokens: [30, 11, 22] };
    const wanted = await run(options, prompts);
    const got = await run({ ...options, drafter: near }, prompts);
    expect(got.map(({ tokens }) => tokens)).toEqual(wanted.map(({ tokens }) => tokens));
    for (const [i, { speculation }] of got.entries())
      expect(speculation!.calls).toBeLessThanOrEqual(wanted[i]!.tokens.length);
  });

  it('from a drafter on another device', async () => {
    const elsewhere = await noisy(0.35, size, { device: 'cpu' });
    expect((await one({ drafter: elsewhere })).tokens).toEqual((await one({})).tokens);
    elsewhere.dispose();
  });

  it('with every filter, penalty and minimum', async () => {
    for (const options of [
      { repetitionPenalty: 1.7 },
      { minNewTokens: 20, eosTokenId: [...Array(200).keys()] },
      { repetitionPenalty: 1.3, minNewTokens: 5, eosTokenId: [4, 9] },
    ]) {
      const wanted = await one(options);
      for (const drafter of [model, near])
        expect((await one({ ...options, drafter })).tokens).toEqual(wanted.tokens);
    }
  });

  it('up to the end that the text has', async () => {
    const { tokens } = await one({});
    for (const at of [0, 1, 4, 9]) {
      const options = { eosTokenId: tokens[at]! };
      const wanted = await one(options);
      const got = await one({ ...options, drafter: model });
      expect([got.tokens, got.finishReason]).toEqual([wanted.tokens, 'eos']);
    }
    for (const maxNewTokens of [1, 2, 3, 5, 6])
      expect((await one({ drafter: model, maxNewTokens })).tokens).toEqual(tokens.slice(0, maxNewTokens));
  });
});

describe('sampled tokens', () => {
  const options = [
    {},
    { temperature: 0.7 },
    { topK: 20 },
    { topP: 0.8, temperature: 1.4 },
    { minP: 0.1, repetitionPenalty: 1.2, topK: 50 },
  ];
  it.each(options)('are those without a drafter for the same seed: %p', async (option) => {
    for (const seed of [1, 2n ** 40n + 5n, -3]) {
      const wanted = await one({ ...option, seed });
      for (const [drafter, draftTokens] of [
        [model, 3],
        [near, 4],
        [hostile, 2],
      ] as const)
        expect((await one({ ...option, seed, drafter, draftTokens })).tokens).toEqual(wanted.tokens);
    }
  });

  /** How far counts of pairs of tokens are from those of plain generation, in deviations of chi-square. */
  async function deviations(
    option: GenerateOptions,
    drafter: CausalLM,
    draftTokens: number,
  ): Promise<number> {
    const filters = { topK: 4, temperature: 2, eosTokenId: [], maxNewTokens: 3, ...option };
    const batch = Array.from({ length: 300 }, () => prompt);
    const count = async (extra: GenerateOptions, offset: number) => {
      const counts = new Map<string, number>();
      for (let round = 0; round < 3; round++) {
        const seed = batch.map((_, i) => offset + round * batch.length + i);
        for (const { tokens } of await model.generate(batch, { ...filters, ...extra, seed }).completions())
          counts.set(tokens.join(), (counts.get(tokens.join()) ?? 0) + 1);
      }
      return counts;
    };
    const [plain, drafted] = [
      await count({}, 0),
      await count({ drafter, draftTokens, acceptance: 'rejection' }, 1e6),
    ];
    // Two samples of the same size: the sum of (a - b)² / (a + b) is chi-square.
    const keys = [...new Set([...plain.keys(), ...drafted.keys()])];
    const [as, bs] = [plain, drafted].map((counts) => keys.map((key) => counts.get(key) ?? 0)) as [
      number[],
      number[],
    ];
    const common = keys.map((_, i) => i).filter((i) => as[i]! + bs[i]! >= 10);
    expect(common.length).toBeGreaterThan(10);
    const chiSquare = common.reduce((sum, i) => sum + (as[i]! - bs[i]!) ** 2 / (as[i]! + bs[i]!), 0);
    return (chiSquare - common.length) / Math.sqrt(2 * common.length);
  }

  it.each<[string, () => CausalLM, GenerateOptions]>([
    ['a near drafter', () => near, {}],
    ['a hostile drafter', () => hostile, {}],
    ['top-p', () => near, { topK: 8, topP: 0.7 }],
    ['a penalty', () => near, { repetitionPenalty: 1.5 }],
  ])('are distributed by rejection sampling as without one: %s', async (_, drafter, option) => {
    for (const draftTokens of [1, 2])
      expect(await deviations(option, drafter(), draftTokens)).toBeLessThan(4);
  });

  it('are repeatable by rejection sampling, and greedy ones the same as ever', async () => {
    const options = { drafter: near, acceptance: 'rejection', seed: 7, temperature: 1.5 } as const;
    expect((await one(options)).tokens).toEqual((await one(options)).tokens);
    expect((await one({ drafter: near, acceptance: 'rejection' })).tokens).toEqual((await one({})).tokens);
  });
});

describe('what is accepted', () => {
  it('is everything of a drafter that is the model, drawn or not', async () => {
    for (const [option, acceptance] of [
      [{}, 'match'],
      [{ temperature: 1.2, seed: 3 }, 'match'],
      [{ temperature: 1.2, seed: 3 }, 'rejection'],
      [{ topP: 0.7, seed: 4 }, 'rejection'],
    ] as const) {
      const { speculation, tokens } = await one({
        ...option,
        acceptance,
        drafter: model,
        draftTokens: 4,
        maxNewTokens: 41,
      });
      expect(tokens.length).toBe(41);
      expect(speculation).toEqual({ drafted: 32, accepted: 32, calls: 9, blocks: 8, meanAccepted: 4 });
    }
  });

  it('adds up', async () => {
    for (const drafter of [near, hostile])
      for (const option of [{}, { temperature: 2, seed: 1 }, { beta: 3 }]) {
        const { speculation, tokens } = await one({ ...option, drafter, draftTokens: 3 });
        const { drafted, accepted, calls, blocks, meanAccepted } = speculation!;
        // Each call gives one token of the model's own and what it accepts; the last may be cut.
        expect(tokens.length).toBe(accepted + calls);
        expect(drafted).toBeLessThanOrEqual(3 * blocks);
        expect(accepted).toBeLessThanOrEqual(drafted);
        expect(blocks).toBeLessThanOrEqual(calls);
        expect(meanAccepted).toBe(accepted / blocks);
      }
    expect((await one({ drafter: near })).speculation!.accepted).toBeGreaterThan(3);
    expect((await one({})).speculation).toBeUndefined();
  });

  it('by rejection is more of what is drawn at random than by a greedy guess alone', async () => {
    const options = { drafter: near, seed: 1, temperature: 1, maxNewTokens: 200 };
    const { speculation } = await one({ ...options, acceptance: 'rejection' });
    expect(speculation!.accepted).toBeGreaterThan(10);
  });
});

describe('beta', () => {
  it('of 1 gives the greedy tokens', async () => {
    for (const drafter of [near, hostile])
      expect((await one({ drafter, beta: 1 })).tokens).toEqual((await one({})).tokens);
  });

  it('of the whole vocabulary gives the text of the drafter, and the model has the last word of a block', async () => {
    const { tokens, speculation } = await one({
      drafter: hostile,
      beta: 300,
      draftTokens: 4,
      maxNewTokens: 25,
    });
    expect(speculation).toMatchObject({ drafted: 20, accepted: 20, calls: 5 });
    let context = [...prompt];
    for (let i = 0; i < 25; i += 5) {
      const [draft] = await hostile.generate(context, { maxNewTokens: 4, eosTokenId: [] }).completions();
      const own = await model
        .generate([...context, ...draft!.tokens], { maxNewTokens: 1, eosTokenId: [] })
        .completions();
      expect(tokens.slice(i, i + 5)).toEqual([...draft!.tokens, ...own[0]!.tokens]);
      context = [...prompt, ...tokens.slice(0, i + 5)];
    }
  });

  it('accepts what has a rank below it, and nothing else', async () => {
    for (const beta of [2, 3, 10]) {
      const { tokens, speculation } = await one({ drafter: near, beta, draftTokens: 3 });
      const logits = await logitsOf(model, [...prompt, ...tokens]);
      const ranks = tokens.map((token, i) => {
        const at = (prompt.length - 1 + i) * 300;
        const row = logits.subarray(at, at + 300);
        return row.filter((value, id) => value > row[token]! || (value === row[token] && id < token)).length;
      });
      expect(Math.max(...ranks)).toBeLessThan(beta);
      // Those that are not the likeliest came from the drafter.
      expect(ranks.filter((rank) => rank > 0).length).toBeLessThanOrEqual(speculation!.accepted);
      expect(ranks.some((rank) => rank > 0)).toBe(true);
    }
  });

  it('accepts no end of text before minNewTokens', async () => {
    const { tokens } = await hostile
      .generate(prompt, { maxNewTokens: 1, eosTokenId: [] })
      .completions()
      .then(([row]) => row!);
    const options = { drafter: hostile, beta: 300, eosTokenId: tokens, maxNewTokens: 30 };
    expect((await one(options)).tokens).toEqual(tokens);
    expect((await one({ ...options, minNewTokens: 12 })).tokens.slice(0, 12)).not.toContain(tokens[0]);
  });
});

describe('the state', () => {
  it.each(['near', 'hostile', 'itself'])('is after rollbacks that of a fresh one: %s', async (name) => {
    const drafter = { near, hostile, itself: model }[name]!;
    for (const draftTokens of [1, 3, 8]) {
      const state = model.createState();
      const { tokens } = await one({ drafter, draftTokens, state, maxNewTokens: 23 });
      const fresh = model.createState();
      const output = await model.forward({ inputIds: [...prompt, ...tokens], state: fresh });
      output.logits.dispose();
      if (onCpu) expect(await contents(state)).toEqual(await contents(fresh));
      expect([state.lengths, state.marks]).toEqual([fresh.lengths, fresh.marks]);
      // And what follows is what follows.
      const rest = await run({ state, maxNewTokens: 5 }, []);
      expect(rest[0]!.tokens).toEqual((await one({ maxNewTokens: 28 })).tokens.slice(23));
      state.dispose();
      fresh.dispose();
    }
  });

  it('goes on with a drafter, and with what the drafter remembers', async () => {
    const [state, drafterState] = [model.createState(), near.createState()];
    const tokens: number[] = [];
    const accepted: number[] = [];
    for (let i = 0; i < 3; i++) {
      const [row] = await run(
        { state, drafter: near, drafterState, maxNewTokens: 13 },
        i === 0 ? prompt : [],
      );
      tokens.push(...row!.tokens);
      accepted.push(row!.speculation!.accepted);
      expect(drafterState.lengths).toEqual(state.lengths);
    }
    expect(tokens).toEqual((await one({ maxNewTokens: 39 })).tokens);
    const fresh = near.createState();
    (await near.forward({ inputIds: [...prompt, ...tokens], state: fresh })).logits.dispose();
    if (onCpu) expect(await contents(drafterState)).toEqual(await contents(fresh));
    for (const each of [state, drafterState, fresh]) each.dispose();
  });

  it('has consumed what was given out when the loop is left, wherever that is', async () => {
    for (const stop of [1, 2, 3, 7, 11]) {
      const state = model.createState();
      const drafterState = near.createState();
      const tokens: number[] = [];
      for await (const { token } of model.generate(prompt, {
        drafter: near,
        state,
        drafterState,
        eosTokenId: [],
      })) {
        tokens.push(token);
        if (tokens.length === stop) break;
      }
      expect(state.lengths).toEqual([prompt.length + stop]);
      const fresh = model.createState();
      (await model.forward({ inputIds: [...prompt, ...tokens], state: fresh })).logits.dispose();
      if (onCpu) expect(await contents(state)).toEqual(await contents(fresh));
      expect(drafterState.lengths).toEqual(state.lengths);
      for (const each of [state, drafterState, fresh]) each.dispose();
    }
  });

  it('of several rows', async () => {
    const state = model.createState(2);
    const rows = await run({ drafter: near, state, maxNewTokens: [9, 20] }, [prompt, [1, 2]]);
    const fresh = model.createState();
    (await model.forward({ inputIds: [...prompt, ...rows[0]!.tokens], state: fresh })).logits.dispose();
    const first = state.fork([0]);
    if (onCpu) expect(await contents(first)).toEqual(await contents(fresh));
    expect(state.lengths).toEqual([14, 22]);
    for (const each of [state, fresh, first]) each.dispose();
  });
});

describe('a generation with a drafter', () => {
  it('stops when told to, leaves nothing behind, and a state that can go on', async () => {
    await one({ drafter: near });
    const before = inUse();
    const controller = new AbortController();
    const state = model.createState();
    let count = 0;
    const running = (async () => {
      for await (const _ of model.generate(prompt, {
        drafter: near,
        state,
        signal: controller.signal,
        eosTokenId: [],
      }))
        if (++count === 6) controller.abort(new Error('enough'));
    })();
    await expect(running).rejects.toThrow('enough');
    expect(state.lengths).toEqual([prompt.length + count]);
    const rest = await run({ state, maxNewTokens: 4 }, []);
    expect(rest[0]!.tokens).toEqual((await one({})).tokens.slice(count, count + 4));
    state.dispose();
    await expect(run({ drafter: near, signal: AbortSignal.abort(new Error('never')) })).rejects.toThrow(
      'never',
    );
    expect(inUse()).toEqual(before);
  });

  it('ends when a model is disposed', async () => {
    for (const which of [0, 1]) {
      const models = [await noisy(0), await noisy(0.35)];
      const running = (async () => {
        let count = 0;
        for await (const _ of models[0]!.generate(prompt, { drafter: models[1]!, eosTokenId: [] }))
          if (++count === 5) models[which]!.dispose();
      })();
      await expect(running).rejects.toThrow('is disposed');
      models.forEach((each) => each.dispose());
    }
  });

  it.each<[string, () => Promise<GenerateOptions>, string]>([
    ['no model', async () => ({ drafter: {} as never }), 'generate: drafter is Object, expected a model'],
    ['a beta alone', async () => ({ beta: 2 }), 'generate: beta needs a drafter, which is missing'],
    ['draftTokens alone', async () => ({ draftTokens: 2 }), 'generate: draftTokens needs a drafter'],
    [
      'no tokens',
      async () => ({ drafter: near, draftTokens: 0 }),
      'generate: draftTokens is 0, expected a whole',
    ],
    ['half a token', async () => ({ drafter: near, draftTokens: 1.5 }), 'generate: draftTokens is 1.5'],
    [
      'no beta',
      async () => ({ drafter: near, beta: 0 }),
      'generate: beta is 0, expected a whole number from 1',
    ],
    [
      'another rule',
      async () => ({ drafter: near, acceptance: 'all' as never }),
      'generate: acceptance is all, expected match or rejection',
    ],
    [
      'two rules',
      async () => ({ drafter: near, acceptance: 'rejection', beta: 2 }),
      'generate: beta is a rule of its own',
    ],
    [
      'another vocabulary',
      async () => ({
        drafter: await noisy(0, {
          model_type: 'mamba',
          vocab_size: 301,
          hidden_size: 16,
          num_hidden_layers: 1,
        }),
      }),
      "generate: drafter has a vocabulary of 301, expected the model's 300",
    ],
    [
      'bytes',
      async () => ({
        drafter: await noisy(0, { model_type: 'mambabyte', hidden_size: 16, num_hidden_layers: 1 }),
      }),
      'generate: drafter is a model of bytes, expected one with the same tokens as the model',
    ],
    [
      "the model's state for the drafter",
      async () => ({ drafter: near, drafterState: model.createState(2) }),
      'generate: drafterState: state has 2 sequences, expected 1',
    ],
  ])('refuses %s', async (_, make, message) => {
    const options = await make();
    await expect(run(options)).rejects.toThrow(message);
    for (const each of [options.drafter, options.drafterState])
      if (each && each !== near && 'dispose' in each) each.dispose();
  });

  it('refuses a state that is in use, and gives back what it took', async () => {
    const state = model.createState();
    const first = model.generate(prompt, { state, drafter: near, eosTokenId: [] })[Symbol.asyncIterator]();
    await first.next();
    await expect(run({ state, drafter: near })).rejects.toThrow('state is in use by generate');
    await first.return(undefined);
    expect((await run({ state, drafter: near, maxNewTokens: 3 }, []))[0]!.tokens.length).toBe(3);
    state.dispose();
  });
});
