import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
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
  expect(parse(readFileSync(output, 'utf8')).map(({ threads, name }) => [threads, name])).toEqual([
    [1, '1×8×4×16'],
    [1, '1×8×6×16'],
    [2, '1×8×4×16'],
    [2, '1×8×6×16'],
  ]);
  const svg = readFileSync(plot, 'utf8');
  expect(svg).toMatch(/^<svg xmlns="http:\/\/www.w3.org\/2000\/svg"[^]*<\/svg>\n$/);
  expect(svg.match(/<rect /g)).toHaveLength(1 + 2 + 4); // paper, legend, bars
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
      'shape',
      'model',
      'ms',
      'figures',
      'date',
      'version',
    ]),
  );
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
  expect(stdout).toMatch(/selective_scan +\d/);
});

it.each([
  [['scan', '--threads', '0'], '--threads'],
  [['scan', '--threads', '1,999'], 'At most 256 threads'],
  [['scan', '--dim', '1.5'], '--dim'],
  [['scan', '--dtype', 'f64'], 'f32, bf16, f16'],
  [['scan', '--runs', '1,2'], 'one number'],
  [['prefill', '--lengths', 'x'], '--lengths'],
  [['prefill', '--device', 'tpu'], '--device'],
  [['decode', '--model', '131m'], '131m'],
  [['decode', '--batch', '-1'], '--batch'],
  [['everything'], 'everything'],
])('refuses %j', async (args, message) => {
  const { code, stderr } = await run(['bench', ...args]);
  expect(stderr).toContain(message);
  expect(code).toBe(2);
});
