import { digits, isGpu, type Line } from './result';
import { colours, ink, letter, line, rect, svg, text } from '../plot/svg';

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

const barHeight = 22;
const right = 96;

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
  // As many marks as their labels have room for.
  const fits = (count: number) => {
    const most = Math.max(...x.ticks(count).map((tick) => x.tickFormat(count)(tick).length));
    return x.ticks(count).length * (letter * most + 10) <= width - right - left;
  };
  const count = [6, 5, 4, 3, 2].find(fits) ?? 1;
  for (const tick of x.ticks(count)) {
    parts.push(line(x(tick), top, x(tick), bottom, '#dddddd'));
    parts.push(text(x(tick), bottom + 20, x.tickFormat(count)(tick), 'text-anchor="middle"'));
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
  return svg(width, height, parts);
}

/** One figure of the lines as bars: a group for each name, a colour for each dtype and number of threads. */
export function barsOf(lines: readonly Line[], title: string, axis: string, figure: string): Bars {
  const distinct = <T>(values: readonly T[]) => [...new Set(values)];
  const { device, level, version } = lines[0]!;
  const groups = distinct(lines.map(({ name }) => name));
  const dtypes = distinct(lines.map(({ dtype }) => dtype));
  const counts = distinct(lines.map(({ threads }) => (isGpu(level) ? 0 : threads)));
  const bar = ({ figures, ms }: Line) => {
    const value = figures[figure]!;
    return { value, low: (value * ms.median) / ms.p90, high: (value * ms.median) / ms.p10 };
  };
  const named = (threads: number) => (threads === 0 ? [] : [`${threads} thread${threads === 1 ? '' : 's'}`]);
  const series = dtypes.flatMap((dtype) => counts.map((threads) => ({ dtype, threads })));
  return {
    title,
    subtitle: [
      device,
      level,
      ...(dtypes.length === 1 ? dtypes : []),
      ...(counts.length === 1 ? named(counts[0]!) : []),
      `selective-scan ${version}`,
    ].join(', '),
    axis: `${axis} (median; line: 10th to 90th percentile)`,
    groups,
    series: series.map(({ dtype, threads }) => ({
      name: [
        ...(dtypes.length > 1 ? [dtype] : []),
        ...(counts.length > 1 || dtypes.length === 1 ? named(threads) : []),
      ].join(', '),
      bars: groups.map((name) => {
        const line = lines.find(
          (line) => line.name === name && line.dtype === dtype && (threads === 0 || line.threads === threads),
        );
        return line && bar(line);
      }),
    })),
  };
}
