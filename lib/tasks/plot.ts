import { colours, dot, ink, letter, line, rect, svg, text } from '../plot/svg';
import { layerNames, lengthsOf, paperAt, type Results } from './results';

interface Series {
  readonly name: string;
  /** Whether it was run here, or is the paper's. */
  readonly own: boolean;
  /** Per cent over whatever the plot is over. */
  readonly points: readonly (readonly [x: number, y: number])[];
}

const [left, right, top, bottom, height] = [70, 720, 96, 400, 460] as const;

/** The accuracy over the length of the test, where there are several lengths, otherwise over the training. */
export function drawResults(results: Results, title: string): string {
  const lengths = lengthsOf(results);
  return lengths.length > 1 ? overLengths(results, lengths, title) : overSteps(results, title);
}

function overLengths(results: Results, lengths: readonly number[], title: string): string {
  const series: Series[] = [
    ...results.runs.map(({ layers, tests }) => ({
      name: layerNames[layers],
      own: true,
      points: tests.map(({ length, accuracy }) => [Math.log2(length), 100 * accuracy] as const),
    })),
    ...results.paper.rows.map((row) => ({
      name: `${row.model} (paper)`,
      own: false,
      points: lengths.flatMap((length) => {
        const value = paperAt(results, row, length);
        return value === undefined ? [] : [[Math.log2(length), value] as const];
      }),
    })),
  ];
  const [low, high] = [Math.log2(lengths[0]!), Math.log2(lengths.at(-1)!)];
  const ticks = lengths.filter((length) => Number.isInteger(Math.log2(length)));
  return draw({
    title,
    axis: 'tokens of the test',
    series: series.filter(({ points }) => points.length > 0),
    range: [low, high],
    ticks: ticks.map((length) => [Math.log2(length), power(Math.log2(length))] as const),
    results,
  });
}

function overSteps(results: Results, title: string): string {
  const most = Math.max(1, ...results.runs.map(({ recipe }) => recipe.steps));
  const series: Series[] = [
    ...results.runs.map(({ layers, curve }) => ({
      name: layerNames[layers],
      own: true,
      points: curve.map(({ step, accuracy }) => [step, 100 * accuracy] as const),
    })),
    ...results.paper.rows.map(({ model, accuracy }) => ({
      name: `${model} (paper)`,
      own: false,
      points: [0, most].map((x) => [x, accuracy[0]!] as const),
    })),
  ];
  const ticks = Array.from({ length: 5 }, (_, i) => Math.round((most * i) / 4));
  return draw({
    title,
    axis: 'steps of the training',
    series,
    range: [0, most],
    ticks: ticks.map((step) => [step, step.toLocaleString('en-US')] as const),
    results,
  });
}

const power = (exponent: number) =>
  `2${[...String(exponent)].map((digit) => '⁰¹²³⁴⁵⁶⁷⁸⁹'[Number(digit)]).join('')}`;

interface Plot {
  readonly title: string;
  readonly axis: string;
  readonly series: readonly Series[];
  readonly range: readonly [number, number];
  readonly ticks: readonly (readonly [number, string])[];
  readonly results: Results;
}

function draw({ title, axis, series, range: [low, high], ticks, results }: Plot): string {
  const x = (value: number) => left + ((right - left) * (value - low)) / (high - low || 1);
  const y = (value: number) => bottom - ((bottom - top) * value) / 100;
  const [first] = results.runs;
  const what = first ? `D = 64, two layers; ${first.device}; ${results.paper.source}` : results.paper.source;
  const longest = Math.max(...series.map(({ name }) => name.length));
  const width = Math.ceil(right + 60 + letter * longest);
  const parts = [
    rect(0, 0, width, height, '#ffffff'),
    text(24, 32, title, 'font-size="18" font-weight="600"'),
    text(24, 54, what, 'fill-opacity="0.75"'),
    text(24, top - 14, 'answers that are right, %'),
    text((left + right) / 2, height - 16, axis, 'text-anchor="middle"'),
  ];
  for (const value of [0, 25, 50, 75, 100]) {
    parts.push(line(left, y(value), right, y(value), '#dddddd'));
    parts.push(text(left - 10, y(value) + 4, String(value), 'text-anchor="end"'));
  }
  for (const [value, name] of ticks) parts.push(text(x(value), bottom + 20, name, 'text-anchor="middle"'));
  // What was run here lies over the paper's.
  const order = [...series.entries()].sort(([, a], [, b]) => Number(a.own) - Number(b.own));
  for (const [i, { own, points }] of order) {
    const colour = colours[i % colours.length]!;
    points.forEach(([px, py], j) => {
      const before = points[j - 1];
      if (before) parts.push(line(x(before[0]), y(before[1]), x(px), y(py), colour, own ? 3 : 1.2));
      if (own || points.length === 1) parts.push(dot(x(px), y(py), colour));
    });
  }
  series.forEach(({ name, own }, i) => {
    const at = top + 12 + 22 * i;
    parts.push(line(right + 16, at, right + 40, at, colours[i % colours.length]!, own ? 3 : 1.2));
    parts.push(text(right + 48, at + 4, name));
  });
  parts.push(line(left, bottom, right, bottom, ink), line(left, top, left, bottom, ink));
  return svg(width, height, parts);
}
