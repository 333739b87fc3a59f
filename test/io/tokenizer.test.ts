import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { FormatError } from '../../lib/errors';
import { DecodeStream } from '../../lib/io/decode-stream';
import { loadTokenizer, Tokenizer } from '../../lib/io/tokenizer';
import { FIXTURES, temporaryFolder } from './folder';

const folder = temporaryFolder();
const textFolder = join(FIXTURES, 'mamba-text');
const readFixture = (name: string) => JSON.parse(readFileSync(join(textFolder, name), 'utf8'));
const definition = readFixture('tokenizer.json');
const config = readFixture('tokenizer_config.json');

/** A generator of whole numbers below a bound, the same in every run. */
function randomNumbers(seed: number): (below: number) => number {
  return (below) => (seed = (seed * 48271) % 2147483647) % below;
}

/** SentencePiece-like: bytes as tokens, spaces as ▁, the first space dropped. */
function byteFallback(): Tokenizer {
  const bytes = Array.from({ length: 256 }, (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`);
  const pieces = ['<unk>', '<s>', ...bytes, '▁', '▁▁', '▁a', 'b', 'é', '🙂', "▁'", 's', '▁.'];
  const special = (id: number) => ({ id, content: pieces[id], special: true, normalized: false });
  return new Tokenizer(
    {
      added_tokens: [special(0), special(1)],
      normalizer: {
        type: 'Sequence',
        normalizers: [
          { type: 'Prepend', prepend: '▁' },
          { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
        ],
      },
      pre_tokenizer: null,
      post_processor: null,
      decoder: {
        type: 'Sequence',
        decoders: [
          { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
          { type: 'ByteFallback' },
          { type: 'Fuse' },
          { type: 'Strip', content: ' ', start: 1, stop: 0 },
        ],
      },
      model: {
        type: 'BPE',
        unk_token: '<unk>',
        byte_fallback: true,
        fuse_unk: true,
        vocab: Object.fromEntries(pieces.map((piece, id) => [piece, id])),
        merges: [],
      },
    },
    { unk_token: '<unk>', bos_token: { content: '<s>' } },
  );
}

describe('loadTokenizer', () => {
  it('encodes and decodes as transformers does', async () => {
    const tokenizer = (await loadTokenizer(textFolder))!;
    for (const { text, ids, decoded } of readFixture('tokenized.json')) {
      expect(tokenizer.encode(text)).toEqual(ids);
      expect(tokenizer.decode(ids)).toBe(decoded);
      expect(tokenizer.decode(Int32Array.from(ids))).toBe(decoded);
    }
    const greedy = readFixture('greedy.json');
    expect(tokenizer.decode(greedy.ids)).toBe(greedy.text);
  });

  it('knows the special tokens', async () => {
    const tokenizer = (await loadTokenizer(textFolder))!;
    expect(tokenizer).toMatchObject({ vocabSize: 512, bosId: 0, eosId: 0, padId: 1 });
    expect([...tokenizer.specialIds]).toEqual([0, 1]);
    expect(tokenizer.decode([0, 66, 71, 1, 452, 0])).toBe('<|endoftext|>af<|padding|>ter<|endoftext|>');
    expect(tokenizer.decode([0, 66, 71, 1, 452, 0], { skipSpecialTokens: true })).toBe('after');
    expect(tokenizer.decode([0], { skipSpecialTokens: true })).toBe('');
    expect(tokenizer.decode([])).toBe('');
  });

  it('decodes ids that a padded vocabulary has and the tokenizer has not to nothing', () => {
    const tokenizer = new Tokenizer(definition, config);
    expect(tokenizer.decode([66, 512, 71, 100000])).toBe('af');
    const stream = tokenizer.decodeStream();
    expect([66, 512, 71].map((id) => stream.push(id))).toEqual(['a', '', 'f']);
  });

  it('reads the special tokens of special_tokens_map.json where the config has none', async () => {
    cpSync(textFolder, folder.path, { recursive: true });
    writeFileSync(
      folder.at('special_tokens_map.json'),
      '{"eos_token":{"content":"<|padding|>"},"pad_token":"<|padding|>"}',
    );
    expect(await loadTokenizer(folder.path)).toMatchObject({ eosId: 0, padId: 1 });
    rmSync(folder.at('tokenizer_config.json'));
    expect(await loadTokenizer(folder.path)).toMatchObject({ eosId: 1, padId: 1, bosId: undefined });
  });

  it('is undefined without tokenizer.json', async () => {
    expect(await loadTokenizer(folder.path)).toBeUndefined();
  });

  it.each<[string, RegExp, string]>([
    ['no JSON', /tokenizer.json: is not valid JSON/, '{'],
    ['without a model', /tokenizer.json: model is absent, expected an object/, '{}'],
    ['of parts missing', /tokenizer.json: cannot be used as a tokenizer; /, '{"model":{"type":"BPE"}}'],
    [
      'of an unknown decoder',
      /Unknown Decoder type: Rot13/,
      JSON.stringify({ ...definition, decoder: { type: 'Rot13' } }),
    ],
    [
      'of an unknown model',
      /cannot be used as a tokenizer; /,
      JSON.stringify({ ...definition, model: { type: 'X' } }),
    ],
  ])('refuses a tokenizer.json %s', async (_, message, text) => {
    writeFileSync(folder.at('tokenizer.json'), text);
    await expect(loadTokenizer(folder.path)).rejects.toThrow(FormatError);
    await expect(loadTokenizer(folder.path)).rejects.toThrow(message);
  });

  it('refuses text and ids that are none', () => {
    const tokenizer = new Tokenizer(definition, config);
    expect(() => tokenizer.encode('ab\uD83D')).toThrow(RangeError);
    expect(() => tokenizer.encode('ab\uDE42c')).toThrow('encode: text has a lone surrogate U+DE42 at 2');
    expect(tokenizer.encode('🙂')).toHaveLength(4);
    expect(() => tokenizer.encode(3 as unknown as string)).toThrow(TypeError);
    expect(() => tokenizer.decode([1.5])).toThrow('decode: id is 1.5, expected a token id');
    expect(() => tokenizer.decodeStream().push(-1)).toThrow(RangeError);
  });

  it('adds the special tokens of the post processor unless told otherwise', () => {
    const post_processor = {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<|endoftext|>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [],
      special_tokens: { '<|endoftext|>': { id: '<|endoftext|>', ids: [0], tokens: ['<|endoftext|>'] } },
    };
    const tokenizer = new Tokenizer({ ...definition, post_processor }, config);
    expect(tokenizer.encode('a')).toEqual([0, 66]);
    expect(tokenizer.encode('a', { addSpecialTokens: false })).toEqual([66]);
  });

  it('cleans up spaces only where the config asks for it', () => {
    const ids = new Tokenizer(definition, config).encode("I do n't , she 's ok .");
    expect(new Tokenizer(definition, config).decode(ids)).toBe("I do n't , she 's ok .");
    const cleaning = new Tokenizer(definition, { ...config, clean_up_tokenization_spaces: true });
    expect(cleaning.decode(ids)).toBe("I don't, she's ok.");
  });
});

describe('decodeStream', () => {
  it('holds back the bytes of a character until it is whole', async () => {
    const tokenizer = (await loadTokenizer(textFolder))!;
    const stream = tokenizer.decodeStream();
    expect(tokenizer.encode('é🙂!').map((id) => stream.push(id))).toEqual(['', 'é', '', '', '', '🙂', '!']);
    expect(stream.flush()).toBe('');
  });

  it('gives invalid bytes once they are settled', async () => {
    const tokenizer = (await loadTokenizer(textFolder))!;
    const [first] = tokenizer.encode('🙂');
    const stream = tokenizer.decodeStream();
    expect([first!, 66].map((id) => stream.push(id))).toEqual(['', '\uFFFDa']);
    expect(stream.push(first!)).toBe('');
    expect(stream.flush()).toBe('\uFFFD');
    expect([stream.flush(), stream.push(66), stream.flush()]).toEqual(['', 'a', '']);
  });

  const cleaning = { ...config, clean_up_tokenization_spaces: true };
  it.each<[string, () => Tokenizer]>([
    ['byte-level tokens', () => new Tokenizer(definition, config)],
    ['byte-level tokens, cleaned up', () => new Tokenizer(definition, cleaning)],
    ['byte fallback', byteFallback],
    [
      'Metaspace',
      () =>
        new Tokenizer(
          { ...definition, decoder: { type: 'Metaspace', replacement: 'Ġ', prepend_scheme: 'always' } },
          config,
        ),
    ],
    [
      'words',
      () =>
        new Tokenizer(
          { ...definition, decoder: { type: 'WordPiece', prefix: '##', cleanup: false } },
          cleaning,
        ),
    ],
  ])('equals decode for random ids: %s', (_, make) => {
    const tokenizer = make();
    const random = randomNumbers(7);
    // Tokens of one kind in a row are where boundaries hurt: high bytes, spaces with punctuation, anything.
    const ids = Array.from({ length: tokenizer.vocabSize + 3 }, (__, id) => id);
    const high = ids.filter((id) => tokenizer.decode([id]).includes('\uFFFD'));
    const spaced = ids.filter((id) => /^[ .,?!'ntsmver]+$/.test(tokenizer.decode([id])));
    const pools = [ids, high, spaced, [...high.slice(0, 9), ...spaced, 0]].filter((pool) => pool.length > 0);
    for (let round = 0; round < 400; round++) {
      const pool = pools[round % pools.length]!;
      const sequence = Array.from({ length: random(60) }, () => pool[random(pool.length)]!);
      const options = { skipSpecialTokens: round % 3 === 0 };
      const stream = tokenizer.decodeStream(options);
      const pieces = sequence.map((id) => stream.push(id));
      expect([...pieces, stream.flush()].join('')).toBe(tokenizer.decode(sequence, options));
      for (const piece of pieces) expect(piece).not.toMatch(/\p{Surrogate}/u);
    }
  });

  it('drops a leading space as decode does', () => {
    const tokenizer = byteFallback();
    const ids = tokenizer.encode(' a 🙂日b');
    expect(tokenizer.decode(ids)).toBe(' a 🙂日b');
    const stream = tokenizer.decodeStream();
    expect(ids.map((id) => stream.push(id)).join('') + stream.flush()).toBe(' a 🙂日b');
  });

  it('costs the same per token however long the text is', () => {
    const tokenizer = new Tokenizer(definition, config);
    const decode = jest.fn((ids: number[]) => tokenizer.decode(ids));
    const stream = new DecodeStream({ isVisible: () => true, decode, cleanUp: undefined });
    const random = randomNumbers(3);
    for (let i = 0; i < 3000; i++) stream.push(random(512));
    expect(decode.mock.calls.length).toBeLessThan(3000 * 1.5);
    expect(Math.max(...decode.mock.calls.map(([ids]) => ids.length))).toBeLessThanOrEqual(12);
  });
});
