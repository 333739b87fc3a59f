/** Batches from files: what is in them, in what order, and what is refused. */
import {
  appendFileSync,
  closeSync,
  openSync,
  readFileSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { ByteTokenizer, Corpus, Trainer, Windows, writeTokens, type TrainingBatch } from '../../lib';
import { loadTokenizer } from '../../lib/io/tokenizer';
import { loadCheckpoint, saveCheckpoint } from '../../lib/training/checkpoints';
import { permutation } from '../../lib/training/permutation';
import { FIXTURES, temporaryFolder } from '../io/folder';

const folder = temporaryFolder();

/** A file of bytes that say where they are: position, modulo 251. */
function file(name: string, bytes: number, from = 0): string {
  const path = folder.at(name);
  writeFileSync(
    path,
    Uint8Array.from({ length: bytes }, (_, i) => (from + i) % 251),
  );
  return path;
}
const rowsOf = ({ ids, offsets }: TrainingBatch) =>
  [...offsets.subarray(1)].map((end, i) => [...ids.subarray(offsets[i], end)]);
async function take(windows: Windows, count: number): Promise<TrainingBatch[]> {
  const batches = [];
  for (let i = 0; i < count; i++) batches.push((await windows.next())!);
  return batches;
}

describe('a permutation', () => {
  it.each([1, 2, 3, 16, 17, 1000])('of %i numbers has each once, in an order of its seed', (size) => {
    const orders = [1, 2].map((seed) => {
      const order = permutation(size, seed);
      return Array.from({ length: size }, (_, i) => order(i));
    });
    for (const order of orders) expect([...order].sort((a, b) => a - b)).toEqual([...Array(size).keys()]);
    if (size >= 16) expect(orders[0]).not.toEqual(orders[1]);
  });

  it('needs no list', () => {
    const order = permutation(2 ** 52, 5);
    const some = Array.from({ length: 100 }, (_, i) => order(i));
    expect(new Set(some).size).toBe(100);
    expect(some.every((x) => Number.isSafeInteger(x) && x >= 0 && x < 2 ** 52)).toBe(true);
    expect(Math.max(...some)).toBeGreaterThan(2 ** 51);
  });
});

describe('a corpus', () => {
  it('is its files one after the other, across blocks', async () => {
    const corpus = await Corpus.open([file('a', 100_000), file('b', 3), file('c', 70_000, 7)]);
    expect(corpus.length).toBe(170_003);
    const { ids, starts } = await corpus.read(65_530, 100_010);
    expect(starts).toEqual([34_470, 34_473]);
    expect([...ids.subarray(0, 10)]).toEqual(Array.from({ length: 10 }, (_, i) => (65_530 + i) % 251));
    expect([...ids.subarray(34_468)]).toEqual([99_998 % 251, 99_999 % 251, 0, 1, 2, 7, 8, 9, 10, 11, 12, 13]);
    await expect(corpus.read(5, 170_004)).rejects.toThrow('read: range is 5 to 170004');
  });

  it('knows its files by all of their bytes, of large ones by some', async () => {
    const digest = async (path: string) => (await Corpus.open([path])).records[0]![2];
    const path = file('a', 200_001);
    const whole = await digest(path);
    expect(whole).toMatch(/^[0-9a-f]{16}$/);
    for (const at of [0, 65_536, 131_071, 200_000]) {
      const bytes = readFileSync(path);
      bytes[at]! ^= 1;
      writeFileSync(path, bytes);
      expect(await digest(path)).not.toBe(whole);
      file('a', 200_001);
    }
    expect(await digest(path)).toBe(whole);
    const large = folder.at('large');
    writeFileSync(large, '');
    truncateSync(large, 2 ** 34 + 3); // no disk holds its zeros
    const before = await digest(large);
    const handle = openSync(large, 'r+');
    writeSync(handle, 'x', 2 ** 34 + 2);
    closeSync(handle);
    expect(await digest(large)).not.toBe(before);
  });

  it('splits by files, by a share of them, and at the end of one', async () => {
    const paths = Array.from({ length: 10 }, (_, i) => file(`${i}`, 100 + i));
    const corpus = await Corpus.open(paths);
    const byName = corpus.split({ files: [paths[3]!] });
    expect(byName.validation.files).toEqual([paths[3]]);
    expect(byName.training.length).toBe(corpus.length - 103);
    const [once, again, other] = [1, 1, 2].map((seed) => corpus.split({ share: 0.28, seed }));
    expect(once!.validation.files).toEqual(again!.validation.files);
    expect(once!.validation.files).not.toEqual(other!.validation.files);
    expect([...once!.validation.files, ...once!.training.files].sort()).toEqual([...paths].sort());
    expect(once!.validation.files).toHaveLength(3);

    const one = (await Corpus.open([paths[9]!])).split({ share: 0.1 });
    expect([one.training.length, one.validation.length]).toEqual([98, 11]);
    expect((await one.validation.read(0, 2)).ids).toEqual(Int32Array.of(98, 99));
    expect(() => corpus.split({ files: paths })).toThrow('split: files has 10 of 10 files');
    expect(() => corpus.split({ files: ['x'] })).toThrow('split: files has x, which is not in the corpus');
    expect(() => corpus.split({ share: 1 })).toThrow('split: share is 1, expected more than 0');
  });

  it('refuses what it cannot read', async () => {
    const [good, empty] = [file('good', 9), file('empty', 0)];
    const open = (files: unknown, options = {}) => Corpus.open(files as string[], options);
    await expect(open([good, folder.at('none')])).rejects.toThrow('none: file does not exist');
    await expect(open([empty])).rejects.toThrow('empty: file is empty, expected tokens');
    await expect(open([folder.path])).rejects.toThrow('is not a regular file');
    await expect(open([good], { tokens: 'u16' })).rejects.toThrow(
      'good: file has 9 bytes, expected tokens of 2',
    );
    await expect(open([good], { tokens: 'f32' })).rejects.toThrow('Corpus.open: tokens is f32');
    await expect(open([good], { separator: -1 })).rejects.toThrow('Corpus.open: separator is -1');
    await expect(open([good], { separators: 1 })).rejects.toThrow('there is no option separators');
    await expect(open([good, good])).rejects.toThrow('good twice');
    await expect(open([])).rejects.toThrow('Corpus.open: files is empty');
    await expect(open(good)).rejects.toThrow('Corpus.open: files is string, expected a list of paths');
    const corpus = await open([good]);
    appendFileSync(good, 'x');
    await expect(corpus.read(0, 2)).rejects.toThrow(
      'file has 10 bytes, expected 9; it was changed meanwhile',
    );
  });
});

describe('windows', () => {
  it('without shuffling predict every token once', async () => {
    const corpus = await Corpus.open([file('a', 24)]);
    const windows = new Windows(corpus, { length: 4, rows: 2, shuffle: false, epochs: 1 });
    expect(windows.batchesPerEpoch).toBe(3);
    const all = [];
    for await (const batch of windows) all.push(batch);
    expect(all.map(rowsOf)).toEqual([
      [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
      ],
      [
        [8, 9, 10, 11],
        [12, 13, 14, 15],
      ],
      [
        [16, 17, 18, 19],
        [20, 21, 22],
      ],
    ]);
    expect(all.flatMap(({ labels }) => [...labels])).toEqual(Array.from({ length: 23 }, (_, i) => i + 1));
    // Iterating is always from the beginning, and leaves where `next` is alone.
    expect(await take(windows, 3)).toEqual(all);
    expect(await windows.next()).toBeUndefined();
  });

  it('shuffled have each place once an epoch, in an order and at edges of its own', async () => {
    const corpus = await Corpus.open([file('a', 161)]);
    const windows = new Windows(corpus, { length: 8, rows: 1, seed: 4 });
    const epochs = [];
    for (let i = 0; i < 3; i++) {
      const begins = (await take(windows, windows.batchesPerEpoch)).map(({ ids }) => ids[0]!);
      const sorted = [...begins].sort((a, b) => a - b);
      expect(begins).not.toEqual(sorted);
      expect(sorted).toEqual(begins.map((_, k) => sorted[0]! + 8 * k));
      epochs.push(begins);
    }
    expect(new Set(epochs.map((begins) => Math.min(...begins))).size).toBeGreaterThan(1);
    expect(await take(new Windows(corpus, { length: 8, rows: 1, seed: 4 }), 1)).toEqual(
      await take(new Windows(corpus, { length: 8, rows: 1, seed: 4 }), 1),
    );
  });

  it('give each batch once to those who ask at the same time', async () => {
    const corpus = await Corpus.open([file('a', 161)]);
    const make = () => new Windows(corpus, { length: 8, rows: 1, seed: 4 });
    const [one, other] = [make(), make()];
    const together = await Promise.all([one.next(), one.next(), one.next()]);
    expect(together).toEqual(await take(other, 3));
    expect(one.state()).toEqual(other.state());
  });

  it('go on from a state that was saved with a training', async () => {
    const corpus = await Corpus.open([file('a', 500), file('b', 77)]);
    const make = (seed = 1) => new Windows(corpus, { length: 10, rows: 4, seed, documents: 'separate' });
    const config = { model_type: 'mamba', vocab_size: 256, hidden_size: 8, num_hidden_layers: 1 };
    const [windows, trainer] = [make(), await Trainer.fromConfig(config, { steps: 2, learningRate: 1e-3 })];
    await take(windows, 20); // into the second epoch
    await saveCheckpoint(folder.path, trainer, { data: windows.state() });
    const rest = await take(windows, 30);
    const { data } = (await loadCheckpoint(folder.path, trainer))!;
    trainer.dispose();
    const again = make();
    again.restore(data);
    expect(await take(again, 30)).toEqual(rest);
    expect(() => make(2).restore(data)).toThrow(
      'restore: state is of other parts of the files, or of other options',
    );
    const others = async (...files: string[]) => {
      const other = await Corpus.open(files);
      return () => new Windows(other, { length: 10, rows: 4, seed: 1, documents: 'separate' }).restore(data);
    };
    const [a, b] = [folder.at('a'), folder.at('b')];
    expect(await others(a, b, file('c', 9))).toThrow('of other data; file c, of 9 tokens, was not there');
    expect(await others(a)).toThrow('restore: state is of other data; file b, of 77 tokens, is not there');
    file('b', 77, 1); // of the same size
    expect(await others(a, b)).toThrow(
      'restore: state is of other data; file b has other content than before',
    );
    file('a', 500, 1);
    expect(await others(a, b)).toThrow('restore: state is of other data; files a, b have other content than');
    file('a', 500);
    appendFileSync(b, 'more');
    expect(await others(a, b)).toThrow('restore: state is of other data; file b has 81 tokens, and had 77');
    expect(() => make().restore({ epoch: 0 })).toThrow('restore: state holds no position');
  });

  it('of separate documents start anew and predict nothing across the edge', async () => {
    const corpus = await Corpus.open([file('a', 6), file('b', 2, 100), file('c', 10, 200)]);
    const one = new Windows(corpus, { length: 17, rows: 1, shuffle: false, documents: 'separate' });
    const { ids, labels, offsets } = (await one.next())!;
    expect([...offsets]).toEqual([0, 6, 8, 17]);
    expect([...ids]).toEqual([0, 1, 2, 3, 4, 5, 100, 101, 200, 201, 202, 203, 204, 205, 206, 207, 208]);
    expect([...labels]).toEqual([
      ...[1, 2, 3, 4, 5, -100, 101, -100, 201, 202, 203, 204, 205, 206, 207, 208, 209],
    ]);
    // As many sequences as a multiple of the rows: last tokens stand alone, and predict nothing.
    const two = new Windows(corpus, { length: 8, rows: 2, shuffle: false, documents: 'separate' });
    const batch = (await two.next())!;
    expect([...batch.offsets]).toEqual([0, 6, 7, 8, 16]);
    const odd = new Windows(await Corpus.open([file('d', 5), file('e', 12)]), {
      ...{ length: 8, rows: 2, shuffle: false, documents: 'separate' },
    });
    const padded = (await odd.next())!;
    expect([...padded.offsets]).toEqual([0, 5, 7, 8, 16]);
    expect(padded.labels[7]).toBe(-100);
    expect(padded.labels[6]).toBe(padded.ids[7]);
    const joined = new Windows(corpus, { length: 17, rows: 1, shuffle: false });
    expect([...(await joined.next())!.offsets]).toEqual([0, 17]);
  });

  it('of tokens end documents at the separator', async () => {
    const [text, more] = [folder.at('a.txt'), folder.at('b.txt')];
    writeFileSync(text, 'Once upon a time');
    writeFileSync(more, 'there was');
    const codec = (await loadTokenizer(join(FIXTURES, 'mamba-text')))!;
    const written = await writeTokens(folder.at('tokens'), codec, [text, more]);
    const separator = codec.eosId!;
    expect(written.options).toEqual({ tokens: 'u16', separator });
    const corpus = await Corpus.open([folder.at('tokens')], written.options);
    const { ids, starts } = await corpus.read(0, corpus.length);
    const plain = [text, more].map((_, i) =>
      codec.encode(['Once upon a time', 'there was'][i]!, { addSpecialTokens: false }),
    );
    expect([...ids]).toEqual([...plain[0]!, separator, ...plain[1]!, separator]);
    expect(starts).toEqual([0, plain[0]!.length + 1]);
    expect(written.tokens).toBe(ids.length);

    const bytes = await writeTokens(folder.at('bytes'), new ByteTokenizer(), [more]);
    expect(bytes).toEqual({ tokens: 9, options: { tokens: 'u16' } });
    const none = writeTokens(folder.at('none'), codec, [text, folder.at('missing')]);
    await expect(none).rejects.toThrow('missing: file does not exist');
    await expect(Corpus.open([folder.at('none')])).rejects.toThrow('file does not exist');
  });

  it('reads i32 ids, and refuses those beyond the vocabulary', async () => {
    writeFileSync(folder.at('ids'), new Uint8Array(Int32Array.of(1, 70_000, 3, 4).buffer));
    const corpus = await Corpus.open([folder.at('ids')], { tokens: 'i32' });
    const of = (vocabSize: number) => new Windows(corpus, { length: 3, rows: 1, vocabSize });
    expect((await of(70_001).next())!.labels).toEqual(Int32Array.of(70_000, 3, 4));
    await expect(of(70_000).next()).rejects.toThrow('Windows: corpus has token 70000, expected ids from 0');
  });

  it('refuses batches that no memory is for, at once', async () => {
    const corpus = await Corpus.open([file('a', 24)]);
    const make = (length: number, rows: number) => () => new Windows(corpus, { length, rows });
    expect(make(1, 1e9)).toThrow('Windows: rows is 1000000000, expected at most 1048576');
    expect(make(1e5, 1e4)).toThrow(
      'Windows: rows is 10000, expected at most 67108864 tokens in a batch; rows of 100000 can be 671',
    );
    expect(make(1, 2 ** 20)().batchesPerEpoch).toBe(1);
  });

  it('refuses bad options, and data shorter than a row', async () => {
    const corpus = await Corpus.open([file('a', 8)]);
    const make = (options: object) => () => new Windows(corpus, { length: 4, rows: 1, ...options });
    expect(make({ length: 8 })).toThrow(
      'Windows: corpus has 8 tokens, expected at least 9, a row of length 8',
    );
    expect(make({ rows: 0 })).toThrow('Windows: rows is 0, expected a whole number, 1 or more');
    expect(make({ length: '4' })).toThrow('Windows: length is string, expected a whole number');
    expect(make({ documents: 'apart' })).toThrow('Windows: documents is apart, expected joined or separate');
    expect(make({ epoch: 1 })).toThrow('Windows: there is no option epoch');
    expect(make({ shuffle: 1 })).toThrow('Windows: shuffle is number, expected true or false');
    expect(await make({ length: 7 })().next()).toBeDefined();
  });
});
