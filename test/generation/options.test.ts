import { type CausalLM, type GenerateOptions } from '../../lib';
import { inUse, open } from '../models/checkpoints';

let model: CausalLM;
let speaker: CausalLM;
beforeAll(async () => {
  model = await open('mamba-tiny');
  speaker = await open('mamba-text');
});
afterAll(() => {
  model.dispose();
  speaker.dispose();
});

describe('generate refuses', () => {
  const whole = ['maxNewTokens', 'minNewTokens', 'topK'] as const;
  const numbers = [...whole, 'temperature', 'topP', 'minP', 'repetitionPenalty'] as const;
  const options: [object, RegExp][] = [
    ...numbers.flatMap((name) =>
      [-1, NaN, Infinity, -Infinity].map((value): [object, RegExp] => [
        { [name]: value },
        new RegExp(`generate: ${name} is ${value}, expected`),
      ]),
    ),
    ...numbers.flatMap((name) =>
      ['1', true, {}, 1n].map((value): [object, RegExp] => [
        { [name]: value },
        new RegExp(`generate: ${name} is .*, expected`),
      ]),
    ),
    ...whole.flatMap((name) =>
      [0.5, 2 ** 31].map((value): [object, RegExp] => [
        { [name]: value },
        new RegExp(`${name} is ${value}, expected a whole number`),
      ]),
    ),
    ...(['maxNewTokens', 'temperature', 'topP', 'repetitionPenalty'] as const).map(
      (name): [object, RegExp] => [{ [name]: 0 }, new RegExp(`${name} is 0, expected`)],
    ),
    [
      { repetitionPenalty: 1e-40 },
      /repetitionPenalty is 1e-40, expected a number from 0\.000001, at most 1000000/,
    ],
    [{ repetitionPenalty: 1e40 }, /repetitionPenalty is 1e\+40, expected a number from/],
    [{ minNewTokens: 10, maxNewTokens: 6 }, /minNewTokens is 10, expected at most maxNewTokens, which is 6/],
    [{ minNewTokens: 129 }, /minNewTokens is 129, expected at most maxNewTokens, which is 128/],
    [{ topP: 1.01 }, /topP is 1\.01, expected a number above 0, at most 1/],
    [{ minP: 1.01 }, /minP is 1\.01, expected a number from 0, at most 1/],
    [{ doSample: 1 }, /doSample is .*, expected true or false/],
    [{ capture: 'x' }, /capture is string, expected true or false/],
    [{ seed: 2n ** 64n }, /seed is 18446744073709551616, expected a whole number of at most 64 bits/],
    [{ seed: -(2n ** 63n) - 1n }, /seed is -9223372036854775809, expected/],
    [{ seed: 0.5 }, /seed is 0\.5, expected a whole number/],
    [{ seed: 2 ** 53 }, /seed is 9007199254740992, expected a whole number/],
    [{ seed: 'x' }, /seed is x, expected a whole number/],
    [{ eosTokenId: 256 }, /eosTokenId holds 256, expected token ids from 0 to 255/],
    [{ eosTokenId: [1, -1] }, /eosTokenId holds -1/],
    [{ eosTokenId: 'x' }, /eosTokenId holds x/],
    [{ stop: 'x' }, /generate: stop needs a tokenizer, the model has none/],
    [{ temperature: [1, 2] }, /temperature has 2 values, expected one for each of 1 prompts/],
    [{ maxNewTokens: [] }, /maxNewTokens has 0 values, expected one for each of 1 prompts/],
    [{ maxNewTokens: [0] }, /maxNewTokens is 0, expected/],
    [{ max_new_tokens: 5 }, /generate: there is no option max_new_tokens/],
    [{ numBeams: 4 }, /generate: there is no option numBeams/],
  ];
  it.each(
    options.map(
      ([option, message]) =>
        [
          Object.entries(option)
            .map(([k, v]) => `${k}: ${typeof v} ${String(v)}`)
            .join(),
          option,
          message,
        ] as const,
    ),
  )('%s', async (_, option, message) => {
    const before = inUse();
    const failure = model.generate([1], option as GenerateOptions).completions();
    await expect(failure).rejects.toThrow(message);
    await expect(failure).rejects.toThrow(/^generate: /);
    const kind = await failure.catch((error: Error) => error);
    expect(kind instanceof RangeError || kind instanceof TypeError).toBe(true);
    expect(inUse()).toEqual(before);
  });

  it.each([[''], [['a', '']], [7], [[null]]])('stop: %j', async (stop) => {
    await expect(speaker.generate('x', { stop: stop as string }).text()).rejects.toThrow(
      /generate: stop holds .*, expected strings that are not empty/,
    );
  });

  const prompts: [unknown, RegExp][] = [
    [[], /generate: prompt is empty, expected at least one token/],
    [[[1], []], /generate: prompt 1 is empty/],
    [new Int32Array(0), /prompt is empty/],
    [[256], /generate: prompt\[0\]\[0\] is 256, expected a whole number from 0 to 255/],
    [[[1], [2, -1]], /prompt\[1\]\[1\] is -1/],
    [[1.5], /prompt\[0\]\[0\] is 1\.5/],
    ['text', /prompt is text, but the model has no tokenizer; expected token ids/],
    [['text', [1]], /prompt is text, but the model has no tokenizer/],
    [undefined, /generate: prompt is undefined, expected text or token ids/],
    [null, /generate: prompt is/],
    [5, /generate: prompt is number/],
    [{}, /generate: prompt is object/],
    [[{}], /generate: prompt/],
    [[[['a']]], /generate: prompt/],
  ];
  it.each(prompts)('the prompt %j', async (prompt, message) => {
    const before = inUse();
    const failure = model.generate(prompt as string).completions();
    await expect(failure).rejects.toThrow(message);
    const error = await failure.catch((error: Error) => error);
    expect(error instanceof RangeError || error instanceof TypeError).toBe(true);
    expect(inUse()).toEqual(before);
  });

  it('an empty text', async () => {
    await expect(speaker.generate('').text()).rejects.toThrow(/generate: prompt is empty/);
  });

  it('to be read twice', async () => {
    const generation = model.generate([1], { maxNewTokens: 1 });
    await generation.completions();
    await expect(generation.text()).rejects.toThrow(/taken before; call generate again/);
  });
});

describe('generate takes', () => {
  const options = { maxNewTokens: 4, eosTokenId: [] };
  it('ids of every kind, alone and in batches', async () => {
    const ids = [5, 0, 255];
    const wanted = await model.generate(ids, options).completions();
    for (const prompt of [
      Int32Array.from(ids),
      Uint32Array.from(ids),
      BigInt64Array.from(ids.map(BigInt)),
      [ids],
      [Int32Array.from(ids)],
    ]) {
      expect(await model.generate(prompt, options).completions()).toEqual(wanted);
    }
    expect(await model.generate([ids, Int32Array.from(ids)], options).completions()).toEqual([
      ...wanted,
      ...wanted,
    ]);
  });

  it('text and ids together, where there is a tokenizer', async () => {
    const rows = await speaker.generate(['Once', speaker.tokenizer!.encode('Once')], options).completions();
    expect(rows[1]).toEqual(rows[0]);
  });

  it('undefined for the default', async () => {
    const given = {
      ...options,
      temperature: undefined,
      topK: undefined,
      seed: undefined,
      stop: undefined,
      signal: undefined,
    };
    expect(await model.generate([1], given).completions()).toEqual(
      await model.generate([1], options).completions(),
    );
  });
});
