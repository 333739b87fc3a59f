import { execFileSync } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join, resolve } from 'node:path';
import { AutoModelForCausalLM } from '../../lib';
import { FIXTURES, temporaryFolder } from '../io/folder';
import { logitsOf } from '../models/checkpoints';
import { ended, run, start, TEXT_MODEL } from './run';

const folder = temporaryFolder();
const convert = (...args: string[]) => run(['convert', ...args]);
const json = (...path: string[]) =>
  JSON.parse(readFileSync(join(...path), 'utf8')) as Record<string, unknown>;
const tests = join(__dirname, '..');
const BIN = join(FIXTURES, 'mamba-ssm-bin');

async function sameLogits(a: string, b: string): Promise<void> {
  const models = [await AutoModelForCausalLM.fromPretrained(a), await AutoModelForCausalLM.fromPretrained(b)];
  const [left, right] = [await logitsOf(models[0]!, [5, 6, 7]), await logitsOf(models[1]!, [5, 6, 7])];
  expect(left).toEqual(right);
  for (const model of models) model.dispose();
}

describe('convert', () => {
  it('writes an original checkpoint as transformers reads it', async () => {
    const made = folder.at('new', 'model');
    const { code, stdout, stderr } = await convert(BIN, made);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toBe(`${made}: 32 tensors, 450.6 KiB\n`);
    expect(readdirSync(made).sort()).toEqual(['config.json', 'model.safetensors']);
    expect(readdirSync(folder.at('new'))).toEqual(['model']);
    expect(json(made, 'config.json')).toMatchObject({
      model_type: 'mamba',
      architectures: ['MambaForCausalLM'],
    });
    await sameLogits(BIN, made);
  });

  it('takes the tokenizer and what belongs to it along', async () => {
    writeFileSync(folder.at('merges.txt'), 'a b');
    cpSync(TEXT_MODEL, folder.at('source'), { recursive: true });
    cpSync(folder.at('merges.txt'), folder.at('source', 'merges.txt'));
    const { code } = await convert(folder.at('source'), folder.at('made'));
    expect(code).toBe(0);
    const carried = ['generation_config.json', 'merges.txt', 'tokenizer.json', 'tokenizer_config.json'];
    expect(readdirSync(folder.at('made')).sort()).toEqual(
      ['config.json', ...carried, 'model.safetensors'].sort(),
    );
    for (const name of carried.filter((name) => name !== 'generation_config.json')) {
      expect(readFileSync(folder.at('made', name))).toEqual(readFileSync(folder.at('source', name)));
    }
    const generated = await run(['generate', folder.at('made'), 'Once', '--max-new-tokens', '4']);
    expect(generated.code).toBe(0);
  });

  it.each(['f32', 'bf16', 'f16'] as const)('writes %s as loading with it gives', async (dtype) => {
    await convert(join(FIXTURES, 'mamba-sharded-bf16'), folder.at('made'), '--dtype', dtype);
    const made = await AutoModelForCausalLM.fromPretrained(folder.at('made'));
    const loaded = await AutoModelForCausalLM.fromPretrained(join(FIXTURES, 'mamba-sharded-bf16'), { dtype });
    for (const [name, tensor] of loaded.parameters) {
      expect(made.parameters.get(name)!.dtype).toBe(tensor.dtype);
      expect(await made.parameters.get(name)!.data()).toEqual(await tensor.data());
    }
    for (const model of [made, loaded]) model.dispose();
  });

  it('refuses a weight that f16 has no number for', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(BIN);
    const weight = model.parameters.get('backbone.layers.0.mixer.in_proj.weight')!;
    weight.set(new Float32Array(weight.size).fill(7e4));
    await model.savePretrained(folder.at('source'));
    model.dispose();
    const { code, stderr } = await convert(folder.at('source'), folder.at('made'), '--dtype', 'f16');
    expect(code).toBe(1);
    expect(stderr).toMatch(/parameter backbone\.layers\.0\.mixer\.in_proj\.weight holds 70000, expected/);
    expect(readdirSync(folder.path)).toEqual(['source']);
  });

  it('keeps FalconMamba what it is', async () => {
    const source = join(FIXTURES, 'falcon-mamba-tiny');
    await convert(source, folder.at('made'));
    expect(json(folder.at('made'), 'config.json')).toEqual(json(source, 'config.json'));
    await sameLogits(source, folder.at('made'));
  });

  it('writes into an empty folder, and over a model only by --force', async () => {
    mkdirSync(folder.at('made'));
    expect((await convert(BIN, folder.at('made'))).code).toBe(0);
    writeFileSync(folder.at('made', 'notes.txt'), 'mine');
    const before = readFileSync(folder.at('made', 'config.json'), 'utf8');
    const refused = await convert(TEXT_MODEL, folder.at('made'));
    expect(refused.code).toBe(2);
    expect(refused.stderr).toMatch(/made is not empty; --force writes over the files of a model in it/);
    expect(readFileSync(folder.at('made', 'config.json'), 'utf8')).toBe(before);
    expect((await convert(TEXT_MODEL, folder.at('made'), '--force')).code).toBe(0);
    expect(readFileSync(folder.at('made', 'notes.txt'), 'utf8')).toBe('mine');
    await sameLogits(TEXT_MODEL, folder.at('made'));
    expect(readdirSync(folder.path)).toEqual(['made']);
  });

  it('leaves nothing of what it cannot finish', async () => {
    cpSync(BIN, folder.at('source'), { recursive: true });
    const bytes = readFileSync(folder.at('source', 'pytorch_model.bin'));
    writeFileSync(folder.at('source', 'pytorch_model.bin'), bytes.subarray(0, bytes.length / 2));
    const { code, stdout, stderr } = await convert(folder.at('source'), folder.at('made'));
    expect([code, stdout]).toEqual([1, '']);
    expect(stderr).toMatch(/^error: .*pytorch_model.bin: is not a ZIP file that can be read; .*\n$/);
    expect(readdirSync(folder.path)).toEqual(['source']);
  });

  it('leaves nothing at Ctrl-C', async () => {
    // 200 MB, made in a process of its own: jest is slow at that.
    const script = ['--require', join(tests, 'typescript.cjs'), join(tests, 'models', 'peak.ts')];
    mkdirSync(folder.at('source'));
    execFileSync(process.execPath, [...script, folder.at('source'), 'write']);
    const child = start(['convert', folder.at('source'), folder.at('made'), '--dtype', 'f16']);
    child.stdin.end();
    // Once the hidden folder is there; a second Ctrl-C would end the process there and then.
    const watch = setInterval(() => {
      if (readdirSync(folder.path).length === 1) return;
      clearInterval(watch);
      child.kill('SIGINT');
    }, 2);
    const { code, stdout } = await ended(child);
    clearInterval(watch);
    expect([code, stdout, readdirSync(folder.path)]).toEqual([130, '', ['source']]);
  });

  it.each<[string, number, RegExp, () => string[]]>([
    [
      'a model of Mamba-2',
      1,
      /ssm_cfg.layer is "Mamba2"/,
      () => [withConfig({ ssm_cfg: { layer: 'Mamba2' } }), 'made'],
    ],
    [
      'a folder that is a file',
      2,
      /x is a file, expected a folder/,
      () => (writeFileSync(folder.at('x'), ''), [BIN, 'x']),
    ],
    [
      'its own folder',
      2,
      /is the model's own folder, expected another one/,
      () => [withConfig({}), 'source', '--force'],
    ],
    [
      'its own folder by another name',
      2,
      /is the model's own folder/,
      () => [withConfig({}), (symlinkSync(folder.at('source'), folder.at('link')), 'link'), '--force'],
    ],
    ['a model that is not there', 2, /expected a folder that exists/, () => [folder.at('none'), 'made']],
    ['another dtype', 2, /--dtype/, () => [BIN, 'made', '--dtype', 'f64']],
    ['a target without a name', 2, /folder is empty, expected a path/, () => [BIN, '']],
    ['a target that nothing can be in', 2, /cannot be made; /, () => [BIN, join(BIN, 'config.json', 'x')]],
    ['no target', 2, /missing required argument 'folder'/, () => [BIN]],
  ])('refuses %s', async (_, wanted, message, args) => {
    const [source, target, ...rest] = args();
    const { code, stderr } = await convert(
      source!,
      ...(target ? [resolve(folder.path, target)] : target === '' ? [''] : []),
      ...rest,
    );
    expect(stderr).toMatch(message);
    expect(code).toBe(wanted);
    expect(existsSync(folder.at('made'))).toBe(false);
  });
});

/** The original checkpoint with another configuration. */
function withConfig(change: object): string {
  cpSync(BIN, folder.at('source'), { recursive: true });
  writeFileSync(
    folder.at('source', 'config.json'),
    JSON.stringify({ ...json(BIN, 'config.json'), ...change }),
  );
  return folder.at('source');
}
