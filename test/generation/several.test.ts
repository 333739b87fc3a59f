import { Graph, type CausalLM, type GenerateOptions } from '../../lib';
import { Decoder } from '../../lib/generation/decoder';
import { open, randomIds } from '../models/checkpoints';

let model: CausalLM;
beforeEach(async () => {
  model = await open('mamba-tiny');
});
afterEach(() => model.dispose());

const prompts = [randomIds(5), randomIds(3, 256, 7), randomIds(9, 256, 8)];
const run = (options: GenerateOptions = {}) =>
  model.generate(prompts, { eosTokenId: [], maxNewTokens: 99, ...options }).completions();

describe('a long generation that nothing ends early', () => {
  const kinds: GenerateOptions[] = [
    {},
    { temperature: 0.8, topP: 0.9, seed: 3 },
    { temperature: 1.5, topK: 9, seed: [1, 2, 3], repetitionPenalty: 1.3, maxNewTokens: [66, 98, 3] },
  ];

  it.each(kinds)('takes several steps at once, and gives the same (%j)', async (options) => {
    const wanted = await run({ ...options, capture: false });
    const replay = jest.spyOn(Graph.prototype, 'replay');
    expect(await run(options)).toEqual(wanted);
    const first = replay.mock.calls.length;
    expect(first).toBeLessThan(80);
    expect(await run(options)).toEqual(wanted);
    expect(replay.mock.calls.length - first).toBeLessThan(35);
    replay.mockRestore();
  });

  it('takes one at a time where a token may end it', async () => {
    await run();
    const replay = jest.spyOn(Graph.prototype, 'replay');
    const wanted = await run({ maxNewTokens: 40 });
    const several = replay.mock.calls.length;
    const never = wanted.flatMap(({ tokens }) => [...tokens]);
    const id = Array.from({ length: 256 }, (_, i) => i).find((i) => !never.includes(i))!;
    expect(await run({ maxNewTokens: 40, eosTokenId: [id] })).toEqual(wanted);
    expect(replay.mock.calls.length - several).toBeGreaterThanOrEqual(39);
    replay.mockRestore();
  });

  it('goes on by single steps where there is no room for the recording', async () => {
    const wanted = await run({ capture: false });
    const got: number[][] = prompts.map(() => []);
    const { device } = model;
    try {
      for await (const event of model.generate(prompts, { eosTokenId: [], maxNewTokens: 99 })) {
        got[event.index]!.push(event.token);
        if (got[0]!.length === 40) device.setMemoryLimit(1);
      }
    } finally {
      device.setMemoryLimit(0);
    }
    expect(got).toEqual(wanted.map(({ tokens }) => [...tokens]));
  });

  // What a sequence would draw past its end may be what fails.
  it('takes several only as far as every sequence goes', async () => {
    await run();
    const several = jest.spyOn(Decoder.prototype, 'several');
    const next = jest.spyOn(Decoder.prototype, 'next');
    const got = await run({ maxNewTokens: [6, 11, 30] });
    // The first token is the prompt's. Of the 5 of the first sequence that are left 4 come at once, of the second's
    // last 5 and of the third's last 19 the same, by fours.
    expect([several.mock.calls.length, next.mock.calls.length]).toEqual([6, 5]);
    several.mockRestore();
    next.mockRestore();
    expect(got.map(({ tokens }) => tokens.length)).toEqual([6, 11, 30]);
  });

  it('may be left at any token', async () => {
    const wanted = await run();
    for (const least of [1, 70, 200]) {
      let tokens = 0;
      for await (const _ of model.generate(prompts, { eosTokenId: [], maxNewTokens: 99 }))
        if (++tokens === least) break;
      expect(await run()).toEqual(wanted);
    }
  });

  it('leaves a state of the caller where it should be', async () => {
    await run();
    const state = model.createState(3);
    const first = await run({ maxNewTokens: 70, state });
    const rest = await model
      .generate([[], [], []], { eosTokenId: [], maxNewTokens: 29, state })
      .completions();
    state.dispose();
    const whole = await run();
    whole.forEach(({ tokens }, i) => expect([...first[i]!.tokens, ...rest[i]!.tokens]).toEqual([...tokens]));
  });
});
