import { barsOf } from '../../lib/bench/plot';
import { digits, jsonLine, origin, tableRows, type Line } from '../../lib/bench/result';

const line = (name: string, threads: number, figures: Record<string, number>): Line => ({
  bench: 'prefill',
  name,
  dtype: 'f32',
  shape: { batch: 1 },
  ms: { median: 10, p10: 8, p90: 20, runs: 3 },
  figures,
  device: 'a processor',
  level: 'AVX2',
  threads,
  version: '1.2.3',
  commit: 'abc1234',
  date: '2026-01-01T00:00:00.000Z',
});

it('writes flat lines, with the median as ms', () => {
  const { ms: _, shape: __, name: ___, ...rest } = line('a', 2, { x: 1 });
  expect(JSON.parse(jsonLine(line('a', 2, { x: 1 })))).toEqual({
    ...rest,
    batch: 1,
    ms: 10,
    p10: 8,
    p90: 20,
    runs: 3,
  });
});

it('colours by dtype where threads do not matter', () => {
  const gpu = { level: 'compute capability 9.0, driver for CUDA 13.0' };
  const lines = [
    { ...line('a', 16, { x: 1 }), ...gpu },
    { ...line('a', 16, { x: 2 }), ...gpu, dtype: 'bf16' as const },
  ];
  expect(barsOf(lines, '', '', 'x').series.map(({ name }) => name)).toEqual(['f32', 'bf16']);
  expect(tableRows(lines)[0]).not.toContain('threads');
});

it('writes numbers in three digits', () => {
  expect([0, 0.012345, 1.5, 99.44, 123.4, 1234567].map(digits)).toEqual([
    '0',
    '0.0123',
    '1.5',
    '99.4',
    '123',
    '1,234,567',
  ]);
  expect(digits(Infinity)).toBe('Infinity');
});

it('leaves out columns that no line fills', () => {
  const rows = tableRows([line('a', 1, { tokensPerSecond: 100 }), line('b', 2, { shareOfRead: 0.5 })]);
  expect(rows).toEqual([
    ['', 'dtype', 'threads', 'ms', 'p10', 'p90', 'tokens/s', '% of read'],
    ['a', 'f32', '1', '10', '8', '20', '100', ''],
    ['b', 'f32', '2', '10', '8', '20', '', '50'],
  ]);
});

it('groups by name and colours by threads', () => {
  const lines = [line('a', 1, { x: 100 }), line('b', 1, { x: 50 }), line('a', 2, { x: 200 })];
  const bars = barsOf(lines, 'Title', 'things', 'x');
  expect(bars.groups).toEqual(['a', 'b']);
  expect(bars.series).toEqual([
    {
      name: '1 thread',
      bars: [
        { value: 100, low: 50, high: 125 },
        { value: 50, low: 25, high: 62.5 },
      ],
    },
    { name: '2 threads', bars: [{ value: 200, low: 100, high: 250 }, undefined] },
  ]);
  expect(bars.subtitle).toBe('a processor, AVX2, f32, selective-scan 1.2.3');
});

it('says which version was measured', () => {
  const { version, commit, date } = origin();
  expect(commit).toMatch(/^([0-9a-f]{7,}(-dirty)?|v\d.*)$/);
  expect(version).toMatch(/^\d+\.\d+\.\d+/);
  expect(Date.parse(date)).not.toBeNaN();
});
