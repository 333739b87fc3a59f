import { cpSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openCheckpoint } from '../../lib/io/checkpoint';
import { FIXTURES, temporaryFolder } from '../io/folder';
import { run, TEXT_MODEL } from './run';

const folder = temporaryFolder();
const inspect = (...args: string[]) => run(['inspect', ...args]);

/** A copy of the model with `bits` at some elements of one tensor. */
async function damaged(name: string, bits: Readonly<Record<number, number>>): Promise<string> {
  cpSync(TEXT_MODEL, folder.path, { recursive: true });
  const checkpoint = await openCheckpoint(folder.path);
  const { begin } = checkpoint.info(name);
  await checkpoint.close();
  const bytes = readFileSync(folder.at('model.safetensors'));
  for (const [i, value] of Object.entries(bits)) bytes.writeUInt32LE(value, begin + 4 * Number(i));
  writeFileSync(folder.at('model.safetensors'), bytes);
  return folder.path;
}

describe('inspect', () => {
  it('describes a model', async () => {
    const { code, stdout, stderr } = await inspect(TEXT_MODEL);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/^ {2}family +mamba$/m);
    expect(stdout).toMatch(/^ {2}parameters +163,648$/m);
    expect(stdout).toMatch(/^ {2}in memory +639\.3 KiB$/m);
    expect(stdout).toMatch(/^ {2}tokenizer +512 tokens$/m);
    expect(stdout).toMatch(/^ {2}mixer\.dState +16$/m);
    expect(stdout).toMatch(/^ {2}4 {2}backbone\.layers\.\*\.mixer\.A_log +F32 +\[128, 16\] +32\.0 KiB$/m);
  });

  it('lists every tensor on request', async () => {
    const { stdout } = await inspect(TEXT_MODEL, '--tensors');
    expect(stdout).toMatch(/^ {2}backbone\.layers\.3\.mixer\.x_proj\.weight +F32 +\[36, 128\] +18\.0 KiB$/m);
  });

  it('gives everything as JSON', async () => {
    const { code, stdout } = await inspect(TEXT_MODEL, '--json', '--check');
    expect(code).toBe(0);
    const layers = 4;
    const floats = layers * (128 * 3 + 128 * 16) + 512; // convolution, scan, logits
    expect(JSON.parse(stdout)).toMatchObject({
      folder: TEXT_MODEL,
      usable: true,
      family: 'mamba',
      config: { vocabSize: 512, numLayers: layers, mixer: { dInner: 128 } },
      tokenizerVocabSize: 512,
      parameters: 163648,
      memoryBytes: 163648 * 4,
      diskBytes: 163648 * 4,
      stateBytesPerSequence: floats * 4,
      unusual: [],
    });
    expect((JSON.parse(stdout) as { tensors: unknown[] }).tensors).toContainEqual({
      name: 'backbone.norm_f.weight',
      dtype: 'F32',
      shape: [64],
      bytes: 256,
    });
  });

  it('knows shards, and what bf16 weights take', async () => {
    const { code, stdout } = await inspect(join(FIXTURES, 'mamba-sharded-bf16'), '--json');
    const { parameters, memoryBytes, diskBytes } = JSON.parse(stdout) as Record<string, number>;
    expect(code).toBe(0);
    expect(memoryBytes).toBeGreaterThanOrEqual(diskBytes!);
    expect(memoryBytes).toBeLessThan(parameters! * 4);
  });

  it('finds what is not finite', async () => {
    const name = 'backbone.layers.1.mixer.A_log';
    const model = await damaged(name, { 35: 0x7fc00000, 36: 0xff800000, 99: 0x7fc00001 });
    const { code, stdout, stderr } = await inspect(model, '--check');
    expect(code).toBe(1);
    expect(stdout).toMatch(/^ {2}weights +not finite in 1 tensor$/m);
    expect(stderr).toBe(`warning: ${name} holds 2 NaN and 1 infinite values, the first at [2,3]\n`);
    expect(await inspect(model)).toMatchObject({ code: 0, stderr: '' });
    const said = await run(['generate', model, '1,2,3', '--ids', '-n', '2']);
    expect([said.code, said.stderr]).toEqual([
      1,
      "error: the model's logits are not finite; selective-scan inspect --check names weights that are not\n",
    ]);
  });

  it('describes what it can of a model that cannot be used', async () => {
    cpSync(TEXT_MODEL, folder.path, { recursive: true });
    const config = JSON.parse(readFileSync(folder.at('config.json'), 'utf8')) as Record<string, unknown>;
    writeFileSync(folder.at('config.json'), JSON.stringify({ ...config, state_size: 8 }));
    const { code, stdout, stderr } = await inspect(folder.path);
    expect(code).toBe(1);
    expect(stdout).toContain('backbone.embeddings.weight');
    expect(stderr).toMatch(/^error: this model cannot be used: .*mixer\.\w+.* is F32\[.*\n$/);
    const { stdout: json } = await inspect(folder.path, '--json');
    expect(JSON.parse(json)).toMatchObject({
      usable: false,
      reason: expect.stringContaining('mixer') as unknown,
    });
  });

  it.each([
    ['no weights', 'model.safetensors', 1, 'holds no weights'],
    ['no config.json', 'config.json', 1, 'config.json: file does not exist'],
  ])('names what is missing: %s', async (_, file, code, message) => {
    cpSync(TEXT_MODEL, folder.path, { recursive: true });
    rmSync(folder.at(file));
    const ended = await inspect(folder.path);
    expect(ended.code).toBe(code);
    expect(ended.stderr).toContain(message);
  });
});
