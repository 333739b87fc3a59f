import { execFileSync } from 'node:child_process';
import { cpSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { DisposedError, FormatError } from '../../lib/errors';
import { openCheckpoint } from '../../lib/io/checkpoint';
import { openTorch } from '../../lib/io/torch';
import { FIXTURES, temporaryFolder } from './folder';
import {
  dict,
  entriesOf,
  floats,
  global,
  int,
  ints,
  list,
  no,
  none,
  op,
  ordered,
  reduce,
  storage,
  tensor,
  text,
  torchFile,
  tuple,
  zip,
} from './torch-files';

const folder = temporaryFolder();

function open(bytes: Uint8Array) {
  writeFileSync(folder.at('pytorch_model.bin'), bytes);
  return openTorch(folder.at('pytorch_model.bin'));
}

/** All tensors as dtype, shape and f32 numbers. */
async function contents(bytes: Uint8Array) {
  const file = await open(bytes);
  const found: Record<string, unknown> = {};
  for (const info of file.tensors.values()) {
    const into = new Uint8Array(info.end - info.begin);
    await file.read(info, into);
    found[info.name] = [info.dtype, info.shape, [...new Float32Array(into.buffer)]];
  }
  await file.close();
  return found;
}

const counting = floats(...Array.from({ length: 24 }, (_, i) => i));
const of24 = { storages: { 0: counting } };

describe('openTorch', () => {
  it('opens what torch.save wrote', async () => {
    const file = await openTorch(join(FIXTURES, 'mamba-ssm-bin', 'pytorch_model.bin'));
    expect(file.tensors.size).toBe(33);
    expect(file.tensors.get('backbone.layers.2.mixer.conv1d.weight')).toMatchObject({
      dtype: 'F32',
      shape: [128, 1, 4],
    });
    // Tied weights are one storage.
    const [embedding, head] = ['backbone.embedding.weight', 'lm_head.weight'].map((name) =>
      file.tensors.get(name)!,
    );
    expect([head!.begin, head!.end]).toEqual([embedding!.begin, embedding!.end]);
    await file.close();
    await expect(file.read(embedding!, new Uint8Array(4))).rejects.toThrow(DisposedError);
  });

  it('reads tensors of one storage, of any strides', async () => {
    const root = ordered(
      [text('whole'), tensor(storage('0', 24), [2, 3, 4], [12, 4, 1])],
      [text('rows'), tensor(storage('0', 24), [2, 4], [4, 1], 8)],
      [text('transposed'), tensor(storage('0', 24), [4, 3], [1, 4])],
      [text('permuted'), tensor(storage('0', 24), [4, 2, 3], [1, 12, 4])],
      [text('strided'), tensor(storage('0', 24), [3], [5], 2)],
      [text('scalar'), tensor(storage('0', 24), [], [], 7)],
      [text('empty'), tensor(storage('0', 24), [0, 3], [3, 1])],
      [text('long'), tensor(storage('0', 24), [1, 4, 1], [99, 1, 77])],
    );
    expect(await contents(torchFile({ root, ...of24 }))).toEqual({
      whole: ['F32', [2, 3, 4], [...Array(24).keys()]],
      rows: ['F32', [2, 4], [8, 9, 10, 11, 12, 13, 14, 15]],
      transposed: ['F32', [4, 3], [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]],
      permuted: [
        'F32',
        [4, 2, 3],
        [0, 4, 8, 12, 16, 20, 1, 5, 9, 13, 17, 21, 2, 6, 10, 14, 18, 22, 3, 7, 11, 15, 19, 23],
      ],
      strided: ['F32', [3], [2, 7, 12]],
      scalar: ['F32', [], [7]],
      empty: ['F32', [0, 3], []],
      long: ['F32', [1, 4, 1], [0, 1, 2, 3]],
    });
  });

  it('reads any part of a tensor that is not contiguous', async () => {
    const [rows, columns] = [700, 900]; // more than is read at once
    const numbers = Uint16Array.from({ length: rows * columns }, (_, i) => (i * 40503) >>> 3);
    const root = dict([
      text('t'),
      tensor(storage('0', rows * columns, 'HalfStorage'), [columns, rows], [1, columns]),
    ]);
    const file = await open(torchFile({ root, storages: { 0: new Uint8Array(numbers.buffer) } }));
    const info = file.tensors.get('t')!;
    const wanted = Uint16Array.from({ length: rows * columns }, (_, i) => {
      return numbers[(i % rows) * columns + Math.floor(i / rows)]!;
    });
    const bytes = new Uint8Array(wanted.buffer);
    for (const [at, length] of [
      [0, bytes.length],
      [0, 1],
      [1, 2],
      [1399, 3],
      [1401, 70_001],
      [bytes.length - 5, 5],
      [9, 0],
    ] as const) {
      const into = new Uint8Array(length);
      await file.read(info, into, at);
      expect(Buffer.compare(into, bytes.subarray(at, at + length))).toBe(0);
    }
    await expect(file.read(info, new Uint8Array(2), bytes.length - 1)).rejects.toThrow(/outside of t/);
    await file.close();
  });

  it.each([
    ['FloatStorage', 'F32', 4],
    ['DoubleStorage', 'F64', 8],
    ['HalfStorage', 'F16', 2],
    ['BFloat16Storage', 'BF16', 2],
    ['LongStorage', 'I64', 8],
    ['IntStorage', 'I32', 4],
    ['ShortStorage', 'I16', 2],
    ['CharStorage', 'I8', 1],
    ['ByteStorage', 'U8', 1],
    ['BoolStorage', 'BOOL', 1],
    ['ComplexFloatStorage', 'C64', 8],
    ['UntypedStorage', 'U8', 1],
  ])('knows torch.%s', async (type, dtype, bytes) => {
    const root = dict([text('t'), tensor(storage('0', 6, type), [3, 2], [1, 3])]);
    const file = await open(torchFile({ root, storages: { 0: new Uint8Array(6 * bytes).map((_, i) => i) } }));
    const info = file.tensors.get('t')!;
    expect(info.dtype).toBe(dtype);
    const into = new Uint8Array(6 * bytes);
    await file.read(info, into);
    const wanted = [0, 3, 1, 4, 2, 5].flatMap((i) => Array.from({ length: bytes }, (_, j) => i * bytes + j));
    expect([...into]).toEqual(wanted);
    await file.close();
  });

  const one = tensor(storage('0', 24), [24], [1]);
  const oneRead = { t: ['F32', [24], [...Array(24).keys()]] };
  const metadata = dict([text('_metadata'), ordered([text(''), dict([text('version'), int(1)])])]);
  const parameter = reduce(global('torch._utils', '_rebuild_parameter'), tuple(one, op(0x88), ordered()));
  const size = reduce(global('torch', 'Size'), tuple(ints(24)));
  const sized = reduce(
    global('torch._utils', '_rebuild_tensor_v2'),
    tuple(storage('0', 24), int(0), size, ints(1), no, ordered(), none),
  );
  it.each<[string, Uint8Array]>([
    ['a state dict', ordered([text('t'), one])],
    ['a state dict with versions of modules', op(ordered([text('t'), one]), metadata, 'b')],
    ['a plain dict', dict([text('t'), one])],
    ['a dict in a dict', dict([text('model'), dict([text('t'), one])], [text('step'), int(-5)])],
    [
      'a training state',
      dict([text('epoch'), op('G', Buffer.alloc(8))], [text('state_dict'), ordered([text('t'), one])]),
    ],
    ['a parameter', dict([text('t'), parameter])],
    ['a torch.Size', dict([text('t'), sized])],
    [
      'an ordered dict of pairs',
      reduce(global('collections', 'OrderedDict'), tuple(list(list(text('t'), one)))),
    ],
    [
      'values that are stored and recalled',
      dict(
        [op(text('model'), 'q', 0), dict([text('t'), op(one, 'r', 1, 0, 0, 0)])],
        [text('again'), list(op('h', 0), op('j', 1, 0, 0, 0))],
      ),
    ],
    ['Python 2 text', dict([op('U', 1, 't'), one])],
    [
      'other values',
      dict([text('model'), dict([text('t'), one])], [text('a'), list(none, op(0x88), tuple())]),
    ],
  ])('reads %s', async (_, root) => {
    expect(await contents(torchFile({ root, ...of24 }))).toEqual(oneRead);
  });

  it('reads protocol 4', async () => {
    const short = (s: string) => op(0x8c, s.length, s, 0x94);
    const stackGlobal = (module: string, name: string) => op(short(module), short(name), 0x93, 0x94);
    const place = op(
      '(',
      short('storage'),
      stackGlobal('torch', 'FloatStorage'),
      short('0'),
      short('cpu'),
      int(24),
      't',
      'Q',
    );
    const hooks = op(stackGlobal('collections', 'OrderedDict'), ')', 'R');
    const args = op('(', place, int(0), int(24), 0x85, int(1), 0x85, no, hooks, 't');
    const value = op(
      '}',
      0x94,
      short('t'),
      stackGlobal('torch._utils', '_rebuild_tensor_v2'),
      args,
      'R',
      's',
    );
    const root = op(0x95, Buffer.alloc(8), value);
    expect(await contents(torchFile({ root, ...of24, protocol: 4 }))).toEqual(oneRead);
  });

  const file = { root: dict([text('t'), one]), ...of24 };
  it.each<[string, Uint8Array]>([
    ['data descriptors', torchFile(file, { descriptors: true })],
    ['64-bit sizes', torchFile(file, { zip64: true })],
    ['64-bit sizes in descriptors', torchFile(file, { zip64: true, descriptors: true })],
    ['a byte order', torchFile({ ...file, byteorder: 'little' })],
    ['another prefix', torchFile({ ...file, prefix: 'pytorch_model' })],
  ])('reads an archive with %s', async (_, bytes) => {
    expect(await contents(bytes)).toEqual(oneRead);
  });
});

describe('openCheckpoint', () => {
  const split = (name: string, key: string) =>
    torchFile({
      root: dict([text(name), tensor(storage(key, 24), [24], [1])]),
      storages: { [key]: counting },
    });

  it('opens shards', async () => {
    writeFileSync(folder.at('pytorch_model-00001-of-00002.bin'), split('a', '0'));
    writeFileSync(folder.at('pytorch_model-00002-of-00002.bin'), split('b', '7'));
    const map = { a: 'pytorch_model-00001-of-00002.bin', b: 'pytorch_model-00002-of-00002.bin' };
    writeFileSync(folder.at('pytorch_model.bin.index.json'), JSON.stringify({ weight_map: map }));
    const checkpoint = await openCheckpoint(folder.path);
    expect([checkpoint.names(), checkpoint.bytes]).toEqual([['a', 'b'], 192]);
    const into = new Uint8Array(8);
    await checkpoint.read('b', into, 88);
    expect([...new Float32Array(into.buffer)]).toEqual([22, 23]);
    await checkpoint.close();
  });

  it('names the tensor that a shard lacks', async () => {
    writeFileSync(folder.at('x.bin'), split('a', '0'));
    writeFileSync(folder.at('pytorch_model.bin.index.json'), JSON.stringify({ weight_map: { b: 'x.bin' } }));
    await expect(openCheckpoint(folder.path)).rejects.toThrow(
      /x.bin: tensor b is missing, though pytorch_model.bin.index.json places it here/,
    );
  });

  it('prefers safetensors', async () => {
    cpSync(join(FIXTURES, 'mamba-tiny'), folder.path, { recursive: true });
    writeFileSync(folder.at('pytorch_model.bin'), 'x');
    const checkpoint = await openCheckpoint(folder.path);
    expect(checkpoint.has('backbone.embeddings.weight')).toBe(true);
    await checkpoint.close();
  });

  it('gives new names, each to one tensor', async () => {
    writeFileSync(folder.at('pytorch_model.bin'), split('old', '0'));
    const checkpoint = await openCheckpoint(folder.path, () => 'new');
    expect(checkpoint.names()).toEqual(['new']);
    await checkpoint.read('new', new Uint8Array(96));
    await checkpoint.close();
    const both = dict(
      ...['old', 'new'].map((name) => [text(name), tensor(storage('0', 24), [24], [1])] as const),
    );
    writeFileSync(folder.at('pytorch_model.bin'), torchFile({ root: both, ...of24 }));
    await expect(openCheckpoint(folder.path, () => 'new')).rejects.toThrow(/under its old and its new name/);
  });
});

describe('a file that is no model of torch 1.6 or later', () => {
  const legacy = op(0x80, 2, Buffer.from('8a0a6cfc9c46f9206aa85019', 'hex'), '.');
  const root = dict([text('t'), tensor(storage('0', 24), [24], [1])]);
  const entries = entriesOf({ root, ...of24 });
  const tar = Buffer.alloc(512);
  tar.write('ustar', 257);
  it.each<[string, RegExp, Uint8Array]>([
    [
      'the format before 1.6',
      /format of torch before 1.6, which is no ZIP file; load and save it once in Python/,
      legacy,
    ],
    [
      'the format before 1.6, in protocol 4',
      /format of torch before 1.6/,
      op(0x80, 4, 0x95, Buffer.alloc(8), legacy.subarray(2)),
    ],
    ['the TAR format', /TAR format of torch before 0.1.10; load and save it once/, tar],
    [
      'a bare pickle',
      /is a bare pickle, expected what torch.save writes; nothing of it was run/,
      op(0x80, 4, 'N.'),
    ],
    [
      'a pointer of Git LFS',
      /pointer of Git LFS, not the file itself; run git lfs pull/,
      op('version https://git-lfs.github.com/spec/v1\n'),
    ],
    ['empty', /is not a file that torch.save wrote/, op()],
    ['text', /is not a file that torch.save wrote/, op('<html>')],
    ['a ZIP file of something else', /ZIP file without data.pkl/, zip([{ name: 'a/b.txt', data: op('x') }])],
    ['a ZIP file of nothing but a front', /is not a ZIP file that can be read/, op('PK\x03\x04')],
    [
      'TorchScript',
      /is a TorchScript program, which holds code; save its tensors alone/,
      zip([...entries, { name: 'archive/constants.pkl', data: op('x') }]),
    ],
    [
      'TorchScript with code',
      /is a TorchScript program/,
      zip([...entries, { name: 'archive/code/__torch__.py', data: op('x') }]),
    ],
    [
      'of a big-endian machine',
      /byteorder is "big", expected "little"/,
      torchFile({ root, ...of24, byteorder: 'big' }),
    ],
    ['two models', /holds data.pkl 2 times/, zip([...entries, { ...entries[0]!, name: 'other/data.pkl' }])],
  ])('is refused: %s', async (_, message, bytes) => {
    await expect(open(bytes)).rejects.toThrow(FormatError);
    await expect(open(bytes)).rejects.toThrow(message);
  });

  it('is refused and closed: a folder, a pipe, nothing', async () => {
    await expect(openTorch(folder.path)).rejects.toThrow(/is not a regular file/);
    await expect(openTorch(folder.at('none'))).rejects.toThrow(/does not exist/);
    execFileSync('mkfifo', [folder.at('pipe')]);
    await expect(openTorch(folder.at('pipe'))).rejects.toThrow(/is not a regular file/);
    const before = readdirSync('/proc/self/fd').length;
    for (const bytes of [legacy, torchFile({ root: none })])
      await expect(open(bytes)).rejects.toThrow(FormatError);
    expect(readdirSync('/proc/self/fd').length).toBe(before);
  });
});
