import { writeFileSync } from 'node:fs';
import { FormatError } from '../../lib/errors';
import { unpickle } from '../../lib/io/pickle';
import { TorchWorld } from '../../lib/io/torch-objects';
import { openTorch } from '../../lib/io/torch';
import { temporaryFolder } from './folder';
import {
  dict,
  entriesOf,
  floats,
  global,
  int,
  ints,
  no,
  none,
  op,
  ordered,
  pickle,
  storage,
  tensor,
  text,
  tuple,
  zip,
} from './torch-files';

const folder = temporaryFolder();

/** Whole numbers below `n`, the same in every run. */
let seed = 12345;
function random(n: number): number {
  seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
  return Math.floor((seed / 2 ** 32) * n);
}

const storages = { 0: floats(1, 2, 3, 4, 5, 6), 1: floats(7, 8, 9) };
const root = op(
  ordered(
    [text('a'), tensor(storage('0', 6), [2, 3], [3, 1])],
    [text('b'), tensor(storage('0', 6), [3, 2], [1, 3])],
    [text('c'), tensor(storage('1', 3), [2], [1], 1)],
  ),
  dict([text('_metadata'), ordered([text(''), none])]),
  'b',
);
const entries = entriesOf({ root, storages, byteorder: 'little' });
const descriptors = zip(entries, { descriptors: true });

/** Everything of every tensor; undefined when the file is refused as it should be. */
async function load(bytes: Uint8Array) {
  writeFileSync(folder.at('x.bin'), bytes);
  const file = await openTorch(folder.at('x.bin')).catch((error: unknown) => {
    if (!(error instanceof FormatError)) throw error;
    return undefined;
  });
  if (!file) return undefined;
  const found: { name: string; dtype: string; shape: readonly number[]; bytes: number[] }[] = [];
  for (const info of file.tensors.values()) {
    expect(info.end - info.begin).toBeLessThanOrEqual(bytes.length);
    const into = new Uint8Array(info.end - info.begin);
    await file.read(info, into);
    found.push({ name: info.name, dtype: info.dtype, shape: info.shape, bytes: [...into] });
  }
  await file.close();
  return found;
}

/** The same, but for bytes of tensors where `data` says so. */
const kinds = (found: Awaited<ReturnType<typeof load>>) =>
  found?.map(({ name, dtype, shape }) => ({ name, dtype, shape }));

describe('a file with wrong bytes', () => {
  it.each([
    ['as torch writes it', descriptors],
    ['as others do', zip(entries)],
    ['of 64 bits', zip(entries, { zip64: true })],
  ])('is refused, or is the same model, whichever byte it is: %s', async (_, good) => {
    const wanted = (await load(good))!;
    const data = Object.values(storages).map((bytes) => good.indexOf(bytes));
    const isData = (at: number) => data.some((begin) => at >= begin && at < begin + 24);
    let refused = 0;
    for (let at = 0; at < good.length; at++) {
      for (const flip of [1 << random(8), 1 + random(255)]) {
        const bytes = Buffer.from(good);
        bytes[at]! ^= flip;
        const found = await load(bytes);
        if (!found) refused++;
        else if (isData(at)) expect(kinds(found)).toEqual(kinds(wanted));
        else expect(found).toEqual(wanted);
      }
    }
    expect(refused).toBeGreaterThan(good.length);
  });

  it('is refused wherever it ends', async () => {
    for (let end = 0; end < descriptors.length; end++)
      expect(await load(descriptors.subarray(0, end))).toBeUndefined();
  });

  it('is refused or read in bounds when several parts of it are wrong', async () => {
    for (let i = 0; i < 1000; i++) {
      const bytes = Buffer.from(descriptors);
      for (let j = random(4); j >= 0; j--) {
        const from = random(bytes.length);
        bytes.copyWithin(random(bytes.length), from, from + random(64));
      }
      await load(bytes);
    }
  });
});

describe('a pickle with wrong bytes', () => {
  const bytes = pickle(root);
  const withPickle = (data: Uint8Array) => zip([{ name: 'archive/data.pkl', data }, ...entries.slice(1)]);

  it('is refused or read in bounds, checksum or not', async () => {
    for (let at = 0; at < bytes.length; at++) {
      for (const flip of [1 << random(8), 1 + random(255)]) {
        const wrong = Buffer.from(bytes);
        wrong[at]! ^= flip;
        await load(withPickle(wrong));
      }
    }
  });

  // prettier-ignore
  const parts = [
    op('('), op('t'), op(')'), op(0x85), op(0x86), op(0x87), op('R'), op('b'), op('s'), op('u'), op('a'), op('e'), op('}'), op(']'), op('Q'),
    op('.'), op('q', 0), op('h', 0), op('q', 1), op('h', 1), op(0x94), op(0x93), op(0x81), op(0x92), op('o'), op('N'), op('0'), op('2'),
    int(0), int(1), int(3), int(-1), int(2 ** 40), text('0'), text('storage'), text('torch'), text('_metadata'), ints(2, 3), no,
    global('collections', 'OrderedDict'), global('torch', 'FloatStorage'), global('torch', 'Size'), global('os', 'system'),
    global('torch._utils', '_rebuild_tensor_v2'), global('torch._utils', '_rebuild_parameter'),
    storage('0', 6), tensor(storage('0', 6), [6], [1]), tuple(), ordered(), dict([text('a'), none]),
  ];

  it('is refused or read, whatever its instructions are', () => {
    const began = performance.now();
    let read = 0;
    for (let i = 0; i < 100_000; i++) {
      const program = op(
        0x80,
        2,
        ...Array.from({ length: 1 + random(12) }, () => parts[random(parts.length)]!),
        '.',
      );
      try {
        unpickle(program, 'fuzz', new TorchWorld());
        read++;
      } catch (error) {
        if (!(error instanceof FormatError)) throw error;
      }
    }
    expect(read).toBeGreaterThan(100);
    expect(performance.now() - began).toBeLessThan(60_000);
  });
});
