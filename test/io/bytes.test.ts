import { ByteTokenizer } from '../../lib';

const codec = new ByteTokenizer();
const all = Uint8Array.from({ length: 256 }, (_, i) => i);
const streamed = (bytes: Iterable<number>) => {
  const stream = codec.decodeStream();
  const pieces = Array.from(bytes, (byte) => stream.push(byte));
  return { pieces, rest: stream.flush(), text: '' };
};

it('gives every byte back', () => {
  expect(codec.bytes(all)).toEqual(all);
  for (const text of ['', 'plain', 'naïve 😀', '\u0000\u007f', '\ufeffmark', 'e\u0301', '👩‍👩‍👧', '日本\r\n']) {
    expect(codec.encode(text)).toEqual([...Buffer.from(text)]);
    expect(codec.decode(codec.encode(text))).toBe(text);
  }
});

it('passes over ids that are no bytes', () => {
  expect(codec.decode([104, 256, 105, 50_000])).toBe('hi');
  expect([...codec.bytes([256, 7])]).toEqual([7]);
});

it('streams whole characters, the same as all at once', () => {
  const text = 'aé€😀e\u0301👩‍👧';
  const { pieces, rest } = streamed(codec.encode(text));
  expect(pieces.join('') + rest).toBe(text);
  expect(pieces.filter((piece) => piece !== '')).toEqual([...text]);
  expect(rest).toBe('');
});

it.each<[string, readonly number[], string]>([
  ['a byte that never occurs', [0x61, 0xff, 0x62], 'a\ufffdb'],
  ['a continuation alone', [0x80, 0x62], '\ufffdb'],
  ['a character cut off by another', [0xf0, 0x9f, 0x62], '\ufffdb'],
  ['a character cut off by the end', [0x61, 0xf0, 0x9f, 0x98], 'a\ufffd'],
  ['half of a surrogate pair', [0xed, 0xa0, 0x80], '\ufffd\ufffd\ufffd'],
  ['an overlong slash', [0xc0, 0xaf], '\ufffd\ufffd'],
  ['beyond Unicode', [0xf5, 0x80], '\ufffd\ufffd'],
])('replaces %s in text alone', (_, bytes, text) => {
  expect(codec.decode(bytes)).toBe(text);
  const { pieces, rest } = streamed(bytes);
  expect(pieces.join('') + rest).toBe(text);
  expect([...codec.bytes(bytes)]).toEqual(bytes);
});

it('streams any bytes as it decodes them at once', () => {
  let seed = 1;
  const random = () => (seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) >>> 24;
  for (let round = 0; round < 200; round++) {
    // Bytes of long characters are frequent, so that all kinds of breaks occur.
    const bytes = Array.from({ length: 40 }, () => (random() < 128 ? 0x80 | random() : random()));
    const { pieces, rest } = streamed(bytes);
    expect(pieces.join('') + rest).toBe(new TextDecoder().decode(Uint8Array.from([0x20, ...bytes])).slice(1));
  }
});

it('refuses what is no text and no id', () => {
  expect(() => codec.encode('a\ud800')).toThrow('encode: text has a lone surrogate U+D800 at 1');
  expect(() => codec.encode(7 as never)).toThrow('encode: text is 7, expected a string');
  expect(() => codec.decode([-1])).toThrow('decode: id is -1, expected a token id');
  expect(() => codec.decode([1.5])).toThrow('decode: id is 1.5');
  expect(() => codec.bytes(3 as never)).toThrow('decode: ids is number, expected token ids');
});
