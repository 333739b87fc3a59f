import { copyFileSync, cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { FormatError } from '../../lib/errors';
import { openCheckpoint } from '../../lib/io/checkpoint';
import { readJson } from '../../lib/io/json';
import { FIXTURES, temporaryFolder } from './folder';

const folder = temporaryFolder();

describe('openCheckpoint', () => {
  it('opens a folder of one file', async () => {
    const checkpoint = await openCheckpoint(join(FIXTURES, 'mamba-odd'));
    expect(checkpoint.names()).toContain('lm_head.weight');
    expect(checkpoint.info('lm_head.weight').dtype).toBe('F32');
    const sum = checkpoint.names().reduce((total, name) => {
      const { begin, end } = checkpoint.info(name);
      return total + end - begin;
    }, 0);
    expect(checkpoint.bytes).toBe(sum);
    await checkpoint.close();
  });

  it('opens a folder of shards', async () => {
    const path = join(FIXTURES, 'mamba-sharded-bf16');
    const index = JSON.parse(readFileSync(join(path, 'model.safetensors.index.json'), 'utf8'));
    const checkpoint = await openCheckpoint(path);
    expect(checkpoint.names().sort()).toEqual(Object.keys(index.weight_map).sort());
    expect(checkpoint.bytes).toBe(index.metadata.total_size);
    for (const name of checkpoint.names()) {
      const { begin, end } = checkpoint.info(name);
      const into = new Uint8Array(end - begin);
      await checkpoint.read(name, into);
      const shard = readFileSync(join(path, index.weight_map[name]));
      expect(shard.subarray(begin, end).equals(into)).toBe(true);
    }
    await checkpoint.close();
    await expect(checkpoint.read('backbone.embeddings.weight', new Uint8Array(2))).rejects.toThrow(
      /is closed/,
    );
  });

  it('names the tensor that is missing', async () => {
    const checkpoint = await openCheckpoint(join(FIXTURES, 'mamba-tiny'));
    expect(checkpoint.has('nope')).toBe(false);
    expect(() => checkpoint.info('nope')).toThrow(/mamba-tiny: tensor nope is missing/);
    await expect(checkpoint.read('nope', new Uint8Array(1))).rejects.toThrow(FormatError);
    await checkpoint.close();
  });

  const shards = () => cpSync(join(FIXTURES, 'mamba-sharded-bf16'), folder.path, { recursive: true });
  const editIndex = (edit: (map: Record<string, unknown>) => void) => {
    shards();
    const path = folder.at('model.safetensors.index.json');
    const index = JSON.parse(readFileSync(path, 'utf8'));
    edit(index.weight_map);
    writeFileSync(path, JSON.stringify(index));
  };
  const embeddings = 'backbone.embeddings.weight';

  it.each<[string, RegExp, () => void]>([
    [
      'holds no weights',
      /holds no weights, expected one of model.safetensors, .*, pytorch_model.bin/,
      () => {},
    ],
    ['is missing', /is not a folder/, () => rmSync(folder.path, { recursive: true })],
    [
      'has pickled weights that are none',
      /pytorch_model.bin: is not a file that torch.save wrote/,
      () => writeFileSync(folder.at('pytorch_model.bin'), 'x'),
    ],
    [
      'lacks a shard',
      /model-00003-of-00005.safetensors: file does not exist/,
      () => {
        shards();
        rmSync(folder.at('model-00003-of-00005.safetensors'));
      },
    ],
    [
      'has a tensor in another shard than the index says',
      /00002.*: tensor backbone.embeddings.weight is missing, though/,
      () => editIndex((map) => (map[embeddings] = 'model-00002-of-00005.safetensors')),
    ],
    [
      'has an index that leaves the folder',
      /shard of backbone.embeddings.weight is "..\/x"/,
      () => editIndex((map) => (map[embeddings] = '../x')),
    ],
    [
      'has an index that leaves the folder further down',
      /inside of the folder/,
      () => editIndex((map) => (map[embeddings] = 'a/../../x')),
    ],
    [
      'has an index that leaves the folder in Windows',
      /inside of the folder/,
      () => editIndex((map) => (map[embeddings] = 'a\\..\\..\\x')),
    ],
    [
      'has an index with an absolute path',
      /inside of the folder/,
      () => editIndex((map) => (map[embeddings] = '/x')),
    ],
    [
      'has an index with a drive',
      /inside of the folder/,
      () => editIndex((map) => (map[embeddings] = 'C:x')),
    ],
    [
      'has an index with an empty name',
      /inside of the folder/,
      () => editIndex((map) => (map[embeddings] = '')),
    ],
    [
      'has an index with a number',
      /is 5, expected a file name/,
      () => editIndex((map) => (map[embeddings] = 5)),
    ],
    [
      'has an index without weight_map',
      /weight_map is absent/,
      () => writeFileSync(folder.at('model.safetensors.index.json'), '{}'),
    ],
    [
      'has an index of nothing',
      /weight_map is empty/,
      () => writeFileSync(folder.at('model.safetensors.index.json'), '{"weight_map":{}}'),
    ],
  ])('refuses a folder that %s', async (_, message, make) => {
    make();
    await expect(openCheckpoint(folder.path)).rejects.toThrow(FormatError);
    await expect(openCheckpoint(folder.path)).rejects.toThrow(message);
  });

  it('prefers the single file', async () => {
    shards();
    copyFileSync(join(FIXTURES, 'mamba-tiny', 'model.safetensors'), folder.at('model.safetensors'));
    const checkpoint = await openCheckpoint(folder.path);
    expect(checkpoint.info(embeddings).dtype).toBe('F32');
    await checkpoint.close();
  });

  it('finds shards in a folder below', async () => {
    editIndex((map) => {
      for (const name of Object.keys(map)) map[name] = `weights/${map[name]}`;
    });
    mkdirSync(folder.at('weights'));
    cpSync(join(FIXTURES, 'mamba-sharded-bf16'), folder.at('weights'), { recursive: true });
    const checkpoint = await openCheckpoint(folder.path);
    await checkpoint.read(embeddings, new Uint8Array(4));
    await checkpoint.close();
  });
});

describe('readJson', () => {
  const read = (text: string | Uint8Array, options?: { maxBytes?: number }) => {
    writeFileSync(folder.at('config.json'), text);
    return readJson(folder.at('config.json'), options);
  };

  it('reads an object, and infinities as transformers writes them', async () => {
    const config = await read(
      '{"a":[0.0,{"__float__":"Infinity"}],"b":{"__float__":"-Infinity"},"c":{"__float__":"NaN"}}',
    );
    expect(config).toEqual({ a: [0, Infinity], b: -Infinity, c: NaN });
    expect(await read('{"a":{"__float__":"1.5"},"b":{"__float__":"NaN","c":1}}')).toEqual({
      a: { __float__: '1.5' },
      b: { __float__: 'NaN', c: 1 },
    });
  });

  it.each<[string, RegExp, string | Uint8Array]>([
    ['no JSON', /config.json: is not valid JSON/, '{'],
    ['empty', /is not valid JSON/, ''],
    [
      'Python infinities',
      /holds -Infinity, as Python writes it and JSON forbids it/,
      '{"time_step_limit": [0.0, -Infinity]}',
    ],
    ['Python NaN', /holds NaN, as Python writes it/, '{"x": NaN}'],
    ['an array', /top level is an array, expected an object/, '[]'],
    ['a number', /top level is 3/, '3'],
    ['not UTF-8', /is not valid UTF-8/, Uint8Array.of(0x22, 0xff, 0x22)],
    ['a key twice', /"a" occurs twice/, '{"a":1,"b":{"a":[{"a":"a"},{"a":":"}]},"a":2}'],
  ])('refuses a file that is or holds %s', async (_, message, text) => {
    await expect(read(text)).rejects.toThrow(FormatError);
    await expect(read(text)).rejects.toThrow(message);
  });

  it('refuses a file that is too large or missing', async () => {
    await expect(read('{"a":1}', { maxBytes: 6 })).rejects.toThrow(/file is 7 bytes, expected at most 6/);
    await expect(readJson(folder.at('none.json'))).rejects.toThrow(/none.json: file does not exist/);
  });
});
