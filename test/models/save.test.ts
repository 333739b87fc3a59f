import { cpSync, lstatSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { open as openFile, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';
import { AutoModelForCausalLM, DisposedError, rowsToBatch, Trainer } from '../../lib';
import { familyOf } from '../../lib/models';
import { FIXTURES, inUse, logitsOf, open, temporaryFolder, tinyConfig } from './checkpoints';

const folder = temporaryFolder();
const json = (...path: string[]) =>
  JSON.parse(readFileSync(join(...path), 'utf8')) as Record<string, unknown>;
const load = (path: string) => AutoModelForCausalLM.fromPretrained(path);

/** Names, dtypes and shapes in a safetensors file. */
function header(path: string) {
  const bytes = readFileSync(path);
  const { __metadata__: metadata, ...tensors } = JSON.parse(
    bytes.toString('utf8', 8, 8 + Number(bytes.readBigUInt64LE())),
  ) as Record<string, { dtype: string; shape: number[] }>;
  const entries = Object.entries(tensors).map(([name, { dtype, shape }]): [string, string] => [
    name,
    `${dtype}[${shape.join(',')}]`,
  ]);
  return { metadata, tensors: Object.fromEntries(entries) };
}

describe('savePretrained', () => {
  it.each(['mamba-tiny', 'mamba-odd', 'mamba-sharded-bf16', 'mamba-text', 'falcon-mamba-tiny'])(
    'writes %s so that it loads again',
    async (name) => {
      const model = await AutoModelForCausalLM.fromPretrained(join(FIXTURES, name));
      await model.savePretrained(folder.at('new', 'folder'));
      const again = await load(folder.at('new', 'folder'));
      expect(await logitsOf(again, [1, 2, 3])).toEqual(await logitsOf(model, [1, 2, 3]));
      expect([...again.parameters].map(([key, { dtype }]) => [key, dtype])).toEqual(
        [...model.parameters].map(([key, { dtype }]) => [key, dtype]),
      );
      expect(json(folder.at('new', 'folder', 'config.json'))).toEqual(json(FIXTURES, name, 'config.json'));
      expect(json(folder.at('new', 'folder', 'generation_config.json'))).toEqual(
        json(FIXTURES, name, 'generation_config.json'),
      );
      expect(again.tokenizer?.encode('naïve 😀')).toEqual(model.tokenizer?.encode('naïve 😀'));
      for (const made of [model, again]) made.dispose();
    },
  );

  it.each(['mamba-tiny', 'mamba-odd', 'falcon-mamba-tiny'])(
    'writes the tensors that transformers wrote for %s',
    async (name) => {
      const model = await open(name);
      await model.savePretrained(folder.path);
      model.dispose();
      const [ours, theirs] = [folder.path, join(FIXTURES, name)].map((path) =>
        header(join(path, 'model.safetensors')),
      );
      expect(ours!.metadata).toEqual({ format: 'pt' });
      expect(ours!.tensors).toEqual(theirs!.tensors);
    },
  );

  it.each(['mamba-tiny', 'mamba-odd', 'falcon-mamba-tiny'])(
    'writes after training on from %s what transformers wrote, with other numbers',
    async (name) => {
      const trainer = await Trainer.fromPretrained(join(FIXTURES, name), { steps: 1, learningRate: 1e-3 });
      await trainer.step(rowsToBatch([[1, 2, 3, 4, 5]]));
      await trainer.save(folder.path);
      trainer.dispose();
      const [ours, theirs] = [folder.path, join(FIXTURES, name)].map((path) =>
        header(join(path, 'model.safetensors')),
      );
      expect(ours).toEqual(theirs);
      for (const file of ['config.json', 'generation_config.json'])
        expect(json(folder.at(file))).toEqual(json(FIXTURES, name, file));
      expect(readFileSync(folder.at('model.safetensors'))).not.toEqual(
        readFileSync(join(FIXTURES, name, 'model.safetensors')),
      );
    },
  );

  it.each(['mamba-tiny', 'falcon-mamba-tiny'])(
    'writes after training from sizes alone what transformers writes for %s',
    async (name) => {
      const full = json(FIXTURES, name, 'config.json');
      const sizes = ['model_type', 'vocab_size', 'hidden_size', 'num_hidden_layers'];
      const ids = ['bos_token_id', 'eos_token_id', 'pad_token_id'];
      const asked = Object.fromEntries([...sizes, ...ids].map((field) => [field, full[field]]));
      const trainer = await Trainer.fromConfig(asked, { steps: 1, learningRate: 1e-3 });
      await trainer.step(rowsToBatch([[1, 2, 3, 4, 5]]));
      await trainer.save(folder.path);
      trainer.dispose();
      expect(header(folder.at('model.safetensors'))).toEqual(
        header(join(FIXTURES, name, 'model.safetensors')),
      );
      // No field has another name or value, and each that is left out means what transformers says of it.
      const saved = json(folder.at('config.json'));
      expect(full).toMatchObject(saved);
      const { json: _ours, ...read } = familyOf(saved).config;
      const { json: _theirs, ...wanted } = familyOf(full).config;
      expect(read).toEqual(wanted);
    },
  );

  describe('over a sharded checkpoint', () => {
    const sharded = async () => {
      cpSync(join(FIXTURES, 'mamba-sharded-bf16'), folder.at('model'), { recursive: true });
      return await load(folder.at('model'));
    };
    const index = () => folder.at('model', 'model.safetensors.index.json');

    it('removes the shards and their index, and nothing else', async () => {
      const model = await sharded();
      writeFileSync(folder.at('model', 'model-00009-of-00009.safetensors'), 'another one’s');
      await model.savePretrained(folder.at('model'));
      expect(readdirSync(folder.at('model')).sort()).toEqual([
        'config.json',
        'expected.safetensors',
        'generation_config.json',
        'model-00009-of-00009.safetensors',
        'model.safetensors',
      ]);
      const again = await load(folder.at('model'));
      expect(await logitsOf(again, [1, 2, 3])).toEqual(await logitsOf(model, [1, 2, 3]));
      for (const made of [model, again]) made.dispose();
    });

    it('never removes the new weights, or what is no shard', async () => {
      const model = await sharded();
      const names = ['model.safetensors', './model.safetensors', 'config.json', 'notes.txt'];
      writeFileSync(folder.at('model', 'notes.txt'), 'mine');
      writeFileSync(index(), JSON.stringify({ weight_map: Object.fromEntries(names.entries()) }));
      await model.savePretrained(folder.at('model'));
      (await load(folder.at('model'))).dispose();
      expect(readFileSync(folder.at('model', 'notes.txt'), 'utf8')).toBe('mine');
      model.dispose();
    });

    it.each(['no JSON', '{"weight_map":{"a":"../../outside.safetensors"}}'])(
      'leaves everything to an index like %s',
      async (text) => {
        const model = await sharded();
        writeFileSync(index(), text);
        writeFileSync(folder.at('outside.safetensors'), 'mine');
        const before = readdirSync(folder.at('model'));
        await model.savePretrained(folder.at('model'));
        expect(readdirSync(folder.at('model')).sort()).toEqual([...before, 'model.safetensors'].sort());
        expect(readFileSync(folder.at('outside.safetensors'), 'utf8')).toBe('mine');
        model.dispose();
      },
    );

    it('keeps them when the new weights cannot be written', async () => {
      const model = await sharded();
      const before = readdirSync(folder.at('model')).sort();
      mkdirSync(folder.at('model', 'model.safetensors'));
      await expect(model.savePretrained(folder.at('model'))).rejects.toThrow();
      expect(readdirSync(folder.at('model')).sort()).toEqual([...before, 'model.safetensors'].sort());
      model.dispose();
    });
  });

  it('writes as floats what transformers does, which refuses an int in their place', async () => {
    const numbers = (path: string) =>
      [...readFileSync(path, 'utf8').matchAll(/^ {2}"(\w+)": (-?[\d.]+(?:e[-+]?\d+)?),?$/gm)].map(
        ([, name, value]) => `${name} ${/[.e]/.test(value!) ? 'float' : 'int'} ${Number(value)}`,
      );
    for (const name of ['mamba-tiny', 'mamba-odd', 'falcon-mamba-tiny']) {
      const model = await open(name);
      await model.savePretrained(folder.path);
      model.dispose();
      for (const file of ['config.json', 'generation_config.json'])
        expect(numbers(folder.at(file)).sort()).toEqual(numbers(join(FIXTURES, name, file)).sort());
      expect(numbers(folder.at('config.json'))).toContain('time_step_scale float 1');
    }
    const generation = { temperature: 1, top_p: 1, top_k: 50, eos_token_id: 2 };
    const source = folder.at('source');
    cpSync(join(FIXTURES, 'mamba-tiny'), source, { recursive: true });
    writeFileSync(join(source, 'generation_config.json'), JSON.stringify(generation));
    const model = await load(source);
    await model.savePretrained(folder.path);
    model.dispose();
    expect(numbers(folder.at('generation_config.json'))).toEqual([
      ...['temperature float 1', 'top_p float 1', 'top_k int 50', 'eos_token_id int 2'],
    ]);
  });

  it('says of a fresh model what transformers asks for', async () => {
    for (const [dtype, name, stored] of [
      ['f32', 'float32', 'F32'],
      ['bf16', 'bfloat16', 'BF16'],
      ['f16', 'float16', 'F16'],
    ] as const) {
      const model = await AutoModelForCausalLM.fromConfig(tinyConfig, { dtype });
      await model.savePretrained(folder.path);
      model.dispose();
      expect(json(folder.path, 'config.json')).toEqual({
        ...tinyConfig,
        architectures: ['MambaForCausalLM'],
        dtype: name,
      });
      expect(header(folder.at('model.safetensors')).tensors).toMatchObject({
        'backbone.embeddings.weight': `${stored}[256,64]`,
        'backbone.layers.0.mixer.A_log': 'F32[128,16]',
        'backbone.layers.0.mixer.conv1d.weight': 'F32[128,1,4]',
      });
    }
  });

  it('keeps an older field for the dtype up to date', async () => {
    const model = await AutoModelForCausalLM.fromConfig(
      { ...tinyConfig, torch_dtype: 'float32' },
      { dtype: 'bf16' },
    );
    await model.savePretrained(folder.path);
    model.dispose();
    expect(json(folder.path, 'config.json')).toMatchObject({ torch_dtype: 'bfloat16' });
  });

  it('replaces what was there, the folder it came from included', async () => {
    const first = await AutoModelForCausalLM.fromConfig(tinyConfig, { seed: 1 });
    await first.savePretrained(folder.path);
    const loaded = await load(folder.path);
    await loaded.savePretrained(folder.path);
    const second = await AutoModelForCausalLM.fromConfig(tinyConfig, { seed: 2 });
    await second.savePretrained(folder.path);
    const again = await load(folder.path);
    expect(await logitsOf(loaded, [1])).toEqual(await logitsOf(first, [1]));
    expect(await logitsOf(again, [1])).toEqual(await logitsOf(second, [1]));
    expect(readdirSync(folder.path).sort()).toEqual(['config.json', 'model.safetensors']);
    for (const model of [first, loaded, second, again]) model.dispose();
  });

  it('leaves what links lead to, as in a snapshot of the hub', async () => {
    const [blobs, snapshot] = [folder.at('blobs'), folder.at('snapshots', 'main')];
    cpSync(join(FIXTURES, 'mamba-text'), blobs, { recursive: true });
    cpSync(join(FIXTURES, 'mamba-sharded-bf16', 'model.safetensors.index.json'), join(blobs, 'index'));
    mkdirSync(snapshot, { recursive: true });
    const contents = () => readdirSync(blobs).map((name) => [name, readFileSync(join(blobs, name), 'hex')]);
    const before = contents();
    for (const [name] of before)
      symlinkSync(
        join('..', '..', 'blobs', name!),
        join(snapshot, name === 'index' ? 'model.safetensors.index.json' : name!),
      );
    const model = await open('mamba-tiny');
    await model.savePretrained(snapshot);
    expect(contents()).toEqual(before);
    const files = ['config.json', 'generation_config.json', 'model.safetensors'];
    for (const name of files) expect(lstatSync(join(snapshot, name)).isFile()).toBe(true);
    expect(readdirSync(snapshot)).not.toContain('model.safetensors.index.json');
    for (const name of files.slice(0, 2))
      expect(json(snapshot, name)).toEqual(json(FIXTURES, 'mamba-tiny', name));
    model.dispose();
  });

  it('leaves the old file when the disk is full', async () => {
    const model = await AutoModelForCausalLM.fromConfig(tinyConfig, { seed: 1 });
    await model.savePretrained(folder.path);
    const other = await AutoModelForCausalLM.fromConfig(tinyConfig, { seed: 2 });
    const file = await openFile(folder.at('config.json'));
    const prototype = Object.getPrototypeOf(file) as FileHandle;
    await file.close();
    const before = inUse();
    for (const writes of [0, 1, 5]) {
      let left = writes;
      const original = prototype.write as unknown as (...args: unknown[]) => Promise<unknown>;
      const full = jest.spyOn(prototype, 'write').mockImplementation(function (
        this: unknown,
        ...args: unknown[]
      ) {
        if (left-- > 0) return original.apply(this, args);
        const error = new Error('ENOSPC: no space left on device, write');
        return Promise.reject(Object.assign(error, { code: 'ENOSPC', syscall: 'write' }));
      } as typeof prototype.write);
      await expect(other.savePretrained(folder.path)).rejects.toThrow(
        /model\.safetensors: cannot be written, the disk is full; what was there before is unchanged/,
      );
      full.mockRestore();
    }
    expect(inUse()).toEqual(before);
    expect(readdirSync(folder.path).sort()).toEqual(['config.json', 'model.safetensors']);
    const again = await load(folder.path);
    expect(await logitsOf(again, [1])).toEqual(await logitsOf(model, [1]));
    for (const made of [model, other, again]) made.dispose();
  });

  it('refuses a folder that is a file', async () => {
    const model = await AutoModelForCausalLM.fromConfig(tinyConfig);
    writeFileSync(folder.at('taken'), 'precious');
    await expect(model.savePretrained(folder.at('taken'))).rejects.toThrow(
      /savePretrained: .*taken is a file, expected a folder/,
    );
    await expect(model.savePretrained(folder.at('taken', 'below'))).rejects.toThrow();
    expect(readFileSync(folder.at('taken'), 'utf8')).toBe('precious');
    model.dispose();
    await expect(model.savePretrained(folder.path)).rejects.toBeInstanceOf(DisposedError);
  });
});
