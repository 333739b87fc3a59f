import { type CausalLM } from '../../lib';
import { open } from '../models/checkpoints';
import { chain } from './chain';

describe('a sequence ends', () => {
  const sequence = [10, 11, 12, 13, 14, 15, 16, 17];
  let model: CausalLM;
  beforeAll(async () => {
    model = await chain(sequence, { eos: 15 });
  });
  afterAll(() => model.dispose());
  const run = async (options: object, prompt = [10]) =>
    (await model.generate(prompt, options).completions())[0]!;

  it('with its end-of-sequence token, which it gives', async () => {
    expect(await run({})).toMatchObject({ tokens: [11, 12, 13, 14, 15], finishReason: 'eos', text: '' });
  });

  it('with maxNewTokens, by default 128', async () => {
    expect(await run({ maxNewTokens: 3 })).toMatchObject({ tokens: [11, 12, 13], finishReason: 'length' });
    expect(await run({ maxNewTokens: 5 })).toMatchObject({
      tokens: [11, 12, 13, 14, 15],
      finishReason: 'eos',
    });
    expect((await run({ eosTokenId: [] })).tokens).toHaveLength(128);
  });

  it('with the tokens that the call says, and no others', async () => {
    expect(await run({ eosTokenId: 13 })).toMatchObject({ tokens: [11, 12, 13], finishReason: 'eos' });
    expect(await run({ eosTokenId: [16, 14, 500] })).toMatchObject({
      tokens: [11, 12, 13, 14],
      finishReason: 'eos',
    });
    expect((await run({ eosTokenId: [], maxNewTokens: 7 })).tokens).toEqual(sequence.slice(1));
  });

  it('with any of the tokens in the configuration', async () => {
    const other = await chain(sequence, { eos: [14, 12] });
    expect((await other.generate([10]).completions())[0]!.tokens).toEqual([11, 12]);
    other.dispose();
  });

  it('each in its own time', async () => {
    const prompts = [[10], [13], [10], [14]];
    const rows = await model.generate(prompts, { maxNewTokens: [2, 9, 9, 9] }).completions();
    expect(rows.map(({ tokens }) => tokens)).toEqual([[11, 12], [14, 15], [11, 12, 13, 14, 15], [15]]);
    expect(rows.map(({ finishReason }) => finishReason)).toEqual(['length', 'eos', 'eos', 'eos']);
    const order: number[] = [];
    for await (const { index } of model.generate(prompts, { maxNewTokens: [2, 9, 9, 9] })) order.push(index);
    expect(order).toEqual([0, 1, 2, 3, 0, 1, 2, 2, 2, 2]);
  });

  it('not before minNewTokens', async () => {
    for (const minNewTokens of [0, 4])
      expect((await run({ minNewTokens })).tokens).toEqual([11, 12, 13, 14, 15]);
    for (const minNewTokens of [5, 6, 9, 12]) {
      const { tokens } = await run({ minNewTokens, maxNewTokens: 12 });
      expect(tokens.slice(0, 4)).toEqual([11, 12, 13, 14]);
      expect(tokens.slice(0, minNewTokens)).not.toContain(15);
      expect(tokens.length).toBeGreaterThanOrEqual(minNewTokens);
    }
    const never = { minNewTokens: 2 ** 31 - 1, maxNewTokens: 2 ** 31 - 1 };
    const tokens: number[] = [];
    for await (const { token } of model.generate([10], never)) if (tokens.push(token) === 12) break;
    expect(tokens).toHaveLength(12);
    expect(tokens).not.toContain(15);
    const rows = await model.generate([[10], [10]], { minNewTokens: [0, 5], maxNewTokens: 5 }).completions();
    expect(rows.map(({ finishReason }) => finishReason)).toEqual(['eos', 'length']);
  });
});

describe('stop strings', () => {
  let model: CausalLM;
  let whole: string;
  let tokens: readonly number[];
  let pieces: readonly string[];
  const options = { maxNewTokens: 40, temperature: 4, seed: 3, eosTokenId: [] };
  beforeAll(async () => {
    model = await open('mamba-text');
    const all: string[] = [];
    const ids: number[] = [];
    for await (const { text, token } of model.generate('Once', options)) {
      all.push(text);
      ids.push(token);
    }
    pieces = all;
    tokens = ids;
    whole = all.join('');
  });
  afterAll(() => model.dispose());

  it('are found wherever token boundaries fall, and nothing of them comes out', async () => {
    expect(whole.length).toBeGreaterThan(40);
    for (let at = 2; at + 7 < whole.length; at += 5) {
      for (const length of [1, 2, 7]) {
        const stop = whole.slice(at, at + length);
        const got: string[] = [];
        let last: string | undefined;
        for await (const { text, finishReason } of model.generate('Once', {
          ...options,
          stop: ['never this', stop],
        })) {
          got.push(text);
          last = finishReason;
        }
        expect(got.join('')).toBe(whole.slice(0, whole.indexOf(stop)));
        expect(last).toBe('stop');
      }
    }
  });

  it('hold text back no longer than it may be part of one', async () => {
    const stop = `${whole.slice(5, 9)}\0`;
    const got: string[] = [];
    for await (const { text } of model.generate('Once', { ...options, stop })) got.push(text);
    expect(got.join('')).toBe(whole);
    const behind = got.map(
      (_, i) => pieces.slice(0, i + 1).join('').length - got.slice(0, i + 1).join('').length,
    );
    expect(Math.max(...behind)).toBeLessThanOrEqual(4);
    expect(behind.at(-1)).toBe(0);
    expect(behind.filter((n) => n === 0).length).toBeGreaterThan(behind.length / 2);
  });

  it('end each text of a batch in its own place', async () => {
    const stop = [whole.slice(10, 14)];
    const prompts = ['Once', 'Two', 'Once'];
    const seeds = [3, 4, 5];
    const rows = await model.generate(prompts, { ...options, seed: seeds, stop }).completions();
    for (const [i, prompt] of prompts.entries()) {
      expect([rows[i]]).toEqual(
        await model.generate(prompt, { ...options, seed: seeds[i], stop }).completions(),
      );
    }
    expect(rows[0]).toMatchObject({ text: whole.slice(0, whole.indexOf(stop[0]!)), finishReason: 'stop' });
    expect(rows[0]!.tokens).toEqual(tokens.slice(0, rows[0]!.tokens.length));
  });
});
