import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { DisposedError, FormatError } from '../../lib/errors';
import { openSafetensors, writeSafetensors, type TensorSource } from '../../lib/io/safetensors';
import { FIXTURES, temporaryFolder } from './folder';

const folder = temporaryFolder();

/** A file from a header, given as JSON text or as a value, and so many bytes of data. */
function craft(header: unknown, dataBytes: number, pad = true): string {
  let json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  if (pad) json = Buffer.concat([json, Buffer.alloc((8 - (json.length % 8)) % 8, ' ')]);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return save(Buffer.concat([length, json, Buffer.alloc(dataBytes, 7)]));
}

function save(bytes: Uint8Array): string {
  const path = folder.at('crafted.safetensors');
  writeFileSync(path, bytes);
  return path;
}

const f32 = (shape: unknown, begin: unknown, end: unknown) => ({
  dtype: 'F32',
  shape,
  data_offsets: [begin, end],
});

describe('reading', () => {
  it('reads a file that safetensors wrote: shapes, metadata, bytes', async () => {
    const file = await openSafetensors(join(FIXTURES, 'mamba-tiny', 'model.safetensors'));
    expect(file.metadata).toEqual({ format: 'pt' });
    const info = file.tensors.get('backbone.layers.0.mixer.A_log')!;
    expect(info).toMatchObject({ dtype: 'F32', shape: [128, 16] });
    const whole = new Uint8Array(info.end - info.begin);
    await file.read(info, whole);
    expect(Buffer.from(whole).equals(readFileSync(file.path).subarray(info.begin, info.end))).toBe(true);
    const part = new Uint8Array(12);
    await file.read(info, part, 100);
    expect(part).toEqual(whole.slice(100, 112));
    await file.close();
  });

  it('refuses reads beyond a tensor and after close', async () => {
    const file = await openSafetensors(craft({ a: f32([2], 0, 8) }, 8));
    const info = file.tensors.get('a')!;
    await expect(file.read(info, new Uint8Array(9))).rejects.toThrow(RangeError);
    await expect(file.read(info, new Uint8Array(4), 5)).rejects.toThrow(
      /offset 5 \+ 4 bytes is outside of a/,
    );
    await expect(file.read(info, new Uint8Array(4), -1)).rejects.toThrow(RangeError);
    await file.close();
    await file.close();
    await expect(file.read(info, new Uint8Array(8))).rejects.toThrow(DisposedError);
  });

  it('reports a file that shrank after it was opened', async () => {
    const file = await openSafetensors(craft({ a: f32([64], 0, 256) }, 256));
    const info = file.tensors.get('a')!;
    truncateSync(file.path, info.begin + 10);
    await expect(file.read(info, new Uint8Array(256))).rejects.toThrow(
      /tensor a: file ends at byte .* truncated/,
    );
    await file.close();
  });

  it.each([
    ['no tensors at all', {}, 0],
    ['a scalar', { a: f32([], 0, 4) }, 4],
    ['an empty tensor of huge dimensions', { a: f32([2 ** 50, 0, 2 ** 50], 0, 0) }, 0],
    ['entries in another order than their bytes', { b: f32([1], 4, 8), a: f32([1], 0, 4) }, 8],
    ['unknown extra fields', { a: { ...f32([1], 0, 4), note: [1] } }, 4],
    [
      'names of object properties',
      '{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"constructor":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
      2,
    ],
  ])('accepts %s', async (_, header, bytes) => {
    const file = await openSafetensors(craft(header, bytes));
    for (const info of file.tensors.values()) await file.read(info, new Uint8Array(info.end - info.begin));
    await file.close();
  });

  it('keeps a tensor named __proto__ as a tensor', async () => {
    const header = '{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}';
    const file = await openSafetensors(craft(header, 1));
    expect([...file.tensors.keys()]).toEqual(['__proto__']);
    expect(file.tensors.get('toString')).toBeUndefined();
    await file.close();
  });
});

describe('hostile files', () => {
  const huge = Buffer.alloc(16);
  huge.writeBigUInt64LE(100_000_001n);
  const beyond = Buffer.alloc(16);
  beyond.writeBigUInt64LE(9n);

  it.each<[string, RegExp, () => string]>([
    ['missing', /does not exist/, () => folder.at('nowhere.safetensors')],
    ['a folder', /not a regular file/, () => folder.path],
    [
      'a pipe that nobody writes to',
      /not a regular file/,
      () => {
        const path = join(folder.path, 'pipe');
        execFileSync('mkfifo', [path]);
        return path;
      },
    ],
    ['empty', /0 bytes, expected at least 8; it is truncated/, () => save(Buffer.alloc(0))],
    ['shorter than a length', /7 bytes, expected at least 8/, () => save(Buffer.alloc(7))],
    ['of a header over 100 MB', /header length is 100000001, expected at most 100000000/, () => save(huge)],
    [
      'of a header length near 2^64',
      /header length is 18446744073709551615/,
      () => save(Buffer.alloc(16, 255)),
    ],
    ['of a header beyond its end', /header ends at byte 17, the file at 16/, () => save(beyond)],
    ['of an empty header', /header: is not valid JSON/, () => save(Buffer.alloc(8))],
    ['not JSON', /header: is not valid JSON/, () => craft('{"a":', 0)],
    [
      'not UTF-8',
      /header: is not valid UTF-8/,
      () => {
        const path = craft({ abc: f32([1], 0, 4) }, 4);
        const bytes = readFileSync(path);
        bytes[11] = 0xff;
        return save(bytes);
      },
    ],
    ['an array', /top level is an array, expected an object/, () => craft([], 0)],
    ['null', /top level is null, expected an object/, () => craft('null', 0)],
    ['deeply nested', /entry is an array/, () => craft(`{"a":${'['.repeat(1e5)}${']'.repeat(1e5)}}`, 0)],
    [
      'cut in its data',
      /tensor b .* reaches beyond the end of the file; it is truncated/,
      () => craft({ a: f32([1], 0, 4), b: f32([1], 4, 8) }, 6),
    ],
  ])('refuses a file that is %s', async (_, message, make) => {
    const path = make();
    const error = await openSafetensors(path).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(FormatError);
    expect((error as Error).message).toMatch(message);
    expect((error as Error).message).toContain(path);
  });

  it.each<[string, RegExp, unknown, number]>([
    ['is no object', /tensor a: entry is 3/, { a: 3 }, 0],
    ['has no dtype', /tensor a: dtype is absent/, { a: { shape: [1], data_offsets: [0, 4] } }, 4],
    [
      'has a dtype of another kind',
      /dtype is 4, expected one of BOOL/,
      { a: { ...f32([1], 0, 4), dtype: 4 } },
      4,
    ],
    ['has an unknown dtype', /tensor a: dtype is "F4"/, { a: { ...f32([1], 0, 4), dtype: 'F4' } }, 4],
    [
      'has a dtype that objects inherit',
      /dtype is "toString"/,
      { a: { ...f32([1], 0, 4), dtype: 'toString' } },
      4,
    ],
    ['has no shape', /tensor a: shape is undefined/, { a: { dtype: 'F32', data_offsets: [0, 4] } }, 4],
    ['has a shape of another kind', /shape is "1"/, { a: f32('1', 0, 4) }, 4],
    ['has a negative dimension', /shape is \[-1\]/, { a: f32([-1], 0, 4) }, 4],
    ['has a fractional dimension', /shape is \[1.5\]/, { a: f32([1.5], 0, 6) }, 6],
    ['has a dimension beyond 2^53', /shape is \[9007199254740992\]/, { a: f32([2 ** 53], 0, 4) }, 4],
    [
      'has a size that overflows',
      /expected fewer than 2\^53 for F32\[/,
      { a: f32([2 ** 32, 2 ** 32], 0, 0) },
      0,
    ],
    ['is smaller than its shape', /span 4 bytes, expected 8 for F32\[2\]/, { a: f32([2], 0, 4) }, 4],
    ['is larger than its shape', /span 8 bytes, expected 4/, { a: f32([1], 0, 8) }, 8],
    [
      'has one offset',
      /expected two whole numbers/,
      { a: { dtype: 'F32', shape: [1], data_offsets: [0] } },
      4,
    ],
    ['has negative offsets', /data_offsets is \[-4,0\]/, { a: f32([1], -4, 0) }, 4],
    [
      'has offsets out of order',
      /data_offsets is \[4,0\], expected begin before end/,
      { a: f32([1], 4, 0) },
      4,
    ],
    ['lies beyond the end', /reaches beyond the end/, { a: f32([1], 4000, 4004) }, 4],
    [
      'overlaps another',
      /tensor b .* overlaps the tensor before it/,
      { a: f32([2], 0, 8), b: f32([1], 4, 8) },
      8,
    ],
    ['leaves a hole', /tensor b .* leaves a hole of 4 bytes/, { a: f32([1], 0, 4), b: f32([1], 8, 12) }, 12],
    ['starts after a hole', /tensor a .* leaves a hole of 4 bytes/, { a: f32([1], 4, 8) }, 8],
    ['is followed by bytes', /3 bytes follow the last tensor/, { a: f32([1], 0, 4) }, 7],
    [
      'is misaligned',
      /tensor b: begins at byte \d+, which is misaligned for F32/,
      { a: { dtype: 'U8', shape: [1], data_offsets: [0, 1] }, b: f32([1], 1, 5) },
      5,
    ],
    ['has metadata of another kind', /__metadata__ is an array/, { __metadata__: [], a: f32([1], 0, 4) }, 4],
    [
      'has metadata values of another kind',
      /__metadata__ "k" is 1, expected a string/,
      { __metadata__: { k: 1 } },
      0,
    ],
    [
      'occurs twice',
      /"a" occurs twice/,
      '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0061" : {"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
      2,
    ],
    [
      'has a field twice',
      /"dtype" occurs twice/,
      '{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
      1,
    ],
  ])('refuses a tensor that %s', async (_, message, header, bytes) => {
    const path = craft(header, bytes);
    await expect(openSafetensors(path)).rejects.toThrow(FormatError);
    await expect(openSafetensors(path)).rejects.toThrow(message);
  });

  it('refuses a header whose length misaligns the data', async () => {
    const header = { ab: f32([1], 0, 4) };
    const path = craft(header, 4, false);
    expect((8 + JSON.stringify(header).length) % 4).not.toBe(0);
    await expect(openSafetensors(path)).rejects.toThrow(/tensor ab: begins at byte \d+, which is misaligned/);
  });

  it('gives a FormatError or a readable file for any damaged byte', async () => {
    const header = {
      __metadata__: { format: 'pt' },
      a: f32([2, 3], 0, 24),
      b: { dtype: 'BF16', shape: [4], data_offsets: [24, 32] },
    };
    const good = readFileSync(craft(header, 32));
    let seed = 1;
    const random = (below: number) => (seed = (seed * 48271) % 2147483647) % below;
    for (let round = 0; round < 500; round++) {
      const bytes = Buffer.from(random(10) ? good : good.subarray(0, random(good.length)));
      for (let n = random(3); n >= 0 && bytes.length; n--) bytes[random(bytes.length)] = random(256);
      const file = await openSafetensors(save(bytes)).catch((error: unknown) => {
        expect(error).toBeInstanceOf(FormatError);
        return undefined;
      });
      if (!file) continue;
      for (const info of file.tensors.values()) await file.read(info, new Uint8Array(info.end - info.begin));
      await file.close();
    }
  });
});

describe('writing', () => {
  const source = (
    name: string,
    dtype: TensorSource['dtype'],
    shape: number[],
    bytes: Uint8Array,
  ): TensorSource => ({
    name,
    dtype,
    shape,
    read: async () => bytes, // prettier-ignore
  });
  const bytes = (n: number, from = 0) => Uint8Array.from({ length: n }, (_, i) => (from + i * 7) & 255);

  it('writes what it reads back, whole or in pieces, aligned whatever the order', async () => {
    const path = folder.at('out.safetensors');
    async function* pieces() {
      yield bytes(8).subarray(0, 3);
      yield bytes(8).subarray(3);
    }
    await writeSafetensors(path, [
      source('odd', 'U8', [3], bytes(3, 1)),
      { name: 'pieces', dtype: 'F32', shape: [2], read: pieces },
      source('half', 'BF16', [1, 5], bytes(10, 2)),
      source('empty', 'F16', [0, 4], new Uint8Array(0)),
      source('__proto__', 'F64', [], bytes(8, 3)),
    ]);
    const file = await openSafetensors(path);
    expect(file.metadata).toEqual({ format: 'pt' });
    const read = async (name: string) => {
      const info = file.tensors.get(name)!;
      const into = new Uint8Array(info.end - info.begin);
      await file.read(info, into);
      return [info.dtype, info.shape, into];
    };
    expect(await read('odd')).toEqual(['U8', [3], bytes(3, 1)]);
    expect(await read('pieces')).toEqual(['F32', [2], bytes(8)]);
    expect(await read('half')).toEqual(['BF16', [1, 5], bytes(10, 2)]);
    expect(await read('empty')).toEqual(['F16', [0, 4], new Uint8Array(0)]);
    expect(await read('__proto__')).toEqual(['F64', [], bytes(8, 3)]);
    await file.close();
    expect(readdirSync(folder.path)).toEqual(['out.safetensors']);
  });

  it('rewrites a fixture to the same bytes', async () => {
    const original = await openSafetensors(join(FIXTURES, 'mamba-odd', 'model.safetensors'));
    const path = folder.at('model.safetensors');
    const sources = [...original.tensors.values()].map((info) => ({
      ...info,
      read: async () => {
        const into = new Uint8Array(info.end - info.begin);
        await original.read(info, into);
        return into;
      },
    }));
    await writeSafetensors(path, sources, original.metadata);
    await original.close();
    expect(readFileSync(path).equals(readFileSync(original.path))).toBe(true);
  });

  it.each<[string, RegExp, TensorSource[]]>([
    ['too few bytes', /a gave 3 bytes, expected 4/, [source('a', 'F32', [1], bytes(3))]],
    [
      'a name twice',
      /tensor name "a" is taken/,
      [source('a', 'U8', [1], bytes(1)), source('a', 'U8', [1], bytes(1))],
    ],
    ['the name of the metadata', /"__metadata__" is taken/, [source('__metadata__', 'U8', [1], bytes(1))]],
    ['a negative shape', /shape of a is \[-1\]/, [source('a', 'U8', [-1], bytes(1))]],
    ['an unknown dtype', /dtype of a is "X9"/, [source('a', 'X9' as 'U8', [1], bytes(1))]],
  ])('refuses %s and keeps the old file', async (_, message, tensors) => {
    const path = folder.at('out.safetensors');
    writeFileSync(path, 'old');
    await expect(writeSafetensors(path, tensors)).rejects.toThrow(message);
    expect(readFileSync(path, 'utf8')).toBe('old');
    expect(readdirSync(folder.path)).toEqual(['out.safetensors']);
  });

  it('keeps the old file when a tensor cannot be read', async () => {
    const path = folder.at('out.safetensors');
    writeFileSync(path, 'old');
    const failing = {
      ...source('b', 'U8', [1], bytes(1)),
      read: () => Promise.reject(new DisposedError('b is disposed')),
    };
    await expect(writeSafetensors(path, [source('a', 'F32', [1], bytes(4)), failing])).rejects.toThrow(
      DisposedError,
    );
    expect(readFileSync(path, 'utf8')).toBe('old');
    expect(readdirSync(folder.path)).toEqual(['out.safetensors']);
  });

  it('keeps the old file when the disk is full', async () => {
    const path = folder.at('out.safetensors');
    writeFileSync(path, 'old');
    const handle = await open(path);
    const prototype = Object.getPrototypeOf(handle) as typeof handle;
    await handle.close();
    const full = Object.assign(new Error('ENOSPC: no space left on device, write'), {
      code: 'ENOSPC',
      syscall: 'write',
    });
    const write = jest.spyOn(prototype, 'write').mockRejectedValue(full);
    const error = await writeSafetensors(path, [source('a', 'F32', [1], bytes(4))]).catch(
      (reason: unknown) => reason,
    );
    write.mockRestore();
    expect(error).toMatchObject({ code: 'ENOSPC', cause: full });
    expect((error as Error).message).toBe(
      `${path}: cannot be written, the disk is full; what was there before is unchanged`,
    );
    expect(readFileSync(path, 'utf8')).toBe('old');
    expect(readdirSync(folder.path)).toEqual(['out.safetensors']);
  });

  it('says which path cannot be written', async () => {
    await expect(writeSafetensors(folder.at('no', 'out.safetensors'), [])).rejects.toThrow(
      /no\/out.safetensors: cannot be written/,
    );
  });
});
