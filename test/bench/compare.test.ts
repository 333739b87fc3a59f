import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { chooseCard, expBound } from '../../lib/bench/card';
import { compared, counterpart, parseMeasured, ratioSummary, readMeasured } from '../../lib/bench/compare';
import { jsonLine, type Line } from '../../lib/bench/result';
import type { Device } from '../../lib/device';

const root = join(__dirname, '..', '..');
const gpu = 'compute capability 9.0, driver for CUDA 13.0';
const scan = (over: Partial<Line> = {}): Line => ({
  bench: 'scan_fwd',
  name: '8×1536×2048×16',
  dtype: 'bf16',
  shape: { batch: 8, dim: 1536, length: 2048, state: 16 },
  ms: { median: 0.2, p10: 0.19, p90: 0.21, runs: 5 },
  figures: { exponentials: 4e8, bytes: 2e8, gigaExpPerSecond: 2000, copyGbPerSecond: 3000 },
  device: 'NVIDIA H100 80GB HBM3',
  level: gpu,
  threads: 16,
  version: '0.1.0',
  commit: 'abc1234',
  date: '2026-01-01T00:00:00.000Z',
  ...over,
});
const parse = (text: string) => parseMeasured(Buffer.from(text), 'file');

it("reads the peers' figures, each with its source", async () => {
  const peers = await readMeasured(join(root, 'bench', 'peers', 'h100.json'));
  const count = (bench: string) => peers.filter((one) => one.bench === bench).length;
  expect(
    ['scan_fwd', 'scan_bwd', 'conv_fwd', 'prefill', 'decode_step', 'generate', 'train_step'].map(count),
  ).toEqual([20, 20, 3, 9, 12, 12, 2]);
  const other = counterpart(scan(), peers)!;
  expect(other).toMatchObject({ ms: 0.453, device: 'NVIDIA H100 80GB HBM3' });
  expect(other.source).toMatch(/^state-spaces\/mamba 2\.3\.2, selective_scan_cuda/);
  const line = compared(scan(), other);
  expect(line.figures['timesAsFast']).toBeCloseTo(0.453 / 0.2);
  expect(ratioSummary([line, scan()])).toEqual(['scan_fwd bf16: geometric mean 2.27 x, least 2.27 x, of 1']);
  const step = scan({ bench: 'decode_step', model: '1.4b', shape: { batch: 64, steps: 64 } });
  expect(counterpart(step, peers)?.ms).toBe(3.203);
  expect(counterpart({ ...step, model: '790m' }, peers)).toBeUndefined();
});

it('reads every result that is kept, of today and of before', async () => {
  const results = join(root, 'bench', 'results');
  const files = readdirSync(results, { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.endsWith('.jsonl'),
  );
  expect(files.length).toBeGreaterThan(5);
  for (const file of files) await readMeasured(join(results, file));
  const before = await readMeasured(join(results, 'epyc-zen4-2core', 'scan.jsonl'));
  expect(before[0]).toMatchObject({
    bench: 'scan_fwd',
    threads: 1,
    shape: { batch: 1, dim: 1536, length: 2048 },
  });
});

it('reads what it wrote, and chooses the latest with as many threads', () => {
  const cpu = { level: 'AVX2', threads: 2 };
  const text = [1, 2, 3].map((median) => jsonLine(scan({ ...cpu, ms: { median, p10: 1, p90: 1, runs: 1 } })));
  const others = parse(`${text.join('\n')}\n\n${jsonLine(scan({ ...cpu, threads: 1 }))}`);
  expect(others).toHaveLength(4);
  expect(counterpart(scan(cpu), others)).toMatchObject({ ms: 3, source: 'abc1234' });
  expect(counterpart(scan({ ...cpu, threads: 4 }), others)).toBeUndefined();
  expect(counterpart(scan(), others)).toMatchObject({ ms: 0.2 }); // a GPU's host threads do not matter
  expect(counterpart(scan({ dtype: 'f32' }), others)).toBeUndefined();
  expect(parse(jsonLine(scan()))).toHaveLength(1);
});

const good = { bench: 'scan_fwd', device: 'x', dtype: 'f32', batch: 1, ms: 1 };
const peer = { format: 1, device: 'x', sources: { a: { library: 'l', version: 'v', how: 'h' } } };
const result = { bench: 'scan_fwd', dtype: 'f32', ms: 1, source: 'a' };
it.each<[string, unknown, string]>([
  ['a negative time', { ...good, ms: -1 }, 'file: line 1: ms is -1, expected a number above 0'],
  ['a time in words', { ...good, ms: 'fast' }, 'ms is "fast"'],
  ['no time', { ...good, ms: undefined }, 'ms is absent'],
  ['a dtype', { ...good, dtype: '__proto__' }, 'dtype is "__proto__", expected one of f32'],
  ['a size', { ...good, batch: 1.5 }, 'batch is 1.5, expected a whole number'],
  ['a huge size', { ...good, batch: 1e300 }, 'batch is 1e+300'],
  ['no device', { ...good, device: undefined }, 'device is absent'],
  ['a long device', { ...good, device: 'x'.repeat(300) }, 'expected a text of 1 to 200'],
  ['no threads', { ...good, threads: 0 }, 'threads is 0'],
  ['a bench of no text', { ...good, bench: 5 }, 'bench is 5'],
  ['a former shape', { ...good, ms: { median: 1 }, shape: [] }, 'shape is an array'],
  ['no format', { results: [] }, 'file: format is absent, expected 1'],
  ['no results', { ...peer, results: {} }, 'file: results is an object, expected an array'],
  ['no sources', { ...peer, sources: [], results: [] }, 'file: sources is an array'],
  ['a result of null', { ...peer, results: [null] }, 'file: results[0] is null'],
  ['a strange source', { ...peer, results: [{ ...result, source: 'toString' }] }, 'source is "toString"'],
  ['an unknown bench', { ...peer, results: [{ ...result, bench: 'toString' }] }, 'bench is "toString"'],
])('refuses %s', (_, json, message) => {
  expect(() => parse(JSON.stringify(json))).toThrow(message);
});

it.each([
  ['', 'file: is empty, expected results'],
  ['\n \n', 'is empty'],
  ['[1]', 'expected an object'],
  ['{"a":1}\n{"a"', 'line'],
  [`${JSON.stringify(good)}\n{]`, 'line 2: is not valid JSON'],
  [`${JSON.stringify(good)}\n[]`, 'line 2: top level is an array'],
  ['{"bench":"scan_fwd","ms":1,"ms":2}', '"ms" occurs twice'],
])('refuses the text %j', (text, message) => {
  expect(() => parse(text)).toThrow(message);
});

it('refuses what is no file, and bytes that are no text', async () => {
  await expect(readMeasured(join(root, 'nowhere.json'))).rejects.toThrow('file does not exist');
  await expect(readMeasured(root)).rejects.toThrow('is not a regular file');
  expect(() => parseMeasured(Buffer.from([0x7b, 0xff, 0x7d]), 'file')).toThrow('not valid UTF-8');
});

it('passes over other benches in a file of lines', () => {
  expect(parse(`{"bench":"matmul","lib":"x"}\n${JSON.stringify(good)}`)).toHaveLength(1);
});

it('asks the right card for its clock', () => {
  const text = '0, NVIDIA A, 1410, 5\n1, NVIDIA B, 1980, 7\n2, NVIDIA B, 1755, 0\n';
  expect(chooseCard(text, 'NVIDIA B', 2)).toEqual({ clock: 1755, used: 0 });
  expect(chooseCard(text, 'NVIDIA A', 1)).toEqual({ clock: 1410, used: 5 * 2 ** 20 });
  expect(chooseCard(text, 'NVIDIA B', 0)).toBeUndefined(); // which of the two?
  expect(chooseCard('0, NVIDIA A, [N/A], 5', 'NVIDIA A', 0)).toBeUndefined();
  const device = { id: 'cuda:0', info: { units: 132 } } as Device;
  expect(expBound(device, 1980)).toBeCloseTo(4.18e12, -10);
  expect(expBound({ ...device, id: 'cpu' } as Device, 1980)).toBeUndefined();
});

it('marks the axis of bars with as many labels as fit', () => {
  const bars = (value: number) => ({
    ...{ title: '', subtitle: '', axis: '', groups: ['a'] },
    series: [{ name: 's', bars: [{ value, low: value, high: value }] }],
  });
  const labels = (value: number) => {
    const script = `require('./lib/bench/plot').plot(${JSON.stringify(bars(value))}).then(console.log)`;
    const drawn = run(script);
    const marks = [...drawn.matchAll(/<text x="([\d.]+)" [^>]*text-anchor="middle"[^>]*>([\d,]+)<\/text>/g)];
    return marks.map(([, x, label]) => ({ x: Number(x), half: (8.4 * label!.length) / 2 }));
  };
  for (const value of [6, 2e7, 3e12]) {
    const marks = labels(value);
    expect(marks.length).toBeGreaterThan(1);
    marks.forEach(({ x, half }, i) => {
      if (i > 0) expect(x - half).toBeGreaterThan(marks[i - 1]!.x + marks[i - 1]!.half);
    });
  }
});

/** d3-scale is an ES module, which jest does not load. */
function draw(lines: readonly Line[]): string {
  return run(`require('./lib/bench/roofline').roofline(${JSON.stringify(lines)}).then(console.log)`);
}

function run(script: string): string {
  const typescript = join(root, 'test', 'cli', 'typescript.cjs');
  return execFileSync(process.execPath, ['-r', typescript, '-e', script], { cwd: root, encoding: 'utf8' });
}

it('draws a roofline with a label for each point', () => {
  const figures = { ...scan().figures, boundGigaExpPerSecond: 4182 };
  const many = Array.from({ length: 20 }, (_, i) =>
    scan({
      name: `${i + 1}×1536`,
      dtype: i % 2 ? 'f32' : 'bf16',
      figures: { ...figures, bytes: i % 2 ? 4e8 : 2e8, gigaExpPerSecond: 1500 + 80 * i },
    }),
  );
  const drawn = draw(many);
  expect(drawn).toMatch(/^<svg [^]*<\/svg>\n/);
  expect(drawn).not.toMatch(/NaN|undefined|Infinity/);
  expect(drawn.match(/<circle /g)).toHaveLength(20 + 2);
  expect(drawn).toContain('special functions: 4,182');
  expect(drawn).not.toContain('thread');
  const both = draw([scan({ level: 'AVX2', threads: 1 }), scan({ level: 'AVX2', threads: 2 })]);
  for (const threads of ['1 thread,', '2 threads,']) expect(both).toContain(threads);
  const cpu = draw([scan({ level: 'AVX2' })]);
  expect(cpu).toContain('copy: 3,000 GB/s');
  expect(cpu).not.toMatch(/special functions|NaN|undefined|Infinity/);
});
