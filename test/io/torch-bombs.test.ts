import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { deflateRawSync } from 'node:zlib';
import { AutoModelForCausalLM } from '../../lib';
import { FormatError } from '../../lib/errors';
import { openCheckpoint } from '../../lib/io/checkpoint';
import { openTorch } from '../../lib/io/torch';
import { temporaryFolder } from './folder';
import {
  dict,
  entriesOf,
  floats,
  global,
  none,
  op,
  pickle,
  reduce,
  storage,
  tensor,
  text,
  torchFile,
  tuple,
  zip,
  type Entry,
} from './torch-files';

const folder = temporaryFolder();
const of24 = { 0: floats(...Array.from({ length: 24 }, (_, i) => i)) };
const good = tensor(storage('0', 24), [24], [1]);
const root = dict([text('t'), good]);
const entries = entriesOf({ root, storages: of24 });

/** Refused as a matter of format, in bounded time, and memory that does not grow with what the file claims. */
async function refused(bytes: Uint8Array, message: RegExp): Promise<void> {
  writeFileSync(folder.at('pytorch_model.bin'), bytes);
  const [begin, before] = [performance.now(), process.memoryUsage()];
  const failure = openTorch(folder.at('pytorch_model.bin'));
  await expect(failure).rejects.toThrow(message);
  await expect(failure).rejects.toBeInstanceOf(FormatError);
  const after = process.memoryUsage();
  expect(performance.now() - begin).toBeLessThan(5000);
  expect(after.rss - before.rss).toBeLessThan(400e6);
}
const changed = (i: number, change: Partial<Entry>) =>
  entries.map((entry, j) => (i === j ? { ...entry, ...change } : entry));

describe('a file that is small and claims to be large', () => {
  const bomb = deflateRawSync(Buffer.alloc(64 << 20)); // 64 KB that unpack to 64 MiB

  it.each<[string, RegExp, () => Uint8Array]>([
    [
      'a pickle that unpacks to a thousand times its size is not unpacked',
      /data.pkl is compressed, expected it stored/,
      () => zip(changed(0, { data: bomb, method: 8 })),
    ],
    [
      'a storage that unpacks to a thousand times its size is not unpacked',
      /storage "0" of tensor t has \d+ bytes, expected 67108864|entry archive\/data\/0 is compressed/,
      () =>
        zip([
          {
            name: 'archive/data.pkl',
            data: pickle(dict([text('t'), tensor(storage('0', 16 << 20), [16 << 20], [1])])),
          },
          { name: 'archive/data/0', data: bomb, method: 8 },
        ]),
    ],
    [
      'a thousand entries that are one and the same place',
      /is called "archive\/data\/0" where its bytes are/,
      () => {
        const names = Array.from({ length: 1000 }, (_, i) => String(i));
        const tensors = names.map((name) => [text(name), tensor(storage(name, 24), [24], [1])] as const);
        const data = of24[0];
        const at = 30 + 'archive/data.pkl'.length + pickle(dict(...tensors)).length;
        return zip([
          { name: 'archive/data.pkl', data: pickle(dict(...tensors)) },
          ...names.map((name) => ({
            name: `archive/data/${name}`,
            data: name === '0' ? data : op(data),
            at,
          })),
        ]);
      },
    ],
    [
      'a pickle of 2^60 bytes',
      /overflows file bounds|expected at most|unexpected end|not a ZIP/,
      () => zip(changed(0, { size: 2 ** 60 }), { zip64: true }),
    ],
    [
      'a storage at 2^62',
      /not a ZIP file|unexpected end|damaged|beyond/,
      () => zip(changed(1, { at: 2 ** 62 }), { zip64: true }),
    ],
    [
      'tensors of more elements together than any file',
      /reaches beyond its storage/,
      () =>
        torchFile({
          root: dict([text('t'), tensor(storage('0', 24), [2 ** 26, 2 ** 26], [2 ** 26, 1])]),
          storages: of24,
        }),
    ],
    [
      'sizes whose product is beyond 2^53',
      /whose elements share places|reaches beyond its storage/,
      () =>
        torchFile({
          root: dict([
            text('t'),
            tensor(
              storage('0', 24),
              Array<number>(60).fill(2 ** 40),
              Array.from({ length: 60 }, (_, i) => 2 ** (i % 50)),
            ),
          ]),
          storages: of24,
        }),
    ],
  ])('%s', async (_, message, make) => refused(make(), message));

  it('a hundred thousand tensors that overlap in one storage take no memory of their own', async () => {
    const names = Array.from({ length: 20_000 }, (_, i) => text(`t${i}`));
    const views = names.map((name, i) => [name, tensor(op('h', 1), [12], [1], i % 12)] as const);
    const whole = op(storage('0', 24), 'q', 1);
    const first = [text('t'), tensor(whole, [24], [1])] as const;
    writeFileSync(folder.at('pytorch_model.bin'), torchFile({ root: dict(first, ...views), storages: of24 }));
    const before = process.memoryUsage().rss;
    const file = await openTorch(folder.at('pytorch_model.bin'));
    expect(file.tensors.size).toBe(20_001);
    expect(process.memoryUsage().rss - before).toBeLessThan(200e6);
    await file.close();
  });
});

describe('a pickle that goes deep', () => {
  const deep = (open: Uint8Array, close: Uint8Array, n: number) =>
    op(Buffer.alloc(open.length * n, open), none, Buffer.alloc(close.length * n, close));

  it.each<[string, RegExp, Uint8Array]>([
    ['lists', /t is a list of 1, expected a tensor/, deep(op(']'), op('a'), 300_000)],
    ['tuples', /t is a tuple of 1, expected a tensor/, deep(op('('), op('t'), 300_000)],
    ['dicts', /t is a dict of 1, expected a tensor/, deep(op('}', text('k')), op('s'), 100_000)],
    [
      'arguments of calls',
      /wants to call|makes an ordered dict/,
      deep(op(global('collections', 'OrderedDict'), '('), op('tR'), 20_000),
    ],
    [
      'calls of what calls gave',
      /wants to call an ordered dict of 0/,
      op(reduce(global('collections', 'OrderedDict'), op(')')), ')R'),
    ],
    ['persistent ids of persistent ids', /refers to a storage|refers to a tuple/, op(storage('0', 24), 'QQ')],
  ])('into %s is refused without recursion', (_, message, value) =>
    refused(torchFile({ root: dict([text('t'), value]), storages: of24 }), message),
  );
});

describe('truncated storages', () => {
  it('are refused at every length of the file that holds them', async () => {
    const whole = torchFile({ root, storages: of24 });
    const begin = whole.indexOf(Buffer.from(of24[0]));
    for (let end = begin; end < begin + of24[0].length; end += 5)
      await refused(whole.subarray(0, end), /is not a ZIP file that can be read/);
  });

  it('are refused where the directory survives them', async () => {
    for (const length of [0, 1, 4, 95]) {
      const data = of24[0].subarray(0, length);
      // The directory says what was there once.
      await refused(
        zip(changed(1, { data, size: 96 })),
        /does not end at byte|has \d+ bytes, expected 96|not a ZIP file/,
      );
    }
  });
});

describe('paths', () => {
  const index = (shard: string) =>
    writeFileSync(
      folder.at('m', 'pytorch_model.bin.index.json'),
      JSON.stringify({ weight_map: { t: shard } }),
    );

  it.each([
    '../pytorch_model.bin',
    '/etc/passwd',
    'a/../../pytorch_model.bin',
    'C:\\x.bin',
    '..\\x.bin',
    '\\\\host\\x.bin',
    'x\u0000.bin',
  ])('of an index do not leave its folder: %j', async (shard) => {
    mkdirSync(folder.at('m'));
    writeFileSync(folder.at('pytorch_model.bin'), torchFile({ root, storages: of24 }));
    index(shard);
    await expect(openCheckpoint(folder.at('m'))).rejects.toThrow(/expected a file inside of the folder/);
  });

  it('of entries name nothing outside of the archive, whatever lies there', async () => {
    mkdirSync(folder.at('data'));
    writeFileSync(folder.at('data', '5'), of24[0]);
    symlinkSync(folder.at('data', '5'), folder.at('link'));
    for (const key of ['5', '../data/5', folder.at('data', '5'), folder.at('link')])
      await refused(
        torchFile({ root: dict([text('t'), tensor(storage(key, 24), [24], [1])]), storages: of24 }),
        /storage ".*" of tensor t is missing/,
      );
  });
});

it('fromPretrained refuses a folder whose weights would run something, and names it', async () => {
  const evil = reduce(global('os', 'system'), tuple(text('true')));
  writeFileSync(folder.at('pytorch_model.bin'), torchFile({ root: dict([text('t'), evil]), storages: of24 }));
  for (const config of [
    { d_model: 16, n_layer: 1, vocab_size: 8 },
    { model_type: 'falcon_mamba', hidden_size: 16, num_hidden_layers: 1, vocab_size: 8 },
    { model_type: 'mambabyte', hidden_size: 16, num_hidden_layers: 1 },
  ]) {
    writeFileSync(folder.at('config.json'), JSON.stringify(config));
    await expect(AutoModelForCausalLM.fromPretrained(folder.path)).rejects.toThrow(
      'wants to call os.system; nothing was run',
    );
  }
});
