import { lines } from '../../lib/plot/lines';
import { linear, logarithmic, tickLabel } from '../../lib/plot/scale';

const marks = (scale: ReturnType<typeof linear>) => scale.ticks.map(({ label }) => label);

describe('a scale', () => {
  it.each<[number, number, string[]]>([
    [0, 1, ['0', '0.2', '0.4', '0.6', '0.8', '1.0']],
    [1.02, 5.9, ['1', '2', '3', '4', '5', '6']],
    [0, 12_345, ['0', '5,000', '10,000', '15,000']],
    [0.00051, 0.00052, ['0.000510', '0.000512', '0.000514', '0.000516', '0.000518', '0.000520']],
    [-3, 3, ['-4', '-2', '0', '2', '4']],
  ])('marks %d to %d', (low, high, wanted) => {
    expect(marks(linear([low, high], [0, 100], { nice: true }))).toEqual(wanted);
  });

  it('puts its ends where they belong', () => {
    for (const make of [linear, logarithmic]) {
      const scale = make([2, 50], [300, 20]);
      expect([scale.at(2), scale.at(50)]).toEqual([300, 20]);
    }
    expect(logarithmic([1, 100], [0, 2]).at(10)).toBeCloseTo(1, 12);
  });

  it('marks factors', () => {
    expect(marks(logarithmic([0.02, 31_000], [0, 1], { nice: true }))).toEqual([
      '0.01',
      '1',
      '100',
      '10,000',
    ]);
    expect(marks(logarithmic([0.9, 8], [0, 1]))).toEqual(['1', '2', '5']);
    expect(marks(logarithmic([1e-9, 1e-8], [0, 1]))).toContain('1e-9');
  });

  it('writes numbers shortly', () => {
    expect([0, 3e-5, 2.5e9, 1234.5, 0.25].map((value) => tickLabel(value))).toEqual([
      '0',
      '3e-5',
      '3e9',
      '1,235',
      '0.3',
    ]);
  });
});

describe('a chart', () => {
  const chart = { title: 'A & B', x: 'step', y: 'loss' };

  it('interrupts a line where a number is missing, and leaves out what a logarithm cannot show', () => {
    const points = [1, 10, NaN, 100, -1, 1000].map((y, x) => [x, y] as const);
    const drawn = lines({ ...chart, series: [{ name: 'a', points }], logarithmic: { y: true } });
    expect(/ d="(M[^"]*)"/.exec(drawn)![1]!.match(/[ML]/g)!.join('')).toBe('MLMM');
    expect(drawn).toContain('A &amp; B');
    expect(drawn).not.toMatch(/NaN|Infinity/);
  });

  it('says that there is nothing, and draws one point', () => {
    expect(lines({ ...chart, series: [{ name: 'a', points: [] }] })).toContain('nothing yet');
    const one = lines({ ...chart, series: [{ name: 'a', points: [[3, 0]] }] });
    expect(one).toContain('<circle');
    const close = [1, 1 + Number.EPSILON].map((y, x) => [x, 5 * y] as const);
    expect(lines({ ...chart, series: [{ name: 'a', points: close }] }).length).toBeLessThan(5000);
    expect(one).not.toMatch(/NaN|Infinity/);
  });

  it('names several series', () => {
    const points = [
      [0, 1],
      [1, 2],
    ] as const;
    const drawn = lines({ ...chart, series: ['one', 'two'].map((name) => ({ name, points })) });
    expect(drawn).toMatch(/>one<.*>two</s);
  });
});
