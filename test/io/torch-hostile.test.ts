import { existsSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { FormatError } from '../../lib/errors';
import { openTorch } from '../../lib/io/torch';
import { temporaryFolder } from './folder';
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
  rebuild,
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
const open = (bytes: Uint8Array) => {
  writeFileSync(folder.at('pytorch_model.bin'), bytes);
  return openTorch(folder.at('pytorch_model.bin'));
};

/** Refused as a matter of format, in good time, with nothing left open. */
async function refused(bytes: Uint8Array, message: RegExp): Promise<void> {
  const files = readdirSync('/proc/self/fd').length;
  const begin = performance.now();
  const failure = open(bytes);
  await expect(failure).rejects.toThrow(message);
  await expect(failure).rejects.toBeInstanceOf(FormatError);
  expect(performance.now() - begin).toBeLessThan(5000);
  expect(readdirSync('/proc/self/fd').length).toBe(files);
}

const of24 = { 0: floats(...Array.from({ length: 24 }, (_, i) => i)) };
const holding = (root: Uint8Array) => torchFile({ root, storages: of24 });
const state = (value: Uint8Array) => holding(dict([text('t'), value]));
const good = tensor(storage('0', 24), [24], [1]);
const touch = tuple(text(`touch ${folder.at('ran')}`));
const system = global('posix', 'system');
const orderedDict = global('collections', 'OrderedDict');

describe('a pickle that would call code is refused by name, and nothing is run', () => {
  it.each<[string, RegExp, Uint8Array]>([
    ['a call of a shell', /wants to call posix.system; nothing was run/, reduce(system, touch)],
    ['a class that is only named', /wants to call subprocess.Popen;/, global('subprocess', 'Popen')],
    ['eval', /wants to call builtins.eval;/, reduce(global('builtins', 'eval'), tuple(text('1')))],
    ['exec of Python 2', /wants to call __builtin__.execfile;/, global('__builtin__', 'execfile')],
    [
      'a name of several parts',
      /wants to call torch.serialization.os.system;/,
      global('torch.serialization', 'os.system'),
    ],
    [
      'a name that hides in another',
      /wants to call torch._utils.os.system;/,
      global('torch._utils', 'os.system'),
    ],
    [
      'getattr',
      /wants to call builtins.getattr;/,
      reduce(global('builtins', 'getattr'), tuple(orderedDict, text('x'))),
    ],
    ['a name with control characters', /wants to call "a\\u001b\[2Jb.c";/, global('a\x1b[2Jb', 'c')],
    [
      'a name of Object.prototype',
      /wants to call constructor.constructor;/,
      global('constructor', 'constructor'),
    ],
    ['__proto__', /wants to call __proto__.polluted;/, global('__proto__', 'polluted')],
    ['STACK_GLOBAL', /wants to call os.system;/, op(text('os'), text('system'), 0x93)],
    [
      'STACK_GLOBAL of no text',
      /names a class by 1 and "system", expected two strings/,
      op(int(1), text('system'), 0x93),
    ],
    ['INST', /wants to call os.system;/, op('(', text('x'), 'ios\nsystem\n')],
    [
      'INST of what is known',
      /wants to call collections.OrderedDict \(INST\);/,
      op('(icollections\nOrderedDict\n'),
    ],
    ['OBJ', /wants to call collections.OrderedDict \(OBJ\);/, op('(', orderedDict, text('x'), 'o')],
    [
      'NEWOBJ',
      /wants to call torch.FloatStorage \(NEWOBJ\);/,
      op(global('torch', 'FloatStorage'), ')', 0x81),
    ],
    [
      'NEWOBJ_EX',
      /wants to call torch.FloatStorage \(NEWOBJ_EX\);/,
      op(global('torch', 'FloatStorage'), ')', '}', 0x92),
    ],
    ['EXT1', /wants to call extension 7 \(EXT1\);/, op(0x82, 7)],
    ['EXT2', /wants to call extension 513 \(EXT2\);/, op(0x83, 1, 2)],
    ['EXT4', /wants to call extension 16777216 \(EXT4\);/, op(0x84, 0, 0, 0, 1)],
    [
      'REDUCE of a storage class',
      /wants to call torch.FloatStorage;/,
      reduce(global('torch', 'FloatStorage'), ints(9)),
    ],
    ['REDUCE of text', /wants to call "os.system";/, reduce(text('os.system'), touch)],
    ['REDUCE of a result', /wants to call a tensor;/, reduce(good, touch)],
    [
      'REDUCE without a tuple',
      /calls collections.OrderedDict with a list of 0, expected a tuple/,
      reduce(orderedDict, op(']')),
    ],
    [
      'BUILD of a tensor',
      /wants to call __setstate__ of a tensor with a dict of 1;/,
      op(good, dict([text('x'), none]), 'b'),
    ],
    [
      'BUILD of a class',
      /wants to call __setstate__ of torch.Size/,
      op(global('torch', 'Size'), dict([text('__init__'), none]), 'b'),
    ],
    [
      'BUILD with more than _metadata',
      /wants to call __setstate__ of an ordered dict of 0 with a dict of 2/,
      op(ordered(), dict([text('_metadata'), none], [text('__class__'), none]), 'b'),
    ],
    [
      'BUILD with a tuple',
      /wants to call __setstate__ of an ordered dict of 0 with a tuple of 2/,
      op(ordered(), tuple(none, dict()), 'b'),
    ],
    [
      'a tensor of a subclass',
      /wants to call torch._tensor._rebuild_from_type_v2;/,
      global('torch._tensor', '_rebuild_from_type_v2'),
    ],
    [
      'a whole module',
      /wants to call mamba_ssm.models.MambaLMHeadModel;.*save its tensors alone/,
      global('mamba_ssm.models', 'MambaLMHeadModel'),
    ],
    [
      'hooks of a tensor',
      /has a tensor with hooks \(an ordered dict of 1\), expected none/,
      reduce(rebuild, tuple(storage('0', 24), int(0), ints(24), ints(1), no, ordered([int(1), none]))),
    ],
    [
      'hooks of a parameter',
      /has a tensor with hooks \(a list of 0\)/,
      reduce(global('torch._utils', '_rebuild_parameter'), tuple(good, no, op(']'))),
    ],
  ])('%s', async (_, message, value) => {
    await refused(state(value), message);
    expect(existsSync(folder.at('ran'))).toBe(false);
  });
});

describe('a pickle that makes no sense is refused', () => {
  const v2 = (...args: readonly Uint8Array[]) => reduce(rebuild, tuple(...args));
  const rest = [no, ordered()] as const;
  const at = storage('0', 24);
  it.each<[string, RegExp, Uint8Array]>([
    ['an opcode that torch never writes', /opcode 0x8f is not one that torch.save writes/, op(0x8f)],
    ['bytes', /opcode 0x43 is not/, op('C', 1, 'x')],
    ['text numbers of protocol 0', /opcode 0x49 is not/, op('I1\n')],
    ['a persistent id in text', /opcode 0x50 is not/, op('Pid\n')],
    ['POP', /opcode 0x30 is not/, op('N0')],
    ['a pop of nothing', /takes a value where there is none/, op('(', 0x85)],
    ['a recall of what was not stored', /recalls value 9, which was not stored/, op('h', 9)],
    ['a recall of a far number', /recalls value 4294967295,/, op('j', 255, 255, 255, 255)],
    ['text longer than the file', /is cut off here; the file is truncated/, op('X', 255, 255, 255, 255, 'x')],
    ['text that is not UTF-8', /text that is not valid UTF-8/, op('X', 1, 0, 0, 0, 0xff)],
    [
      'a whole number of 200 bytes',
      /whole number of 200 bytes, expected at most 8/,
      op(0x8a, 200, Buffer.alloc(200)),
    ],
    [
      'a whole number beyond 2^53',
      /holds 9007199254740992, expected less than 2\^53/,
      op(0x8a, 8, 0, 0, 0, 0, 0, 0, 32, 0),
    ],
    ['a list that is a dict', /appends to a dict of 0, expected a list/, op('}', none, 'a')],
    ['a dict that is a list', /sets an item of a list of 0, expected a dict/, op(']', none, none, 's')],
    ['a key without a value', /sets a key without a value/, op('}(', none, 'u')],
    ['a key that is a tuple', /dict with a tuple of 0 for a key/, dict([tuple(), none])],
    ['a key twice', /dict that holds the key "a" twice/, dict([text('a'), none], [text('a'), good])],
    ['another protocol within', /is a pickle of protocol 9, expected 2 to 5/, op(0x80, 9, 'N')],
    [
      'storage of a class that is none',
      /refers to a tuple of 5, expected a storage/,
      op(tuple(text('storage'), orderedDict, text('0'), text('cpu'), int(24)), 'Q'),
    ],
    ['storage of fewer than no elements', /refers to a tuple of 5, expected a storage/, storage('0', -1)],
    ['storage of text', /refers to "0", expected a storage/, op(text('0'), 'Q')],
    ['storage of two sizes', /has storage 0 as F32\[24\] and as F32\[12\]/, list(good, storage('0', 12))],
    [
      'storage of two dtypes',
      /has storage 0 as F32\[24\] and as I32\[24\]/,
      list(good, storage('0', 24, 'IntStorage')),
    ],
    ['quantised storage', /wants to call torch.QInt8Storage/, storage('0', 24, 'QInt8Storage')],
    ['a tensor of three arguments', /makes a tensor of 3 arguments/, v2(at, int(0), ints(24))],
    [
      'a tensor of no storage',
      /makes a tensor of "0", expected a storage/,
      v2(text('0'), int(0), ints(24), ints(1), ...rest),
    ],
    [
      'a tensor that is conjugated',
      /tensor with metadata \(a dict of 1\)/,
      v2(at, int(0), ints(24), ints(1), ...rest, dict([text('conj'), no])),
    ],
    [
      'a negative offset',
      /tensor at offset -1, expected a whole number/,
      v2(at, int(-1), ints(2), ints(1), ...rest),
    ],
    [
      'a negative stride',
      /whose stride 0 is -1, expected a whole number, 0 or more/,
      tensor(at, [4], [-1], 3),
    ],
    ['a negative size', /whose size 1 is -4/, tensor(at, [1, -4], [1, 1])],
    [
      'a size that is a fraction',
      /whose size 0 is 0.5/,
      v2(at, int(0), tuple(op('G', 0x3f, 0xe0, 0, 0, 0, 0, 0, 0)), ints(1), ...rest),
    ],
    ['a size that is a list', /whose size is a list of 1/, v2(at, int(0), list(int(1)), ints(1), ...rest)],
    ['more sizes than strides', /expected as many strides as sizes/, tensor(at, [2, 2], [1])],
    [
      'more dimensions than torch has',
      /tensor of 65 dimensions/,
      tensor(at, Array(65).fill(1), Array(65).fill(1)),
    ],
    ['an offset beyond the storage', /reaches beyond its storage 0 of 24 elements/, tensor(at, [1], [1], 24)],
    [
      'a size beyond the storage',
      /size \[25\], stride \[1\] and offset 0, which reaches beyond/,
      tensor(at, [25], [1]),
    ],
    ['a stride beyond the storage', /reaches beyond its storage/, tensor(at, [2, 2], [1, 23])],
    [
      'sizes whose product overflows',
      /reaches beyond its storage/,
      tensor(at, [2 ** 50, 2 ** 50], [2 ** 50, 1]),
    ],
    [
      'an expanded tensor',
      /whose elements share places; save it as tensor.contiguous\(\)/,
      tensor(at, [2 ** 40], [0]),
    ],
    ['overlapping rows', /whose elements share places/, tensor(at, [4, 4], [2, 1])],
    [
      'a parameter of a dict',
      /makes a parameter of a dict of 0/,
      reduce(global('torch._utils', '_rebuild_parameter'), tuple(dict(), no, ordered())),
    ],
    [
      'an ordered dict of a number',
      /makes an ordered dict of 3, expected nothing or a list/,
      reduce(orderedDict, ints(3)),
    ],
    [
      'an ordered dict of triples',
      /makes an ordered dict of a tuple of 3, expected pairs/,
      reduce(orderedDict, tuple(list(ints(1, 2, 3)))),
    ],
    [
      'an ordered dict with a key twice',
      /holds the key 1 twice/,
      reduce(orderedDict, tuple(list(ints(1, 2), ints(1, 3)))),
    ],
    [
      'a torch.Size of a number',
      /makes a torch.Size of something else/,
      reduce(global('torch', 'Size'), ints(3)),
    ],
    ['something else than a tensor', /t is "x", expected a tensor/, text('x')],
    ['a dict two deep', /t is a dict of 1, expected a tensor/, dict([text('u'), good])],
  ])('%s', async (_, message, value) => refused(state(value), message));

  it.each<[string, RegExp, Uint8Array]>([
    ['a list', /holds a list of 1, expected a dict of tensors/, list(good)],
    ['nothing', /holds no tensors/, ordered()],
    ['a number for a name', /name of a tensor is 1, expected a string/, dict([int(1), good])],
    ['two values', /ends with 2 values, expected one/, op(none, none)],
    ['an open mark', /ends with 1 values, expected one/, op(none, '(')],
    ['bytes after the end', /ends here, but 1 bytes follow/, op(dict([text('t'), good]), '.')],
    [
      'a missing storage',
      /storage "5" of tensor t is missing/,
      dict([text('t'), tensor(storage('5', 24), [24], [1])]),
    ],
    [
      'a key that is a path',
      /storage "..\/..\/etc\/passwd" of tensor t is missing/,
      dict([text('t'), tensor(storage('../../etc/passwd', 24), [24], [1])]),
    ],
    [
      'a storage longer than its bytes',
      /storage "0" of tensor t has 96 bytes, expected 100 for F32\[25\]/,
      dict([text('t'), tensor(storage('0', 25), [24], [1])]),
    ],
    [
      'a storage of 2^50 elements',
      /has 96 bytes, expected 4503599627370496/,
      dict([text('t'), tensor(storage('0', 2 ** 50), [24], [1])]),
    ],
    [
      'a storage shorter than its bytes',
      /has 96 bytes, expected 48/,
      dict([text('t'), tensor(storage('0', 12), [12], [1])]),
    ],
  ])('%s at the root', async (_, message, root) => refused(holding(root), message));

  it('no end', () => refused(zip([{ name: 'a/data.pkl', data: op(0x80, 2, 'N') }]), /is cut off here/));
});

describe('a pickle that would take all time or memory is refused', () => {
  const million = (bytes: Uint8Array, times = 1_000_000) => Buffer.alloc(bytes.length * times, bytes);
  it.each<[string, RegExp, () => Uint8Array]>([
    ['five million empty dicts', /has more than 1000000 instructions/, () => million(op('}'), 5_000_000)],
    ['five million marks', /has more than 1000000 instructions/, () => million(op('('), 5_000_000)],
    [
      'a million tuples in each other',
      /t is a tuple of 1, expected a tensor/,
      () => op(none, million(op(0x85), 900_000)),
    ],
    ['a million stored values', /sets a key without a value/, () => million(op('N', 0x94), 450_000)],
    [
      'ordered dicts of one list again and again',
      /has more than 1000000 instructions/,
      () => {
        const pairs = Array.from({ length: 1000 }, (_, i) => tuple(text(String(i)), none));
        const first = op(global('collections', 'OrderedDict'), 'q', 0, list(...pairs), 0x85, 'q', 1, 'R');
        return op(first, million(op('h', 0, 'h', 1, 'R'), 200_000));
      },
    ],
    [
      'tensors of 64 dimensions again and again',
      /has more than 1000000 instructions/,
      () => {
        const ones = tuple(...Array.from({ length: 64 }, () => op('K', 1)));
        const args = tuple(storage('0', 24), op('K', 0), ones, ones, no, op('}'));
        const first = op(global('torch._utils', '_rebuild_tensor_v2'), 'q', 0, args, 'q', 1, 'R');
        return op(first, million(op('h', 0, 'h', 1, 'R'), 200_000));
      },
    ],
    ['a list in itself', /t is a list of 1, expected a tensor/, () => op(']q', 0, 'h', 0, 'a')],
    ['a dict in itself', /t is a dict of 1, expected a tensor/, () => op('}q', 0, text('x'), 'h', 0, 's')],
    [
      'a tree of 2^200 leaves',
      /t is a tuple of 2, expected a tensor/,
      () => op(none, ...Array.from({ length: 200 }, () => op('q', 0, 'h', 0, 0x86))),
    ],
    [
      'a pickle of 17 MiB',
      /data.pkl has \d+ bytes, expected at most 16777216/,
      () => op('X', 0, 0, 16, 1, Buffer.alloc((17 << 20) - 1)),
    ],
  ])('%s', async (_, message, value) => {
    const before = process.memoryUsage().rss;
    await refused(state(value()), message);
    expect(process.memoryUsage().rss - before).toBeLessThan(600e6);
  });

  it('a hundred thousand names for one storage are one storage', async () => {
    const names = Array.from({ length: 20_000 }, (_, i) => [text(`t${i}`), op('h', 0)] as const);
    const file = await open(holding(dict([text('t'), op(good, 'q', 0)], ...names)));
    expect(file.tensors.size).toBe(20_001);
    await file.close();
  });
});

describe('an archive that is not what torch writes is refused', () => {
  const root = dict([text('t'), good], [text('u'), tensor(storage('1', 24), [24], [1])]);
  const storages = { 0: of24[0], 1: of24[0] };
  const entries = entriesOf({ root, storages });
  const [pkl, zero, one] = entries as [Entry, Entry, Entry];
  const whole = torchFile({ root, storages });
  const far = torchFile({ root, storages }, { zip64: true });
  far.writeUInt32LE(1 << 28, far.lastIndexOf('PK\x06\x07') + 12); // the upper half of an offset
  const edit = (i: number, change: Partial<Entry>) =>
    zip(entries.map((entry, j) => (i === j ? { ...entry, ...change } : entry)));

  it('but what the cases below are made of is fine', async () => {
    await (await open(whole)).close();
  });

  it.each<[string, RegExp, Uint8Array]>([
    [
      'a compressed pickle',
      /entry archive\/data.pkl is compressed, expected it stored/,
      edit(0, { method: 8 }),
    ],
    ['a compressed storage', /entry archive\/data\/0 is compressed/, edit(1, { method: 8 })],
    ['a method that nobody knows', /entry archive\/data\/0 is compressed/, edit(1, { method: 99 })],
    ['an encrypted entry', /size mismatch|entry archive\/data\/0 is encrypted/, edit(1, { flags: 1 })],
    ['strong encryption', /strong encryption/, edit(1, { flags: 0x40 })],
    ['a damaged pickle', /data.pkl is damaged; its checksum differs/, edit(0, { crc: 1 })],
    [
      'a name that climbs',
      /invalid relative path: ..\/..\/evil/,
      zip([...entries, { name: '../../evil', data: op('x') }]),
    ],
    [
      'a name that climbs later',
      /invalid relative path/,
      zip([...entries, { name: 'archive/data/../../../evil', data: op('x') }]),
    ],
    [
      'an absolute name',
      /absolute path: \/etc\/passwd/,
      zip([...entries, { name: '/etc/passwd', data: op('x') }]),
    ],
    ['a name with a drive', /absolute path: C:evil/, zip([...entries, { name: 'C:evil', data: op('x') }])],
    [
      'a name with a backslash',
      /invalid characters in fileName/,
      zip([...entries, { name: 'archive\\data\\0', data: op('x') }]),
    ],
    ['a name twice', /entry "archive\/data\/0" occurs twice/, zip([...entries, zero])],
    ['a pickle twice', /entry "archive\/data.pkl" occurs twice/, zip([...entries, pkl])],
    [
      'another name at the data',
      /entry archive\/data\/0 is called "archive\/data\/1" where its bytes are/,
      edit(1, { localName: 'archive/data/1' }),
    ],
    ['an offset at another entry', /is called "archive\/data.pkl" where its bytes are/, edit(1, { at: 0 })],
    ['an offset at nothing', /invalid local file header signature/, edit(1, { at: 3 })],
    [
      'an offset beyond the file',
      /is not a ZIP file that can be read; unexpected end of the file/,
      edit(1, { at: 1 << 30 }),
    ],
    ['a size beyond the file', /has 1073741824 bytes, expected 96/, edit(1, { size: 1 << 30 })],
    ['a pickle longer than the file', /overflows file bounds/, edit(0, { size: 1 << 23 })],
    ['an empty storage', /has 0 bytes, expected 96/, edit(1, { data: op() })],
    ['a storage that lacks a byte', /has 95 bytes, expected 96/, edit(1, { data: of24[0].subarray(1) })],
    ['more entries than there are', /is not a ZIP file that can be read/, zip(entries, { count: 60_000 })],
    [
      '2^52 entries',
      /holds 4503599627370496 entries, expected at most 100000/,
      zip(entries, { count: 2 ** 52, zip64: true }),
    ],
    [
      'no directory',
      /End of central directory record signature not found/,
      whole.subarray(0, whole.length - 22),
    ],
    ['half of it', /is not a ZIP file that can be read/, whole.subarray(0, whole.length / 2)],
    ['something after it', /Invalid comment length/, op(whole, 'more')],
  ])('%s', async (_, message, bytes) => refused(bytes, message));

  it('two storages in one place', async () => {
    // The second one, and what follows it, is made of bytes of the first one.
    const header = op('PK\x03\x04', Buffer.alloc(22), one.name.length, 0, 0, 0, one.name);
    const data = op(header, Buffer.alloc(32), 'PK\x03\x04', Buffer.alloc(96 - header.length - 36));
    const inside = dict([text('t'), good], [text('u'), tensor(storage('1', 8), [8], [1])]);
    const pickled = entriesOf({ root: inside })[0]!;
    const at = 30 + pickled.name.length + pickled.data.length + 30 + zero.name.length;
    await refused(
      zip([pickled, { ...zero, data }, { ...one, data: data.subarray(0, 32), at }, ...entries.slice(3)]),
      /storages "0" and "1" overlap/,
    );
  });

  it('a storage that is cut off after the file was opened', async () => {
    const file = await open(whole);
    const info = file.tensors.get('u')!;
    writeFileSync(folder.at('pytorch_model.bin'), whole.subarray(0, info.begin + 10));
    await expect(file.read(info, new Uint8Array(96))).rejects.toThrow(
      /tensor u: file ends at byte \d+; it is truncated/,
    );
    await file.close();
    rmSync(folder.at('pytorch_model.bin'));
  });
});
