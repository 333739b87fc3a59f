import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  AutoModelForCausalLM,
  ByteTokenizer,
  device,
  preset,
  presets,
  type CausalLM,
  type Tokenizer,
} from '../../lib';
import { familyOf } from '../../lib/models';
import { Weights, countParameters } from '../../lib/nn/weights';
import { chain } from '../generation/chain';
import { bits, FIXTURES, logitsOf, open, temporaryFolder } from './checkpoints';

const tiny = { model_type: 'mambabyte', hidden_size: 32, num_hidden_layers: 2 };
const folder = temporaryFolder();

describe('mambabyte', () => {
  let model: CausalLM;
  beforeAll(async () => {
    model = await AutoModelForCausalLM.fromConfig(tiny, { seed: 5 });
  });
  afterAll(() => model.dispose());

  it('has bytes for tokens, without a tokenizer', () => {
    expect(model.tokenizer).toBeInstanceOf(ByteTokenizer);
    expect(model.config).toMatchObject({ modelType: 'mambabyte', vocabSize: 256 });
  });

  it('is saved, loads again, and is a Mamba by its numbers', async () => {
    await model.savePretrained(folder.path);
    expect(JSON.parse(readFileSync(folder.at('config.json'), 'utf8'))).toMatchObject(tiny);
    expect(existsSync(folder.at('tokenizer.json'))).toBe(false);
    const text = Buffer.from('All is well. 😀');
    const again = await AutoModelForCausalLM.fromPretrained(folder.path);
    expect(again.tokenizer).toBeInstanceOf(ByteTokenizer);
    expect(bits(await logitsOf(again, text))).toBe(bits(await logitsOf(model, text)));
    again.dispose();
    writeFileSync(
      folder.at('config.json'),
      JSON.stringify({ ...tiny, model_type: 'mamba', vocab_size: 256 }),
    );
    const mamba = await AutoModelForCausalLM.fromPretrained(folder.path);
    expect(mamba.tokenizer).toBeUndefined();
    expect(bits(await logitsOf(mamba, text))).toBe(bits(await logitsOf(model, text)));
    mamba.dispose();
    const told = await AutoModelForCausalLM.fromPretrained(folder.path, { bytes: true });
    expect(told.config.modelType).toBe('mambabyte');
    await told.savePretrained(folder.at('saved'));
    expect(JSON.parse(readFileSync(folder.at('saved/config.json'), 'utf8'))).toMatchObject(tiny);
    told.dispose();
  });

  it('is what an original checkpoint becomes, if it is said to be of bytes', async () => {
    const path = join(FIXTURES, 'mamba-ssm-bin');
    const told = await AutoModelForCausalLM.fromPretrained(path, { bytes: true });
    const plain = await AutoModelForCausalLM.fromPretrained(path);
    expect(told.config.modelType).toBe('mambabyte');
    expect(plain.tokenizer).toBeUndefined();
    const [a] = await told.generate('Zoë', { maxNewTokens: 9 }).completions();
    const [b] = await plain.generate([...Buffer.from('Zoë')], { maxNewTokens: 9 }).completions();
    expect(a!.tokens).toEqual(b!.tokens);
    for (const each of [told, plain]) each.dispose();
  });

  it('continues bytes, text, or ids that are the same', async () => {
    const text = 'Zoë says: ';
    const run = (prompt: string | Uint8Array | number[]) =>
      model.generate(prompt, { maxNewTokens: 20 }).completions();
    const [row] = await run(text);
    expect(await run(Buffer.from(text))).toEqual([row]);
    expect(await run([...Buffer.from(text)])).toEqual([row]);
    expect([...row!.bytes!]).toEqual(row!.tokens);
    expect(row!.text).toBe(new TextDecoder().decode(row!.bytes));
    // Any bytes at all, several prompts at once.
    const all = Uint8Array.from({ length: 256 }, (_, i) => i);
    const rows = await model.generate([all, text], { maxNewTokens: 20 }).completions();
    // On a GPU sums have another order in another batch, so that logprobs differ by a rounding.
    expect(rows[1]!.tokens).toEqual(row!.tokens);
    expect((await run(all))[0]!.tokens).toEqual(rows[0]!.tokens);
  });

  it('keeps its state in bytes', async () => {
    const state = model.createState();
    const first = await model.generate('one ', { maxNewTokens: 9, state }).completions();
    const more = await model
      .generate([], { maxNewTokens: 9, state: model.restoreState(await state.snapshot()) })
      .completions();
    const whole = await model.generate('one ', { maxNewTokens: 18 }).completions();
    expect([...first[0]!.tokens, ...more[0]!.tokens]).toEqual(whole[0]!.tokens);
    state.dispose();
  });
});

describe('the id of padding', () => {
  const options = { maxNewTokens: 6, eosTokenId: [] };
  let model: CausalLM;
  beforeAll(async () => {
    model = await AutoModelForCausalLM.fromConfig({ ...tiny, pad_token_id: 0x61 }, { seed: 5 });
  });
  afterAll(() => model.dispose());

  it('is a byte like any other of a text or of bytes', async () => {
    for (const text of ['abba', 'aaa', 'banana']) {
      const [wanted] = await model
        .generate([...Buffer.from(text)], { ...options, padTokenId: null })
        .completions();
      const rows = await model.generate([text, Buffer.from(text)], options).completions();
      expect(rows.map(({ tokens }) => tokens)).toEqual([wanted!.tokens, wanted!.tokens]);
    }
  });

  it('is padding in ids', async () => {
    const [padded, plain] = await model
      .generate([[...Buffer.from('aab')], [...Buffer.from('b')]], options)
      .completions();
    expect(padded!.tokens).toEqual(plain!.tokens);
  });

  it('is dropped, as a mere byte that ends texts is, where a Mamba is said to be of bytes', async () => {
    await model.savePretrained(folder.path);
    const change = (name: string, json: object) => writeFileSync(folder.at(name), JSON.stringify(json));
    const mamba = { ...tiny, model_type: 'mamba', vocab_size: 256, pad_token_id: 0, eos_token_id: [0, 1] };
    change('config.json', mamba);
    change('generation_config.json', { bos_token_id: 1, eos_token_id: 2, pad_token_id: 3 });
    const told = await AutoModelForCausalLM.fromPretrained(folder.path, { bytes: true });
    expect(told.config).toMatchObject({ eosTokenId: undefined, padTokenId: undefined });
    await told.savePretrained(folder.at('told'));
    told.dispose();
    const read = (name: string) => JSON.parse(readFileSync(folder.at('told', name), 'utf8')) as object;
    expect(read('generation_config.json')).toEqual({});
    expect(Object.keys(read('config.json')).filter((name) => name.endsWith('_id'))).toEqual([]);
    // What a mambabyte says itself is meant.
    change('config.json', { ...mamba, model_type: 'mambabyte' });
    const own = await AutoModelForCausalLM.fromPretrained(folder.path, { bytes: true });
    expect(own.config).toMatchObject({ eosTokenId: [0, 1], padTokenId: 0 });
    own.dispose();
  });

  it('is refused beyond the vocabulary, in generation_config.json too', async () => {
    await model.savePretrained(folder.path);
    writeFileSync(folder.at('generation_config.json'), '{"eos_token_id":[1,256]}');
    await expect(AutoModelForCausalLM.fromPretrained(folder.path)).rejects.toThrow(
      "generation_config.json: eos_token_id holds 256, expected token ids below the vocabulary's size, 256",
    );
  });
});

describe('text of a model of bytes', () => {
  const say = async (bytes: readonly number[], options: object = {}) => {
    const model = await chain(bytes, { tokenizer: new ByteTokenizer(), eos: [] });
    const events = [];
    for await (const event of model.generate([bytes[0]!], { maxNewTokens: bytes.length - 1, ...options }))
      events.push(event);
    model.dispose();
    return {
      texts: events.map(({ text }) => text),
      bytes: events.map(({ bytes }) => [...bytes!]),
      reason: events.at(-1)!.finishReason,
      tokens: events.map(({ token }) => token),
    };
  };
  const start = 0x01; // what the prompt is
  const of = (text: string) => [start, ...Buffer.from(text)];

  it('comes as whole characters, its bytes as they are', async () => {
    const { texts, bytes } = await say(of('é😀!'));
    expect(texts).toEqual(['', 'é', '', '', '', '😀', '!']);
    expect(bytes.flat()).toEqual([...Buffer.from('é😀!')]);
    expect((await say(of('e\u0301'))).texts).toEqual(['e', '', '\u0301']);
  });

  it('replaces what is no UTF-8, its bytes as they are', async () => {
    const { texts, bytes } = await say([start, 0x61, 0xff, 0xf0, 0x9f, 0x62, 0xe2, 0x82]);
    expect(texts.join('')).toBe('a\ufffd\ufffdb\ufffd');
    expect(bytes.flat()).toEqual([0x61, 0xff, 0xf0, 0x9f, 0x62, 0xe2, 0x82]);
  });

  it('ends before a stop string, in bytes too, wherever it is cut', async () => {
    const whole = of('so 😀it');
    for (const stop of ['😀', Buffer.from('😀'), ['nothing', ' 😀'], Uint8Array.of(0x9f)]) {
      const { texts, bytes, reason } = await say(whole, { stop });
      const found = Array.isArray(stop)
        ? 'so'
        : stop instanceof Uint8Array && stop.length === 1
          ? null
          : 'so ';
      expect(reason).toBe('stop');
      if (found !== null) expect(texts.join('')).toBe(found);
      // Half of the character was there before the stop byte: it is in both.
      else expect(texts.join('')).toBe('so \ufffd');
      expect(bytes.flat()).toEqual([...Buffer.from(found ?? 'so '), ...(found === null ? [0xf0] : [])]);
    }
  });

  it('gives what was held for a stop string that does not come', async () => {
    const { texts, bytes, reason } = await say(of('abc'), { stop: 'bcd' });
    expect([texts.join(''), reason]).toEqual(['abc', 'length']);
    expect(bytes.flat()).toEqual([...Buffer.from('abc')]);
  });

  it('has no place for ids beyond the bytes', async () => {
    const { texts, bytes, tokens } = await say([start, 0x61, 300, 0x62, 511]);
    expect(texts).toEqual(['a', '', 'b', '']);
    expect(bytes).toEqual([[0x61], [], [0x62], []]);
    expect(tokens).toEqual([0x61, 300, 0x62, 511]);
    const ended = await say([start, 0x61, 300, 0x62], { eosTokenId: 300 });
    expect([ended.texts.join(''), ended.reason]).toEqual(['a', 'eos']);
  });
});

describe('presets', () => {
  it.each([
    ['mambabyte-353m', 353.4, 53, 1024, 64],
    ['mambabyte-972m', 972.6, 48, 1792, 112],
    ['mambabyte-1.6b', 1601, 48, 2304, 144],
  ] as const)('%s has the sizes of the paper', (name, millions, layers, dModel, dtRank) => {
    const { family, config } = familyOf(preset(name));
    expect(config).toMatchObject({ vocabSize: 256, numLayers: layers, hiddenSize: dModel });
    expect(config).toMatchObject({ mixer: { dInner: 2 * dModel, dState: 16, dConv: 4, dtRank } });
    // Nothing is written to these parameters, and they take no memory.
    const weights = new Weights({ device: device('cpu'), dtype: 'f32' });
    family.build(config, weights, { activations: 'f32', states: 'f32' }).dispose();
    expect(Math.abs(countParameters(weights.parameters) / 1e6 - millions)).toBeLessThan(millions / 100);
    weights.dispose();
  });

  it('are known by their names', () => {
    for (const name of Object.keys(presets)) familyOf(preset(name as keyof typeof presets));
    expect(() => preset('mambabyte-7b' as never)).toThrow(
      'preset: name is "mambabyte-7b", expected one of mambabyte-353m, mambabyte-972m, mambabyte-1.6b',
    );
    const own = preset('mambabyte-353m') as { hidden_size: number };
    own.hidden_size = 1;
    expect(preset('mambabyte-353m')['hidden_size']).toBe(1024);
  });
});

it('refuses what makes no sense', async () => {
  expect(() => familyOf({ ...tiny, vocab_size: 255 })).toThrow('vocab_size is 255, expected 256 or more');
  expect(() => familyOf({ ...tiny, patch_size: 8 })).toThrow('there is no field patch_size');
  const text = await open('mamba-text');
  await expect(
    AutoModelForCausalLM.fromConfig(tiny, { tokenizer: text.tokenizer as Tokenizer }),
  ).rejects.toThrow('fromConfig: tokenizer is a Tokenizer, but the tokens of mambabyte are bytes');
  await expect(text.generate(Buffer.from('abc')).text()).rejects.toThrow(
    'generate: prompt is bytes, but the model has a tokenizer; expected text or token ids',
  );
  await expect(text.generate('abc', { stop: Buffer.from('x') }).text()).rejects.toThrow(
    'generate: stop holds bytes, which only a model of bytes has; expected strings',
  );
  await expect(text.generate('abc', { stop: [new Uint8Array()] }).text()).rejects.toThrow(
    'generate: stop holds',
  );
  text.dispose();
  await expect(
    AutoModelForCausalLM.fromPretrained(join(FIXTURES, 'mamba-text'), { bytes: true }),
  ).rejects.toThrow(
    'config.json: vocab_size is 512, expected 256 for a model of bytes that has a tokenizer.json',
  );
  const falcon = await open('falcon-mamba-tiny');
  await falcon.savePretrained(folder.at('falcon'));
  falcon.dispose();
  await expect(AutoModelForCausalLM.fromPretrained(folder.at('falcon'), { bytes: true })).rejects.toThrow(
    'config.json: model_type is "falcon_mamba", expected "mamba" or "mambabyte" for a model of bytes',
  );
  await expect(
    AutoModelForCausalLM.fromPretrained(folder.at('falcon'), { bytes: 'yes' as never }),
  ).rejects.toThrow('fromPretrained: bytes is string, expected true or false');
});
