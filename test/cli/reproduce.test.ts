import { existsSync, readdirSync, readFileSync, truncateSync } from 'node:fs';
import { join } from 'node:path';
import { lockFolder } from '../../lib/io/lock';
import { temporaryFolder } from '../io/folder';
import { ended, run, start } from './run';

const folder = temporaryFolder();
const small = ['--steps', '4', '--rows', '2', '--length', '32', '--test-sequences', '3'];
const reproduce = (...args: string[]) => run(['reproduce', ...args]);

it('trains both kinds of layers, and writes a table, JSON and a plot', async () => {
  const { code, stdout, stderr } = await reproduce(
    ...['induction-heads', ...small, '--test-lengths', '32,64', '--output', folder.at('out')],
  );
  expect([code, stderr]).toEqual([0, '']);
  expect(stdout).toMatch(/^Induction heads: answers .*\n\n {2}length {2}Mamba {2,}S4D {2}Mamba \(paper\)/);
  expect(stdout).toMatch(/\n {6}64 .* 97\.7 /);
  expect(stdout).toMatch(
    /\nMamba: 66,496 parameters, 4 steps of 2 sequences of 32 tokens, learning rate 0.001, seed 4, /,
  );
  expect(readdirSync(folder.at('out')).sort()).toEqual(['mamba', 'results.json', 'results.svg', 's4d']);
  expect(readFileSync(folder.at('out', 'results.svg'), 'utf8')).toMatch(/^<svg/);
});

it('goes on where it ended', async () => {
  const args = ['selective-copying', ...small, '--layers', 'mamba', '--output', folder.at('out'), '--json'];
  const plot = ['--plot', folder.at('plot.svg')];
  type Written = { runs: { recipe: object; curve: object[]; tests: { length: number }[] }[] };
  const first = JSON.parse((await reproduce(...args)).stdout) as Written;
  expect(first.runs).toHaveLength(1);
  expect(first.runs[0]).toMatchObject({ recipe: { steps: 4, rows: 2 }, tests: [{ length: 32 }] });
  expect(first.runs[0]!.curve).toHaveLength(4);
  const again = JSON.parse((await reproduce(...args, ...plot)).stdout) as Written;
  expect(again).toEqual(first); // no step was left
  expect(readFileSync(folder.at('plot.svg'), 'utf8')).toMatch(/^<svg/);
  const other = await reproduce(...args, '--seed', '3');
  expect(other.code).toBe(1);
  expect(other.stderr).toMatch(/^error: .*take another folder\n$/);
});

it('refuses fewer steps than are done, before any work, and goes on with more', async () => {
  const args = ['induction-heads', ...small, '--layers', 's4d,mamba', '--test-lengths', '32'];
  const out = ['--output', folder.at('out'), '--json'];
  expect((await reproduce(...args, '--layers', 'mamba', ...out)).code).toBe(0);
  const results = readFileSync(folder.at('out', 'results.json'), 'utf8');
  const { code, stdout, stderr } = await reproduce(...args, '--steps', '3', ...out);
  expect([code, stdout]).toEqual([2, '']);
  expect(stderr).toBe(
    `error: --steps is 3, expected 4 or more; so many are done in ${folder.at('out', 'mamba')}, take another --output for fewer\n`,
  );
  expect(readFileSync(folder.at('out', 'results.json'), 'utf8')).toBe(results);
  expect(readdirSync(folder.at('out'))).not.toContain('s4d');
  const more = await reproduce(...args, '--layers', 'mamba', '--steps', '5', ...out);
  expect([more.code, JSON.parse(more.stdout)]).toMatchObject([0, { runs: [{ recipe: { steps: 5 } }] }]);
});

it('does not begin anew where all checkpoints are damaged', async () => {
  const args = ['induction-heads', ...small, '--layers', 'mamba', '--output', folder.at('out')];
  expect((await reproduce(...args)).code).toBe(0);
  const own = folder.at('out', 'mamba');
  for (const name of readdirSync(own))
    if (name.startsWith('step-')) truncateSync(join(own, name, 'training.json'), 9);
  const before = readdirSync(own);
  const { code, stderr } = await reproduce(...args);
  expect(code).toBe(1);
  expect(stderr).toContain(
    `error: ${own}: all of its 2 checkpoints are damaged; to begin the training anew, move that folder away first, or take another\n`,
  );
  expect(readdirSync(own)).toEqual(before);
});

it.each([
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const)('saves at %s, and goes on from there', async (signal, code) => {
  const args = ['induction-heads', ...small, '--layers', 'mamba', '--output', folder.at('out')];
  const child = start(['reproduce', ...args, '--steps', '100000']);
  const end = ended(child);
  const log = folder.at('out', 'mamba', 'log.jsonl');
  while (!existsSync(log) && child.exitCode === null) await new Promise((done) => setTimeout(done, 20));
  child.kill(signal);
  expect((await end).code).toBe(code);
  expect(readdirSync(folder.at('out'))).toEqual(['mamba']);
  const [saved] = readdirSync(folder.at('out', 'mamba')).filter((name) => name.startsWith('step-'));
  const again = await reproduce(...args, '--steps', String(Number(saved!.slice(5)) + 1), '--json');
  expect([again.code, again.stderr]).toEqual([0, '']);
});

it('leaves a folder alone that another process is in', async () => {
  const lock = await lockFolder(folder.at('out'));
  const args = ['induction-heads', ...small, '--output', folder.at('out')];
  const { code, stderr } = await reproduce(...args);
  expect([code, stderr]).toEqual([1, expect.stringContaining(`out: is in use by process ${process.pid}`)]);
  expect(readdirSync(folder.at('out'))).toEqual(['.lock']);
  await lock.release();
  expect(existsSync(folder.at('out'))).toBe(false);
});

it.each([
  [['parity'], /Allowed choices are induction-heads, selective-copying/],
  [['induction-heads', '--steps', '1,2'], /argument '1,2' is invalid. It is not a whole number from 1 on\./],
  [['induction-heads', '--plot', '/nowhere/x.svg'], /^error: --plot: folder \/nowhere does not exist or/],
  [['induction-heads', '--output', __filename], /^error: --output: .* is a file, expected a folder\n/],
  [['induction-heads', '--layers', 'h3'], /It is not a list of some of mamba, s4d/],
  [['induction-heads', '--seed', '-1'], /^error: --seed is -1, expected a whole number from 0 to 1048575\n/],
  [['selective-copying', '--length', '20'], /^error: --length has 20, expected 32 to 16777216 tokens\n/],
  [['induction-heads', '--test-lengths', '2'], /^error: --test-lengths has 2, expected 3 to/],
  [
    ['induction-heads', '--rows', '99999999'],
    /^error: --rows is 99999999, expected at most 268435456 tokens/,
  ],
])('refuses %p', async (args, message) => {
  const { code, stderr } = await reproduce(args[0]!, '--output', folder.at('out'), ...args.slice(1));
  expect([code, stderr]).toEqual([2, expect.stringMatching(message)]);
  expect(readdirSync(folder.path)).toEqual([]);
});
