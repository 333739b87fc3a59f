import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { IDS_MODEL, run } from '../cli/run';

const small = ['--batch', '1', '--dim', '8', '--length', '4,6', '--runs', '2'];
const parse = (text: string) =>
  text
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>);

let folder: string;
beforeEach(() => (folder = mkdtempSync(join(tmpdir(), 'bench-'))));
afterEach(() => rmSync(folder, { recursive: true }));

it('writes a table, a file of JSON lines and a plot', async () => {
  const [output, plot] = [join(folder, 'scan.jsonl'), join(folder, 'scan.svg')];
  const { code, stdout, stderr } = await run([
    'bench',
    'scan',
    ...small,
    '--threads',
    '1,2',
    '--output',
    output,
    '--plot',
    plot,
  ]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout.split('\n').filter((line) => /1×8×[46]×16 +f32 +[12] /.test(line))).toHaveLength(4);
  expect(
    parse(readFileSync(output, 'utf8')).map(({ threads, batch, dim, length, state, bench }) => [
      threads,
      `${bench} ${batch}×${dim}×${length}×${state}`,
    ]),
  ).toEqual([
    [1, 'scan_fwd 1×8×4×16'],
    [1, 'scan_fwd 1×8×6×16'],
    [2, 'scan_fwd 1×8×4×16'],
    [2, 'scan_fwd 1×8×6×16'],
  ]);
  const svg = readFileSync(plot, 'utf8');
  expect(svg).toMatch(/^<svg xmlns="http:\/\/www.w3.org\/2000\/svg"[^]*<\/svg>\n$/);
  expect(svg.match(/<circle /g)).toHaveLength(4 + 1); // points, legend
  expect(svg).not.toMatch(/NaN|undefined|Infinity/);
});

it('writes nothing but JSON with --json', async () => {
  const { code, stdout } = await run([
    'bench',
    'prefill',
    '--model',
    IDS_MODEL,
    '--lengths',
    '5',
    '--runs',
    '2',
    '--json',
  ]);
  expect(code).toBe(0);
  const [line, ...more] = parse(stdout);
  expect(more).toEqual([]);
  expect(Object.keys(line!)).toEqual(
    expect.arrayContaining([
      'bench',
      'device',
      'level',
      'threads',
      'dtype',
      'batch',
      'length',
      'commit',
      'model',
      'ms',
      'figures',
      'date',
      'version',
    ]),
  );
});

it('writes into a folder, compares with it, and warns of another device', async () => {
  const args = [
    'bench',
    'conv',
    '--batch',
    '1',
    '--dim',
    '8',
    '--length',
    '4',
    '--runs',
    '2',
    '--dtype',
    'f32,bf16',
  ];
  const first = await run([...args, '--output', folder]);
  expect(first.code).toBe(0);
  const file = join(folder, 'conv.jsonl');
  const lines = readFileSync(file, 'utf8').trim().split('\n');
  expect(lines.map((line) => (JSON.parse(line) as { dtype: string }).dtype)).toEqual(['f32', 'bf16']);
  writeFileSync(file, `${JSON.stringify({ ...parse(lines[0]!)[0], device: 'an\x1b other', ms: 1e6 })}\n`);
  const { code, stdout, stderr } = await run([
    ...args,
    '--compare',
    file,
    '--plot',
    join(folder, 'conv.svg'),
  ]);
  expect(code).toBe(0);
  expect(stdout).toMatch(/their ms +× as fast/);
  expect(stderr).toContain('warning: --compare: times of an\\x1b other');
  expect(stderr).toContain('1 of 2 have no counterpart');
  expect(stderr).toMatch(/compared: conv_fwd f32: geometric mean \d+/);
});

it('times generate, and the unfused scan', async () => {
  const generated = await run([
    'bench',
    'generate',
    '--model',
    IDS_MODEL,
    '--new-tokens',
    '3',
    '--runs',
    '1',
    '--json',
  ]);
  expect(parse(generated.stdout)).toMatchObject([
    { bench: 'generate', batch: 1, newTokens: 3 },
    { bench: 'generate', batch: 8 },
  ]);
  const scans = await run(['bench', 'scan', ...small, '--reference', '--json']);
  expect(parse(scans.stdout).map(({ bench }) => bench)).toEqual([
    'scan_fwd',
    'scan_steps',
    'scan_fwd',
    'scan_steps',
  ]);
});

it('refuses a hostile file to compare with, before any work', async () => {
  const file = join(folder, 'hostile.json');
  writeFileSync(file, '{"bench":"scan_fwd","device":"x","dtype":"f32","ms":0}');
  const { code, stdout, stderr } = await run(['bench', 'scan', ...small, '--compare', file]);
  expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
  expect(stderr).toMatch(/^error: --compare: .*line 1: ms is 0, expected a number above 0/);
});

it('breaks a decode step down', async () => {
  const { code, stdout } = await run([
    'bench',
    'decode',
    '--model',
    IDS_MODEL,
    '--steps',
    '2',
    '--runs',
    '2',
    '--batch',
    '2',
    '--breakdown',
  ]);
  expect(code).toBe(0);
  expect(stdout).toContain('% outside kernels');
  expect(stdout).toMatch(/mamba_step +\d/);
});

it.each([
  [['scan', '--threads', '0'], '--threads'],
  [['scan', '--runs', '1,2'], "'1,2' is invalid. It is not a whole number from 1 on."],
  [
    ['scan', '--batch', '1000', '--dim', '1e6', '--length', '1e6'],
    '--batch, --dim and --length are 1000, 1000000 and 1000000, expected a product of at most 4294967296',
  ],
  [['train', '--state-dtype', 'bf16'], "unknown option '--state-dtype'"],
  [['scan', '--plot', 'no/such/x.svg'], '--plot: folder'],
  [['scan', '--output', 'no/such/x.jsonl'], '--output: folder'],
  [['scan', '--threads', '1,999'], 'At most 256 threads'],
  [['scan', '--dim', '1.5'], '--dim'],
  [['scan', '--dtype', 'f64'], 'f32, bf16, f16'],
  [['prefill', '--lengths', 'x'], '--lengths'],
  [['prefill', '--device', 'tpu'], '--device'],
  [['decode', '--model', '131m'], '131m'],
  [['decode', '--batch', '-1'], '--batch'],
  [['generate', '--new-tokens', '0'], '--new-tokens'],
  [['conv', '--width', 'x'], '--width'],
  [['prefill', '--model', '130m,'], 'empty name'],
  [['everything'], 'everything'],
])('refuses %j', async (args, message) => {
  const { code, stderr } = await run(['bench', ...args]);
  expect(stderr).toContain(message);
  expect(code).toBe(2);
});

it('times gradients of scans, and refuses to train what is no preset', async () => {
  const scans = await run(['bench', 'scan-backward', ...small, '--json', '--output', folder]);
  expect(parse(scans.stdout).map(({ bench, length }) => [bench, length])).toEqual([
    ['scan_bwd', 4],
    ['scan_bwd', 6],
  ]);
  expect(parse(readFileSync(join(folder, 'scan_bwd.jsonl'), 'utf8'))).toEqual(parse(scans.stdout));
  const { code, stderr } = await run(['bench', 'train', '--model', IDS_MODEL]);
  expect(code).toBe(2);
  expect(stderr).toMatch(/^error: --model is .*, expected 130m, /);
});
