import { execFile } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { FIXTURES, temporaryFolder } from './io/folder';

const examples = join(__dirname, '..', 'examples');
const folder = temporaryFolder();

/** What an example writes. */
async function output(name: string, ...args: string[]): Promise<string> {
  const script = ['-r', join(__dirname, 'typescript.cjs'), join(examples, name), ...args];
  return (await promisify(execFile)(process.execPath, script)).stdout;
}
const fixture = (name: string) => join(FIXTURES, name);

it('are under 60 lines each', () => {
  for (const name of readdirSync(examples))
    expect([name, readFileSync(join(examples, name), 'utf8').split('\n').length < 60]).toEqual([name, true]);
});

it('mambabyte', async () => {
  const text = await output('mambabyte.ts');
  expect(text).toMatch(/\n40 bytes\n[0-9a-f]{16}\n\d\.\d{3} bits per byte of 52 bytes\n$/);
});

it('falcon-mamba', async () => {
  expect(await output('falcon-mamba.ts')).toMatch(
    /^falcon_mamba, \d+ parameters\n(\d+ ?){16}\n\d+ bytes remember 19 tokens\n/,
  );
  expect(await output('falcon-mamba.ts', fixture('falcon-mamba-tiny'))).toMatch(/bytes remember 19 tokens\n/);
});

it('speculative', async () => {
  const text = await output('speculative.ts');
  expect(text).toMatch(
    /^64 calls of the model, 0 of 0 .*\n\d\d? calls .*\nthe same tokens: true\n\d\d? calls /,
  );
  const [plain, exact] = [...text.matchAll(/^(\d+) calls/gm)].map((match) => Number(match[1]));
  expect(exact).toBeLessThan(plain!);
  const words = fixture('mamba-text');
  expect(await output('speculative.ts', words, words)).toContain('the same tokens: true');
});

it('original-checkpoint', async () => {
  const text = await output('original-checkpoint.ts', fixture('mamba-ssm-bin'), folder.at('made'));
  expect(text).toMatch(/^mamba, \d+ parameters\n/);
  expect(readdirSync(folder.at('made'))).toEqual(
    expect.arrayContaining(['config.json', 'model.safetensors']),
  );
});

it('train', async () => {
  const text = await output('train.ts', join(folder.path, 'trained'), '12');
  expect(text).toMatch(
    /^\d+ parameters, \d+ bytes to learn from\nstep 1: \d\.\d{3} bits per byte of held-out/,
  );
  expect(text).toMatch(/step 12: .*\ncurves: .*curves\.html\n[^]+$/);
});
