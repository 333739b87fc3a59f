/** The model in models/declarations: what it was trained on, what was held out, and what it has learnt. */
import { execFile } from 'node:child_process';
import { copyFileSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { brotliCompressSync } from 'node:zlib';
import { AutoModelForCausalLM, device, evaluate } from '../../lib';
import { run } from '../cli/run';
import { temporaryFolder } from '../io/folder';

const root = join(__dirname, '..', '..');
const folder = join(root, 'models', 'declarations');
const made = temporaryFolder();
const writeCorpus = (to: string) => promisify(execFile)(process.execPath, [join(folder, 'corpus.mjs'), to]);

it('was trained on files that share no passage of 200 bytes with those that were held out', async () => {
  const { stdout } = await writeCorpus(made.path);
  expect(stdout).toMatch(
    /^training: \d+ files, \d+ bytes\nvalidation: \d+ files, \d+ bytes\ntest: \d+ files/,
  );
  const texts = (kind: string) =>
    readdirSync(made.at(kind))
      .filter((name) => name.endsWith('.ts')) // what else is there are copies
      .map((name) => readFileSync(made.at(kind, name), 'latin1'));
  const passages = (kind: string) => {
    const all = new Set<string>();
    for (const text of texts(kind))
      for (let at = 0; at + 200 <= text.length; at++) all.add(text.slice(at, at + 200));
    return all;
  };
  const heldOut = { validation: passages('validation'), test: passages('test') };
  expect(heldOut.test.size).toBeGreaterThan(40_000);
  const shared = (text: string, passages: ReadonlySet<string>) => {
    for (let at = 0; at + 200 <= text.length; at++) if (passages.has(text.slice(at, at + 200))) return true;
    return false;
  };
  const either = new Set([...heldOut.validation, ...heldOut.test]);
  for (const text of texts('training')) expect(shared(text, either)).toBe(false);
  for (const text of texts('validation')) expect(shared(text, heldOut.test)).toBe(false);
});

it('is trained by a command, on that corpus', async () => {
  copyFileSync(join(folder, 'train.json'), made.at('train.json'));
  await writeCorpus(made.at('corpus'));
  const { code, stderr } = await run(['train', '--config', made.at('train.json'), '--dry-run']);
  expect(code).toBe(0);
  expect(stderr).toMatch(/model +mambabyte, 7 layers of 192, vocabulary 256: 1,811,328 parameters\n/);
  expect(stderr).toMatch(/, 32,201 bytes held out\n/);
  expect(stderr).toMatch(/step +8 × 2048 = 16,384 bytes, bf16\n/);
  // The log in the repository is that of such a training.
  const log = readFileSync(join(folder, 'log.jsonl'), 'utf8').trimEnd().split('\n');
  const last = JSON.parse(log.at(-1)!) as { step: number };
  expect(stderr).toContain(`${last.step.toLocaleString('en-US')} steps`);
});

it('is small, and writes declarations', async () => {
  expect(statSync(join(folder, 'model.safetensors')).size).toBeLessThanOrEqual(4_000_000);
  const { demo } = (
    JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { scripts: { demo: string } }
  ).scripts;
  const args = [...demo.matchAll(/"([^"]*)"|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain!);
  expect(args.slice(0, 4)).toEqual(['node', 'dist/cli/main.js', 'generate', 'models/declarations']);
  const { code, stdout } = await run(['generate', folder, ...args.slice(4)]);
  expect(code).toBe(0);
  expect(stdout.length).toBeGreaterThan(200);
  const words = (text: string) => text.match(/[A-Z]?[a-z]{3,}/g)!.map((word) => word.toLowerCase());
  const typescript = join(root, 'node_modules', 'typescript', 'lib', 'lib.dom.d.ts');
  const known = new Set(words(readFileSync(typescript, 'utf8')));
  const written = words(stdout);
  expect(written.filter((word) => known.has(word)).length).toBeGreaterThan(0.9 * written.length);
  expect(stdout).toMatch(/\n +(\/\*\*|readonly |\w+\()/);
  expect(stdout).toMatch(/\w+(\?)?: \w+/);
});

it('predicts a held-out file better than brotli packs it', async () => {
  const text = readFileSync(
    join(root, 'node_modules', 'typescript', 'lib', 'lib.es2015.proxy.d.ts'),
  ).subarray(862);
  const model = await AutoModelForCausalLM.fromPretrained(folder, { device: device() });
  const { bitsPerByte } = await evaluate(model, text);
  expect(bitsPerByte).toBeLessThan((8 * brotliCompressSync(text).length) / text.length);
  model.dispose();
});
