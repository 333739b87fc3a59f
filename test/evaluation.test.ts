import { AutoModelForCausalLM, ByteTokenizer, device, evaluate, type CausalLM } from '../lib';
import { tokensOf } from '../lib/evaluation/tokens';
import { logSumExp } from '../lib/verify/reference';
import { inUse, logitsOf, open, randomIds, tinyConfig } from './models/checkpoints';

const text =
  'Once upon a time there was a naïve 😀 machine.\n\nIt read 1,024 books, and said:\t"why?"\r\n'.repeat(3);
const onCpu = device().id === 'cpu';
/** Sums have another order in another chunk on a GPU. */
const digits = onCpu ? 9 : 3;

let bytes: CausalLM;
let words: CausalLM;
beforeAll(async () => {
  bytes = await AutoModelForCausalLM.fromConfig(
    { ...tinyConfig, model_type: 'mambabyte', initializer_range: 0.3 },
    { seed: 3 },
  );
  words = await open('mamba-text');
});
afterAll(() => {
  bytes.dispose();
  words.dispose();
});

/** -log p of each id but the first, by forward alone. */
async function plain(model: CausalLM, ids: ArrayLike<number>): Promise<number[]> {
  const logits = await logitsOf(model, Int32Array.from(ids));
  const v = model.config.vocabSize;
  return Array.from({ length: ids.length - 1 }, (_, i) => {
    const row = Float64Array.from(logits.subarray(i * v, (i + 1) * v));
    return logSumExp(row) - row[ids[i + 1]!]!;
  });
}
const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);
async function* cut(all: Uint8Array, size: number) {
  for (let at = 0; at < all.length; at += size) yield await Promise.resolve(all.subarray(at, at + size));
}

describe('a model of bytes', () => {
  it('is as good as the plain sum of log-probabilities says', async () => {
    const ids = Buffer.from(text);
    const nats = sum(await plain(bytes, ids));
    const before = inUse();
    const result = await evaluate(bytes, text);
    expect(inUse()).toEqual(before);
    expect(result).toMatchObject({
      bytes: ids.length,
      tokens: ids.length,
      predicted: ids.length - 1,
      predictedBytes: ids.length - 1,
    });
    expect(result.nats).toBeCloseTo(nats, 3);
    expect(result.bitsPerByte).toBeCloseTo(nats / Math.LN2 / (ids.length - 1), 6);
    expect(result.perplexity).toBeCloseTo(Math.exp(nats / (ids.length - 1)), 3);
  });

  it('gives the same for text, bytes, and pieces of any size', async () => {
    const whole = await evaluate(bytes, text);
    expect(await evaluate(bytes, Buffer.from(text))).toEqual(whole);
    for (const size of [1, 7, 100, 1000])
      expect(await evaluate(bytes, cut(Buffer.from(text), size))).toEqual(whole);
  });

  it('takes any bytes', async () => {
    const all = Uint8Array.from({ length: 512 }, (_, i) => 255 - (i & 255));
    expect((await evaluate(bytes, all)).nats).toBeCloseTo(sum(await plain(bytes, all)), 3);
  });

  it('predicts the first byte too from what is said to come before', async () => {
    const ids = Buffer.from(text);
    const result = await evaluate(bytes, text, { bosTokenId: 10 });
    expect(result).toMatchObject({ predicted: ids.length, predictedBytes: ids.length });
    expect(result.nats).toBeCloseTo(sum(await plain(bytes, [10, ...ids])), 3);
  });

  it('goes on in one state across chunks of the device', async () => {
    const ids = randomIds(5000);
    const result = await evaluate(bytes, Uint8Array.from(ids));
    expect(result.nats / 5000).toBeCloseTo(sum(await plain(bytes, ids)) / 5000, 5);
  });
});

describe('windows', () => {
  const ids = randomIds(300, 256, 9);
  /** Each label once, from the first window that holds it. */
  async function slowly(context: number, stride: number, all: ArrayLike<number> = ids): Promise<number[]> {
    const found: number[] = [];
    for (let begin = 0; found.length < all.length - 1; begin += stride) {
      const window = await plain(bytes, Array.from(all).slice(begin, begin + context + 1));
      found.push(...window.slice(found.length - begin));
    }
    return found;
  }

  it.each([
    [300, 300],
    [299, 7],
    [64, 64],
    [64, 32],
    [64, 1],
    [10, 3],
    [1, 1],
    [7, 5],
    [1000, 10],
    [298, 298],
  ])('of %d tokens, %d apart', async (context, stride) => {
    const wanted = await slowly(context, stride);
    expect(wanted.length).toBe(299);
    const result = await evaluate(bytes, Uint8Array.from(ids), { context, stride });
    expect(result.predicted).toBe(299);
    expect(result.nats).toBeCloseTo(sum(wanted), 3);
    const pieces = await evaluate(bytes, cut(Uint8Array.from(ids), 11), { context, stride });
    expect(pieces.nats).toBeCloseTo(result.nats, digits);
  });

  it('are half of the context apart by default', async () => {
    const options = { context: 51 };
    expect(await evaluate(bytes, Uint8Array.from(ids), options)).toEqual(
      await evaluate(bytes, Uint8Array.from(ids), { context: 51, stride: 25 }),
    );
  });

  it('of all that there is are the whole', async () => {
    const result = await evaluate(bytes, Uint8Array.from(ids), { context: 400 });
    expect(result.nats).toBeCloseTo((await evaluate(bytes, Uint8Array.from(ids))).nats, digits);
  });
});

describe('a model of words', () => {
  it('counts the bytes of the text', async () => {
    const ids = words.tokenizer!.encode(text, { addSpecialTokens: false });
    const first = Buffer.byteLength(words.tokenizer!.decode([ids[0]!]));
    const result = await evaluate(words, text, { bosTokenId: null });
    const nats = sum(await plain(words, ids));
    expect(result).toMatchObject({
      bytes: Buffer.byteLength(text),
      tokens: ids.length,
      predicted: ids.length - 1,
      predictedBytes: Buffer.byteLength(text) - first,
    });
    expect(result.nats).toBeCloseTo(nats, 3);
    expect(result.bitsPerByte).toBeCloseTo(nats / Math.LN2 / (Buffer.byteLength(text) - first), 5);
    const bos = words.tokenizer!.bosId;
    expect(bos).toBeDefined();
    const all = await evaluate(words, text);
    expect(all).toMatchObject({ predicted: ids.length, predictedBytes: Buffer.byteLength(text) });
    expect(all.nats).toBeCloseTo(sum(await plain(words, [bos!, ...ids])), 3);
  });

  it('has the same tokens in pieces as at once', async () => {
    const whole = words.tokenizer!.encode(text, { addSpecialTokens: false });
    for (const [size, most] of [
      [1, 30],
      [13, 30],
      [1000, 64],
      [50, 1000],
    ] as const) {
      const ids: number[] = [];
      let count = 0;
      for await (const piece of tokensOf(words.tokenizer!, cut(Buffer.from(text), size), most)) {
        ids.push(...piece.ids);
        count += piece.bytes;
      }
      expect(ids).toEqual(whole);
      expect(count).toBe(Buffer.byteLength(text));
    }
  });

  it('cuts text without white space between characters', async () => {
    const long = '日😀本'.repeat(40);
    let again = '';
    for await (const { ids } of tokensOf(words.tokenizer!, cut(Buffer.from(long), 10), 16))
      again += words.tokenizer!.decode(ids);
    expect(again).toBe(long);
  });

  it('refuses bytes that are no text', async () => {
    await expect(evaluate(words, Buffer.from('ab\xffcd', 'latin1'))).rejects.toThrow(
      'evaluate: text is not valid UTF-8 between bytes 0 and 5; a tokenizer needs text',
    );
    await expect(evaluate(words, Buffer.from('ab\xf0', 'latin1'))).rejects.toThrow('not valid UTF-8');
  });
});

describe('evaluate refuses', () => {
  it.each<[string, () => Promise<unknown>, string]>([
    ['an empty text', () => evaluate(bytes, ''), 'evaluate: text is empty, expected something to predict'],
    ['one byte', () => evaluate(bytes, 'a'), 'evaluate: text is one byte with nothing before it'],
    ['an empty text in windows', () => evaluate(bytes, '', { context: 4 }), 'text is empty'],
    ['a stride alone', () => evaluate(bytes, text, { stride: 4 }), 'evaluate: stride needs context'],
    [
      'a stride beyond the context',
      () => evaluate(bytes, text, { context: 4, stride: 5 }),
      'evaluate: stride is 5, expected a whole number from 1 to context, which is 4',
    ],
    ['no context', () => evaluate(bytes, text, { context: 0 }), 'evaluate: context is 0, expected a whole'],
    [
      'a context of text',
      () => evaluate(bytes, text, { context: 'x' as never }),
      'evaluate: context is string, expected a whole number',
    ],
    ['an unknown option', () => evaluate(bytes, text, { window: 4 } as never), 'there is no option window'],
    ['no source', () => evaluate(bytes, 7 as never), 'evaluate: source is number, expected text, bytes or'],
    ['a strange token', () => evaluate(bytes, text, { bosTokenId: 256 }), 'evaluate: bosTokenId is 256'],
  ])('%s', async (_, run, message) => {
    const before = inUse();
    await expect(run()).rejects.toThrow(message);
    expect(inUse()).toEqual(before);
  });

  it('a model without a tokenizer, and one of fewer ids than bytes', async () => {
    const model = await open('mamba-tiny');
    await expect(evaluate(model, text)).rejects.toThrow('evaluate: model has no tokenizer');
    model.dispose();
    await expect(evaluate(model, text)).rejects.toThrow('evaluate: model is disposed');
    const small = await AutoModelForCausalLM.fromConfig(
      { ...tinyConfig, vocab_size: 100 },
      { tokenizer: new ByteTokenizer() },
    );
    await expect(evaluate(small, text)).rejects.toThrow(
      'evaluate: text has token 110, expected ids below 100',
    );
    small.dispose();
  });

  it('to go on when told to stop, and closes what it reads', async () => {
    const controller = new AbortController();
    let closed = false;
    async function* endless() {
      try {
        for (;;) yield await Promise.resolve(new Uint8Array(5000));
      } finally {
        closed = true;
      }
    }
    const before = inUse();
    const running = evaluate(bytes, endless(), {
      signal: controller.signal,
      onProgress: (done) => done > 20_000 && controller.abort(new Error('enough')),
    });
    await expect(running).rejects.toThrow('enough');
    expect(closed).toBe(true);
    expect(inUse()).toEqual(before);
  });
});

it('refuses half of a surrogate pair, as generate does', async () => {
  for (const model of [bytes, words])
    await expect(evaluate(model, 'a\ud800b')).rejects.toThrow(
      'evaluate: text has a lone surrogate U+D800 at 1, expected well-formed Unicode',
    );
});

it.each([NaN, Infinity])('refuses logits of a weight %f', async (weight) => {
  const model = await AutoModelForCausalLM.fromConfig({ ...tinyConfig, model_type: 'mambabyte' });
  const norm = model.parameters.get('backbone.norm_f.weight')!;
  norm.set(new Float32Array(norm.size).fill(weight));
  for (const options of [{}, { context: 4 }])
    await expect(evaluate(model, text, options)).rejects.toThrow(
      "evaluate: the model's logits are not finite",
    );
  model.dispose();
});
