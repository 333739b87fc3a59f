import { setThreads, threads, type CausalLM, type Completion, type GenerateOptions } from '../../lib';
import { open, randomIds } from '../models/checkpoints';
import { expectSameRows } from '../same';

let model: CausalLM;
beforeAll(async () => {
  model = await open('mamba-tiny');
});
afterAll(() => model.dispose());

const lengths = [5, 1, 40, 3, 2100, 17];
const prompts = lengths.map((length, i) => randomIds(length, 256, i + 3));
const options = {
  maxNewTokens: [12, 30, 5, 20, 9, 1],
  temperature: [0.7, 2, 1, 3, 1.5, 1],
  topK: [0, 5, 0, 100, 0, 2],
  topP: [1, 0.9, 0.5, 1, 1, 1],
  minP: [0, 0, 0.01, 0.2, 0, 0],
  repetitionPenalty: [1, 1.2, 1, 2, 1, 1],
  minNewTokens: [0, 9, 0, 3, 1, 0],
  doSample: [true, true, false, true, true, true],
  seed: [1, 2, 3, 4, 5, 6],
} as const;

/** The options of these rows. */
const pick = (rows: readonly number[]) =>
  Object.fromEntries(
    Object.entries(options).map(([name, values]) => [name, rows.map((row) => values[row])]),
  ) as GenerateOptions;
const run = (rows: readonly number[], more: GenerateOptions = {}): Promise<Completion[]> =>
  model
    .generate(
      rows.map((row) => prompts[row]!),
      { ...pick(rows), ...more },
    )
    .completions();
const all = [0, 1, 2, 3, 4, 5];

describe('a prompt gets the same continuation', () => {
  it('alone, with one value for each option', async () => {
    const together = await run(all);
    for (const row of all) {
      const own = Object.fromEntries(
        Object.entries(options).map(([name, values]) => [name, values[row]]),
      ) as GenerateOptions;
      expectSameRows(await model.generate(prompts[row]!, own).completions(), [together[row]!]);
    }
  });

  it('in any place of any batch', async () => {
    const together = await run(all);
    for (const rows of [
      [5, 4, 3, 2, 1, 0],
      [3, 0],
      [2, 2, 2, 1],
      [1, 5, 1],
    ]) {
      expectSameRows(
        await run(rows),
        rows.map((row) => together[row]!),
      );
    }
  });

  it('with graphs and without', async () => {
    expect(await run(all, { capture: false })).toEqual(await run(all, { capture: true }));
  });

  it('with any number of threads', async () => {
    const before = threads();
    const results: Completion[][] = [];
    for (const count of [1, 2, 3]) {
      setThreads(count);
      results.push(await run(all));
    }
    setThreads(before);
    expect(results[1]).toEqual(results[0]);
    expect(results[2]).toEqual(results[0]);
  });

  it('while another generation runs on the same model', async () => {
    const wanted = await Promise.all([run([0]), run([1])]);
    const both = [0, 1].map((row) => model.generate(prompts[row]!, pick([row]))[Symbol.asyncIterator]());
    const tokens: number[][] = [[], []];
    for (let open = both.map((_, i) => i); open.length > 0;) {
      for (const i of [...open]) {
        const { value, done } = await both[i]!.next();
        if (done) open = open.filter((other) => other !== i);
        else tokens[i]!.push(value.token);
      }
    }
    expect(tokens).toEqual(wanted.map(([row]) => row!.tokens));
    expect(await Promise.all([run([0, 3]), run([4]), run([3, 0])])).toEqual([
      await run([0, 3]),
      await run([4]),
      await run([3, 0]),
    ]);
  });
});

describe('a batch', () => {
  it('gives one completion for each prompt, in their order', async () => {
    const rows = await run(all, { eosTokenId: [] });
    expect(rows.map(({ tokens }) => tokens.length)).toEqual([...options.maxNewTokens]);
    for (const { tokens, logprobs, finishReason, text } of rows) {
      expect(logprobs).toHaveLength(tokens.length);
      expect(logprobs.every((p) => p <= 0 && Number.isFinite(p))).toBe(true);
      expect([finishReason, text]).toEqual(['length', '']);
    }
  });

  it('of 300 prompts is no different', async () => {
    const many = Array.from({ length: 300 }, (_, i) => randomIds(1 + (i % 7), 256, i));
    const seed = many.map((_, i) => i);
    const alike = { maxNewTokens: 4, eosTokenId: [], padTokenId: null };
    const rows = await model.generate(many, { ...alike, seed }).completions();
    for (const i of [0, 77, 299]) {
      expectSameRows(await model.generate(many[i]!, { ...alike, seed: i }).completions(), [rows[i]!]);
    }
  });
});
