import { digits, type Line } from './result';

/** What a plot shows: groups of bars with the spread of their runs. */
export interface Bars {
  readonly title: string;
  readonly subtitle: string;
  /** What the bars' length says, with its unit. */
  readonly axis: string;
  readonly groups: readonly string[];
  /** One bar in each group; undefined leaves its place empty. */
  readonly series: readonly { readonly name: string; readonly bars: readonly (Bar | undefined)[] }[];
}

export interface Bar {
  readonly value: number;
  readonly low: number;
  readonly high: number;
}

// Okabe and Ito's colours, which the colour-blind can tell apart.
const colours = ['#0072b2', '#e69f00', '#009e73', '#d55e00', '#cc79a7', '#56b4e9'];
const ink = '#222222';
const font = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"';
const barHeight = 22;
const right = 96;
/** Width of a letter, generously: there is nothing to measure text with. */
const letter = 8.4;

const escape = (text: string) =>
  text.replace(/[&<>"]/g, (char) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[char]!);

const text = (x: number, y: number, content: string, attributes = '') =>
  `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" fill="${ink}" ${attributes}>${escape(content)}</text>`;
const rect = (x: number, y: number, width: number, height: number, fill: string) =>
  `<rect x="${x.toFixed(1)}" y="${y.toFixed(1)}" width="${width.toFixed(1)}" height="${height.toFixed(1)}" fill="${fill}"/>`;
const line = (x1: number, y1: number, x2: number, y2: number, stroke: string) =>
  `<line x1="${x1.toFixed(1)}" y1="${y1.toFixed(1)}" x2="${x2.toFixed(1)}" y2="${y2.toFixed(1)}" stroke="${stroke}" stroke-width="1.2"/>`;

/** The plot as an SVG document: dark on white, horizontal bars, so that long names fit. */
export async function plot({ title, subtitle, axis, groups, series }: Bars): Promise<string> {
  const { scaleBand, scaleLinear } = await import('d3-scale');
  const hasLegend = series.length > 1;
  const top = hasLegend ? 96 : 76;
  const left = 34 + letter * Math.max(...groups.map((group) => group.length));
  const width = Math.max(760, Math.ceil(left) + 480);
  const groupHeight = series.length * barHeight + 20;
  const bottom = top + groups.length * groupHeight;
  const height = bottom + 60;

  const highest = Math.max(...series.flatMap(({ bars }) => bars.map((bar) => bar?.high ?? 0)));
  const x = scaleLinear([0, highest || 1], [left, width - right]).nice(6);
  const y = scaleBand([...groups.keys()], [top, bottom]);
  const within = scaleBand([...series.keys()], [10, groupHeight - 10]).paddingInner(0.12);
  const thick = within.bandwidth();

  const parts = [
    rect(0, 0, width, height, '#ffffff'),
    text(24, 32, title, 'font-size="18" font-weight="600"'),
    text(24, 54, subtitle, 'fill-opacity="0.75"'),
    text((left + width - right) / 2, bottom + 44, axis, 'text-anchor="middle"'),
  ];
  for (const tick of x.ticks(6)) {
    parts.push(line(x(tick), top, x(tick), bottom, '#dddddd'));
    parts.push(text(x(tick), bottom + 20, x.tickFormat(6)(tick), 'text-anchor="middle"'));
  }
  groups.forEach((group, i) => {
    parts.push(text(left - 10, y(i)! + groupHeight / 2 + 5, group, 'text-anchor="end"'));
  });
  let legendAt = 24;
  series.forEach(({ name, bars }, s) => {
    const colour = colours[s % colours.length]!;
    if (hasLegend) {
      parts.push(rect(legendAt, 68, 12, 12, colour), text(legendAt + 18, 79, name));
      legendAt += 40 + letter * name.length;
    }
    bars.forEach((bar, i) => {
      if (!bar) return;
      const at = y(i)! + within(s)!;
      const middle = at + thick / 2;
      parts.push(
        rect(left, at, x(bar.value) - left, thick, colour),
        line(x(bar.low), middle, x(bar.high), middle, ink),
        text(x(bar.high) + 8, middle + 5, digits(bar.value)),
      );
    });
  });
  parts.push(line(left, top, left, bottom, ink));
  const size = `width="${width}" height="${height}" viewBox="0 0 ${width} ${height}"`;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size} ${font} font-size="13">\n${parts.join('\n')}\n</svg>\n`;
}

/** One figure of the lines as bars: a group for each name, a colour for each number of threads. */
export function barsOf(lines: readonly Line[], title: string, axis: string, figure: string): Bars {
  const distinct = <T>(values: readonly T[]) => [...new Set(values)];
  const { device, level, dtype, version } = lines[0]!;
  const groups = distinct(lines.map(({ name }) => name));
  const counts = distinct(lines.map(({ threads }) => threads));
  const bar = ({ figures, ms }: Line) => {
    const value = figures[figure]!;
    return { value, low: (value * ms.median) / ms.p90, high: (value * ms.median) / ms.p10 };
  };
  const find = (name: string, threads: number) =>
    lines.find((line) => line.name === name && line.threads === threads);
  const named = (threads: number) => `${threads} thread${threads === 1 ? '' : 's'}`;
  return {
    title,
    subtitle: [
      device,
      level,
      dtype,
      ...(counts.length === 1 ? [named(counts[0]!)] : []),
      `selective-scan ${version}`,
    ].join(', '),
    axis: `${axis} (median; line: 10th to 90th percentile)`,
    groups,
    series: counts.map((threads) => ({
      name: named(threads),
      bars: groups.map((name) => {
        const line = find(name, threads);
        return line && bar(line);
      }),
    })),
  };
}
