import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type CausalLM } from '../../lib';
import { FIXTURES, open } from '../models/checkpoints';
import { chain } from './chain';

const json = (name: string) =>
  JSON.parse(readFileSync(join(FIXTURES, 'mamba-text', name), 'utf8')) as unknown;
let model: CausalLM;
beforeAll(async () => {
  model = await open('mamba-text');
});
afterAll(() => model.dispose());

describe('mamba-text', () => {
  it('has the tokenizer of transformers', () => {
    const cases = json('tokenized.json') as { text: string; ids: number[]; decoded: string }[];
    for (const { text, ids, decoded } of cases) {
      expect(model.tokenizer!.encode(text)).toEqual(ids);
      expect(model.tokenizer!.decode(ids)).toBe(decoded);
    }
    expect(cases.length).toBeGreaterThan(3);
  });

  it('continues text as transformers does', async () => {
    const { prompt, ids, text } = json('greedy.json') as { prompt: string; ids: number[]; text: string };
    const read = model.tokenizer!.encode(prompt).length;
    const generation = model.generate(prompt, { maxNewTokens: ids.length - read });
    const [row] = await generation.completions();
    expect(row!.tokens).toEqual(ids.slice(read));
    expect(prompt + row!.text).toBe(text);
    expect(prompt + (await model.generate(prompt, { maxNewTokens: ids.length - read }).text())).toBe(text);
    // Ids in, the same out.
    const fromIds = await model
      .generate(ids.slice(0, read), { maxNewTokens: ids.length - read })
      .completions();
    expect(fromIds).toEqual([row]);
  });

  it('gives pieces of text that together are the whole, and are whole characters', async () => {
    const prompts = ['Once', 'naïve 😀', '日本', ' ', 'x'];
    const pieces = prompts.map(() => [] as string[]);
    const ids = prompts.map(() => [] as number[]);
    for await (const { index, text, token } of model.generate(prompts, {
      maxNewTokens: 150,
      temperature: 3,
      seed: [1, 2, 3, 4, 5],
      eosTokenId: [],
    })) {
      expect(text).not.toMatch(/\p{Surrogate}/u);
      pieces[index]!.push(text);
      ids[index]!.push(token);
    }
    ids.forEach((row, i) =>
      expect(pieces[i]!.join('')).toBe(model.tokenizer!.decode(row, { skipSpecialTokens: true })),
    );
  });

  it('refuses text that is no Unicode', async () => {
    await expect(model.generate('broken \ud800').text()).rejects.toThrow(
      /encode: text has a lone surrogate U\+D800 at 7/,
    );
  });
});

describe('characters of several tokens', () => {
  const text = 'é😀日!';
  let speaker: CausalLM;
  let ids: readonly number[];
  beforeAll(async () => {
    ids = [...model.tokenizer!.encode('x'), ...model.tokenizer!.encode(text)];
    speaker = await chain([...ids, 0], { tokenizer: model.tokenizer, eos: 0 });
  });
  afterAll(() => speaker.dispose());

  it('come out whole, with the token that completes them', async () => {
    expect(ids.length).toBeGreaterThan(9);
    const pieces: string[] = [];
    for await (const token of speaker.generate('x')) pieces.push(token.text);
    expect(pieces.join('')).toBe(text);
    expect(pieces.filter((piece) => piece !== '')).toEqual([...text]);
  });

  it('come out as U+FFFD when the last one is cut off', async () => {
    const emoji = model.tokenizer!.encode('é😀').length;
    const [row] = await speaker.generate('x', { maxNewTokens: emoji - 1 }).completions();
    expect(row).toMatchObject({ text: 'é\uFFFD', finishReason: 'length' });
  });

  it('end a text before any stop string that they are part of', async () => {
    for (const stop of ['😀', '日', '!', '日!']) {
      const [row] = await speaker.generate('x', { stop }).completions();
      expect(row).toMatchObject({ text: text.slice(0, text.indexOf(stop)), finishReason: 'stop' });
    }
  });
});
