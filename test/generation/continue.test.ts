import { execFile } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { type CausalLM, type GenerateOptions, type State } from '../../lib';
import { FIXTURES, open, randomIds, temporaryFolder } from '../models/checkpoints';
import { expectSameRows } from '../same';

let model: CausalLM;
beforeAll(async () => {
  model = await open('mamba-tiny');
});
afterAll(() => model.dispose());
const folder = temporaryFolder();

const prompts = [randomIds(30), randomIds(7, 256, 2)];
const kinds: [string, GenerateOptions][] = [
  ['greedy', { doSample: false }],
  ['sampled', { temperature: 1.5, seed: [7, 8] }],
  ['penalised', { temperature: 2, repetitionPenalty: 1.5, topK: 60, seed: [9, 10] }],
];
const run = (
  ids: readonly (Int32Array | readonly number[])[],
  state: State | undefined,
  options: GenerateOptions,
  maxNewTokens: number,
) => model.generate(ids, { eosTokenId: [], ...options, state, maxNewTokens }).completions();
const pick = (rows: Awaited<ReturnType<typeof run>>, begin: number) =>
  rows.map(({ tokens, logprobs }) => ({ tokens: tokens.slice(begin), logprobs: logprobs.slice(begin) }));

describe.each(kinds)('a %s sequence goes on with the same tokens', (_, options) => {
  it('from its state', async () => {
    const whole = await run(prompts, undefined, options, 20);
    const state = model.createState(2);
    expect(await run(prompts, state, options, 8)).toEqual(
      pick(whole, 0).map(({ tokens, logprobs }) =>
        expect.objectContaining({ tokens: tokens.slice(0, 8), logprobs: logprobs.slice(0, 8) }),
      ),
    );
    expect(state.lengths).toEqual([38, 15]);
    const fork = state.fork();
    expect(pick(await run([[], []], state, options, 12), 0)).toEqual(pick(whole, 8));
    expect(pick(await run([[], []], fork, options, 12), 0)).toEqual(pick(whole, 8));
    for (const made of [state, fork]) made.dispose();
  });

  it('from its state, after the consumer left or aborted anywhere', async () => {
    const whole = await run(prompts.slice(0, 1), undefined, { ...options, seed: 7 }, 20);
    for (const taken of [1, 2, 5]) {
      for (const aborts of [false, true]) {
        const state = model.createState();
        const controller = new AbortController();
        const tokens: number[] = [];
        const generation = model.generate(prompts[0]!, {
          eosTokenId: [],
          ...options,
          seed: 7,
          state,
          signal: controller.signal,
        });
        const loop = async () => {
          for await (const { token } of generation) {
            if (tokens.push(token) < taken) continue;
            if (!aborts) break;
            controller.abort();
          }
        };
        await loop().catch((error: Error) => expect(error.name).toBe('AbortError'));
        expect(tokens).toEqual(whole[0]!.tokens.slice(0, taken));
        expect(state.lengths).toEqual([30 + taken]);
        const rest = await run([[]], state, { ...options, seed: 7 }, 20 - taken);
        expect(pick(rest, 0)).toEqual(pick(whole, taken));
        state.dispose();
      }
    }
  });

  it('from a snapshot, in this process and in another', async () => {
    const state = model.createState(2);
    await run(prompts, state, options, 8);
    const bytes = await state.snapshot();
    const wanted = pick(await run([[], []], state, options, 12), 0);
    const restored = model.restoreState(bytes);
    expect(pick(await run([[], []], restored, options, 12), 0)).toEqual(wanted);
    for (const made of [state, restored]) made.dispose();

    writeFileSync(folder.at('state'), bytes);
    const given = JSON.stringify({ eosTokenId: [], ...options, maxNewTokens: 12 });
    const script = ['--require', join(__dirname, '..', 'typescript.cjs'), join(__dirname, 'continue.ts')];
    const { stdout } = await promisify(execFile)(process.execPath, [
      ...script,
      join(FIXTURES, 'mamba-tiny'),
      folder.at('state'),
      given,
    ]);
    expect(JSON.parse(stdout)).toEqual(wanted);
  });
});

describe('a conversation', () => {
  it('reads on from its state as from its whole text', async () => {
    const state = model.createState(2);
    const first = await run(prompts, state, { doSample: false }, 5);
    const more = [randomIds(4, 256, 8), randomIds(11, 256, 9)];
    const second = await run(more, state, { doSample: false }, 6);
    const history = prompts.map((ids, i) => Int32Array.of(...ids, ...first[i]!.tokens, ...more[i]!));
    expectSameRows(second, await run(history, undefined, { doSample: false }, 6));
    state.dispose();
  });

  it('may go on for some of its sequences only with a fork of them', async () => {
    const state = model.createState(2);
    const whole = await run(prompts, state.fork(), { doSample: false }, 9);
    await run(prompts, state, { doSample: false }, 4);
    const second = state.fork([1]);
    expectSameRows(pick(await run([[]], second, { doSample: false }, 5), 0), pick(whole.slice(1), 4));
    for (const made of [state, second]) made.dispose();
  });

  it('whose rows end at different times leaves each where it ended', async () => {
    const state = model.createState(2);
    const rows = await model
      .generate(prompts, { doSample: false, eosTokenId: [], maxNewTokens: [2, 9], state })
      .completions();
    expect(state.lengths).toEqual([32, 16]);
    const whole = await run(prompts, undefined, { doSample: false }, 15);
    expect(rows[0]!.tokens).toEqual(whole[0]!.tokens.slice(0, 2));
    const rest = await run([[], []], state, { doSample: false }, 6);
    expect(rest[0]!.tokens).toEqual(whole[0]!.tokens.slice(2, 8));
    expect(rest[1]!.tokens).toEqual(whole[1]!.tokens.slice(9, 15));
    state.dispose();
  });

  it('cannot begin with nothing', async () => {
    const state = model.createState(2);
    await expect(run([[1], []], state, {}, 5)).rejects.toThrow(
      /generate: prompt 1 is empty, expected at least one token/,
    );
    expect(state.lengths).toEqual([0, 0]);
    state.dispose();
  });
});
