import { digits, isGpu, type Line } from './result';
import { colours, dot, ink, letter, line, rect, svg, text } from '../plot/svg';

const [width, height] = [1000, 620];
const [left, right, top, bottom] = [80, width - 330, 110, height - 70];
const labelHeight = 15;

/**
 * Scans against what limits them, as an SVG document: exponentials a second over exponentials for
 * each byte of compulsory traffic, both logarithmic. The slanted roof is the copy bandwidth that the
 * same run measured, the level one what the special-function units can give, where it is known.
 */
export async function roofline(lines: readonly Line[]): Promise<string> {
  const { scaleLog } = await import('d3-scale');
  const counts = new Set(lines.map(({ threads, level }) => (isGpu(level) ? 0 : threads)));
  const points = lines.map(({ name, dtype, threads, figures }) => ({
    name: counts.size > 1 ? `${name}, ${threads} thread${threads === 1 ? '' : 's'},` : name,
    dtype,
    intensity: figures['exponentials']! / figures['bytes']!,
    rate: figures['gigaExpPerSecond']!,
  }));
  const copy = Math.max(...lines.map(({ figures }) => figures['copyGbPerSecond']!));
  const bound = lines[0]!.figures['boundGigaExpPerSecond'];
  const intensities = points.map(({ intensity }) => intensity);
  const low = Math.min(...intensities) / 3;
  const high = Math.max(...intensities, bound === undefined ? 0 : bound / copy) * 3;
  const highest = (bound ?? copy * high) * 1.6;
  const least = Math.min(...points.map(({ rate }) => rate), copy * low) / 1.6;
  const x = scaleLog([low, high], [left, right]);
  const y = scaleLog([least, highest], [bottom, top]);

  const { device, level, version, commit } = lines[0]!;
  const parts = [
    rect(0, 0, width, height, '#ffffff'),
    text(
      24,
      32,
      'Selective scan: roofline (batch × channels × tokens × state)',
      'font-size="18" font-weight="600"',
    ),
    text(24, 54, [device, level, `selective-scan ${version} (${commit})`].join(', '), 'fill-opacity="0.75"'),
    text(
      (left + right) / 2,
      height - 24,
      'exponentials per byte of compulsory traffic',
      'text-anchor="middle"',
    ),
    text(24, top - 8, 'exponentials per second, 10⁹'),
  ];
  for (const tick of x.ticks(5)) parts.push(line(x(tick), top, x(tick), bottom, '#eeeeee'));
  for (const tick of y.ticks(5)) parts.push(line(left, y(tick), right, y(tick), '#eeeeee'));
  for (const tick of powersOfTwo(low, high)) {
    parts.push(text(x(tick), bottom + 20, String(tick), 'text-anchor="middle"'));
  }
  for (const tick of roundNumbers(least, highest)) {
    parts.push(text(left - 8, y(tick) + 4, digits(tick), 'text-anchor="end"'));
  }
  const ridge = bound === undefined ? high : Math.min(high, bound / copy);
  parts.push(line(left, bottom, right, bottom, ink), line(left, top, left, bottom, ink));
  parts.push(line(x(low), y(copy * low), x(ridge), y(copy * ridge), ink, 2));
  parts.push(text(x(low * 1.25) + 10, y(copy * low * 1.25) + 14, `copy: ${digits(copy)} GB/s`));
  if (bound !== undefined) {
    parts.push(line(x(ridge), y(bound), right, y(bound), ink, 2));
    parts.push(text(right, y(bound) - 8, `special functions: ${digits(bound)}`, 'text-anchor="end"'));
  }
  const kinds = [...new Set(points.map(({ dtype }) => dtype))];
  kinds.forEach((dtype, i) => {
    parts.push(dot(30 + 70 * i, 76, colours[i]!), text(40 + 70 * i, 80, dtype));
  });
  // The labels stand in a column beside the plot, spread so that none covers another.
  const sorted = points
    .map((point) => ({ ...point, at: [x(point.intensity), y(point.rate)] as const }))
    .sort((a, b) => a.at[1] - b.at[1]);
  const places = spreadOut(
    sorted.map(({ at }) => at[1]),
    top,
    height - 20,
  );
  sorted.forEach(({ name, dtype, rate, at: [px, py] }, i) => {
    const colour = colours[kinds.indexOf(dtype)]!;
    const place = places[i]!;
    parts.push(line(px, py, right + 14, place, '#bbbbbb', 0.6), dot(px, py, colour));
    parts.push(text(right + 18, place + 4, `${name} ${dtype}: ${digits(rate)}`, 'font-size="12"'));
  });
  const longest = Math.max(...sorted.map(({ name }) => name.length + 14));
  const lowest = Math.max(height, (places.at(-1) ?? 0) + 24);
  const wide = Math.max(width, right + 30 + letter * longest);
  parts[0] = rect(0, 0, wide, lowest, '#ffffff');
  return svg(Math.ceil(wide), Math.ceil(lowest), parts);
}

/** `values`, ascending, moved as little as is needed to lie a label's height apart, from `least` on. */
function spreadOut(values: readonly number[], least: number, most: number): number[] {
  const places: number[] = [];
  const start = Math.max(least, Math.min(values[0]!, most - values.length * labelHeight));
  values.forEach((value, i) => {
    const room = most - (values.length - i) * labelHeight;
    const lowest = i === 0 ? start : places[i - 1]! + labelHeight;
    places.push(Math.max(lowest, Math.min(value, room)));
  });
  return places;
}

const powers = (base: number, low: number, high: number) => {
  const first = Math.ceil(Math.log(low) / Math.log(base));
  const count = Math.max(0, Math.floor(Math.log(high) / Math.log(base)) - first + 1);
  return Array.from({ length: count }, (_, i) => base ** (first + i));
};
const powersOfTwo = (low: number, high: number) => powers(2, low, high);
/** 1, 2, 5, 10, 20, ... */
const roundNumbers = (low: number, high: number) =>
  powers(10, low / 10, high)
    .flatMap((power) => [power, 2 * power, 5 * power])
    .filter((value) => value >= low && value <= high);
