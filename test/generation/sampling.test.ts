import { type CausalLM, type GenerateOptions } from '../../lib';
import { logitsOf, open, randomIds, rowsOf } from '../models/checkpoints';

const vocab = 256;
const prompt = [...randomIds(12, vocab, 5)];
let model: CausalLM;
let logits: readonly number[]; // of the token after `prompt`
beforeAll(async () => {
  model = await open('mamba-tiny');
  logits = [...(await logitsOf(model, prompt)).subarray(-vocab)];
});
afterAll(() => model.dispose());

const argmax = (values: readonly number[]) => values.indexOf(Math.max(...values));
function softmax(values: readonly number[], temperature = 1): number[] {
  const largest = Math.max(...values);
  const weights = values.map((x) => Math.exp((x - largest) / temperature));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / sum);
}
const greedy = (options: GenerateOptions = {}) => tokensOf({ doSample: false, ...options });
async function tokensOf(options: GenerateOptions): Promise<readonly number[]> {
  return (await model.generate(prompt, { maxNewTokens: 20, eosTokenId: [], ...options }).completions())[0]!
    .tokens;
}

/** The first token of many continuations, each with its own seed. */
async function draws(options: GenerateOptions, count = 800): Promise<number[]> {
  const seed = Array.from({ length: count }, (_, i) => i);
  const prompts = seed.map(() => prompt);
  const rows = await model
    .generate(prompts, { maxNewTokens: 1, eosTokenId: [], doSample: true, seed, ...options })
    .completions();
  return rows.map(({ tokens }) => tokens[0]!);
}

/** Draws must come from `p` and nothing else: within 5 standard deviations for every token, or 3 draws of rare ones. */
function expectDrawnFrom(p: readonly number[], tokens: readonly number[]): void {
  const total = p.reduce((a, b) => a + b, 0);
  const counts = Array<number>(vocab).fill(0);
  for (const token of tokens) counts[token]!++;
  counts.forEach((count, i) => {
    const wanted = p[i]! / total;
    if (wanted === 0) expect([i, count]).toEqual([i, 0]);
    const tolerance = 5 * Math.sqrt((wanted * (1 - wanted)) / tokens.length) + 3 / tokens.length;
    expect(Math.abs(count / tokens.length - wanted)).toBeLessThanOrEqual(tolerance);
  });
}

/** Keeps the tokens that `keep` says, the likeliest first. */
function filtered(
  p: readonly number[],
  keep: (rank: number, p: number, before: number, top: number) => boolean,
): number[] {
  const order = [...p.keys()].sort((a, b) => p[b]! - p[a]! || a - b);
  let before = 0;
  const kept = new Set(
    order.filter((i, rank) => {
      const keeps = keep(rank, p[i]!, before, p[order[0]!]!);
      before += p[i]!;
      return keeps;
    }),
  );
  return p.map((value, i) => (kept.has(i) ? value : 0));
}

describe('greedy', () => {
  it('is the default, and takes the likeliest token each time', async () => {
    const tokens = await tokensOf({});
    expect(tokens).toEqual(await greedy());
    const all = rowsOf(await logitsOf(model, [...prompt, ...tokens]), vocab);
    expect(tokens).toEqual(all.slice(prompt.length - 1, -1).map((row) => argmax([...row])));
  });

  it('is what topK 1, tiny temperatures and tiny topP come to', async () => {
    const wanted = await greedy();
    const same: GenerateOptions[] = [
      { topK: 1, seed: 1 },
      { topK: 1, temperature: 5, seed: 2 },
      { temperature: 1e-5, seed: 3 },
      { temperature: 1e-40, seed: 3 },
      { temperature: 1e-300, seed: 3 },
      { topP: 1e-9, seed: 4 },
      { minP: 1, seed: 5 },
      { doSample: false, temperature: 9, seed: 6 },
    ];
    for (const options of same) expect(await tokensOf(options)).toEqual(wanted);
  });
});

describe('tokens are drawn', () => {
  it('from the model’s probabilities', async () => {
    expectDrawnFrom(softmax(logits), await draws({}));
  });

  it.each([0.5, 2])('at temperature %f', async (temperature) => {
    expectDrawnFrom(softmax(logits, temperature), await draws({ temperature }));
  });

  it('evenly at the highest temperatures', async () => {
    for (const temperature of [1e10, 1e300])
      expectDrawnFrom(Array<number>(vocab).fill(1), await draws({ temperature }));
  });

  it.each([2, 7, 255, 256, 10000])('from the topK %i likeliest', async (topK) => {
    const p = softmax(logits, 2);
    expectDrawnFrom(
      filtered(p, (rank) => rank < topK),
      await draws({ topK, temperature: 2 }),
    );
  });

  it.each([0.1, 0.5, 0.9])('from the smallest set with probability topP %f', async (topP) => {
    const p = softmax(logits, 2);
    expectDrawnFrom(
      filtered(p, (_, __, before) => before < topP),
      await draws({ topP, temperature: 2 }),
    );
  });

  it.each([0.05, 0.5])('from tokens no less likely than minP %f of the likeliest', async (minP) => {
    const p = softmax(logits, 2);
    expectDrawnFrom(
      filtered(p, (_, value, __, top) => value >= minP * top),
      await draws({ minP, temperature: 2 }),
    );
  });

  it('through topK, topP and minP in this order', async () => {
    const topK = filtered(softmax(logits, 3), (rank) => rank < 40);
    const sum = topK.reduce((a, b) => a + b, 0);
    const both = filtered(topK, (_, p, before, top) => p > 0 && before < 0.8 * sum && p >= 0.1 * top);
    expectDrawnFrom(both, await draws({ topK: 40, topP: 0.8, minP: 0.1, temperature: 3 }));
  });
});

describe('repetitionPenalty', () => {
  it.each([0.5, 1.3, 5])(
    '%f divides or multiplies the logits of all that was there before',
    async (repetitionPenalty) => {
      const ids = [...prompt];
      for (let i = 0; i < 12; i++) {
        const raw = [...(await logitsOf(model, ids)).subarray(-vocab)];
        const seen = new Set(ids);
        ids.push(
          argmax(
            raw.map((x, id) => (!seen.has(id) ? x : x > 0 ? x / repetitionPenalty : x * repetitionPenalty)),
          ),
        );
      }
      expect(await greedy({ repetitionPenalty, maxNewTokens: 12 })).toEqual(ids.slice(prompt.length));
    },
  );
});

describe('logprob', () => {
  it('is the model’s own, whatever is done to the logits', async () => {
    for (const options of [
      {},
      { temperature: 3, topK: 50, repetitionPenalty: 1.4, seed: 8 },
    ] as GenerateOptions[]) {
      const [row] = await model
        .generate(prompt, { maxNewTokens: 15, eosTokenId: [], ...options })
        .completions();
      const all = rowsOf(await logitsOf(model, [...prompt, ...row!.tokens]), vocab);
      row!.tokens.forEach((token, i) => {
        const p = softmax([...all[prompt.length - 1 + i]!]);
        expect(Math.abs(row!.logprobs[i]! - Math.log(p[token]!))).toBeLessThan(2e-5);
      });
    }
  });
});

describe('seed', () => {
  const options = { temperature: 10, maxNewTokens: 25 };
  it('repeats the tokens', async () => {
    for (const seed of [0, 1, -1, 2 ** 52, 2n ** 63n, 123456789012345n]) {
      expect(await tokensOf({ ...options, seed })).toEqual(await tokensOf({ ...options, seed }));
    }
  });

  it('matters in each of its 64 bits', async () => {
    const seeds = [0n, ...Array.from({ length: 64 }, (_, i) => 1n << BigInt(i))];
    const rows = await model
      .generate(
        seeds.map(() => prompt),
        { ...options, eosTokenId: [], seed: seeds },
      )
      .completions();
    expect(new Set(rows.map(({ tokens }) => tokens.join())).size).toBe(seeds.length);
  });

  it('is another one each time by default', async () => {
    expect(await tokensOf(options)).not.toEqual(await tokensOf(options));
  });
});
