import { linear, logarithmic as factors } from './scale';
import { colours, ink, letter, line, rect, svg, text } from './svg';

type Point = readonly [number, number];

export interface LineSeries {
  readonly name: string;
  /** From left to right; a point that is not finite interrupts the line. */
  readonly points: readonly Point[];
  /** Drawn pale, behind what is drawn over it; `dots` marks each point. */
  readonly style?: 'line' | 'pale' | 'dots';
}

/** What a chart of lines shows. */
export interface Lines {
  readonly title: string;
  /** What the axes say, with their units. */
  readonly x: string;
  readonly y: string;
  readonly series: readonly LineSeries[];
  /** Axes whose steps are factors; values that are not positive are then left out. */
  readonly logarithmic?: { readonly x?: boolean; readonly y?: boolean };
  readonly width?: number;
  readonly height?: number;
}

const [left, right, bottom] = [88, 20, 52];
const path = (d: string, stroke: string, width: number, opacity: number) =>
  `<path d="${d}" fill="none" stroke="${stroke}" stroke-width="${width}" stroke-opacity="${opacity}" stroke-linejoin="round"/>`;
const circle = (x: number, y: number, fill: string) =>
  `<circle cx="${x.toFixed(1)}" cy="${y.toFixed(1)}" r="3" fill="${fill}"/>`;

/** Lines as an SVG document: dark on white. Series without points are left out, an empty chart says so. */
export function lines(chart: Lines): string {
  const { title, x: xLabel, y: yLabel, logarithmic = {}, width = 620, height = 340 } = chart;
  const shown = ([x, y]: Point) =>
    Number.isFinite(x) && Number.isFinite(y) && !(logarithmic.x && x <= 0) && !(logarithmic.y && y <= 0);
  const series = chart.series
    .map((one, i) => ({ ...one, colour: colours[i % colours.length]! }))
    .filter(({ points }) => points.some(shown));
  const hasLegend = series.length > 1;
  const top = hasLegend ? 68 : 46;
  const parts = [
    rect(0, 0, width, height, '#ffffff'),
    text(20, 28, title, 'font-size="16" font-weight="600"'),
  ];
  if (series.length === 0) {
    parts.push(text(width / 2, height / 2, 'nothing yet', 'text-anchor="middle" fill-opacity="0.6"'));
    return svg(width, height, parts);
  }
  const all = series.flatMap(({ points }) => points.filter(shown));
  const domain = (axis: 0 | 1, log: boolean | undefined): [number, number] => {
    let [low, high] = [Infinity, -Infinity];
    for (const point of all) [low, high] = [Math.min(low, point[axis]), Math.max(high, point[axis])];
    if (high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high))) return [low, high]; // no mere rounding
    return log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  };
  const axis = (log: boolean | undefined) => (log ? factors : linear);
  const { x: xLog, y: yLog } = logarithmic;
  const across = axis(xLog)(domain(0, xLog), [left, width - right], { count: 6 });
  const up = axis(yLog)(domain(1, yLog), [height - bottom, top], { nice: true });
  for (const { value, label } of up.ticks) {
    parts.push(line(left, up.at(value), width - right, up.at(value), '#e4e4e4'));
    parts.push(text(left - 8, up.at(value) + 4.5, label, 'text-anchor="end"'));
  }
  for (const { value, label } of across.ticks) {
    parts.push(line(across.at(value), height - bottom, across.at(value), height - bottom + 5, ink));
    parts.push(text(across.at(value), height - bottom + 20, label, 'text-anchor="middle"'));
  }
  parts.push(line(left, height - bottom, width - right, height - bottom, ink));
  parts.push(text((left + width - right) / 2, height - 10, xLabel, 'text-anchor="middle"'));
  const middle = (top + height - bottom) / 2;
  parts.push(text(18, middle, yLabel, `text-anchor="middle" transform="rotate(-90 18 ${middle})"`));

  let legendAt = left;
  for (const { name, points, style = 'line', colour } of series) {
    const opacity = style === 'pale' ? 0.35 : 1;
    let d = '';
    let pen = false;
    for (const point of points) {
      if (!shown(point)) {
        pen = false;
        continue;
      }
      d += `${pen ? 'L' : 'M'}${across.at(point[0]).toFixed(1)} ${up.at(point[1]).toFixed(1)}`;
      pen = true;
    }
    parts.push(path(d, colour, style === 'pale' ? 1 : 1.8, opacity));
    if (style === 'dots' || points.length === 1)
      parts.push(
        ...points.filter(shown).map((point) => circle(across.at(point[0]), up.at(point[1]), colour)),
      );
    if (!hasLegend) continue;
    parts.push(path(`M${legendAt} 50H${legendAt + 18}`, colour, 3, opacity), text(legendAt + 24, 54.5, name));
    legendAt += 48 + letter * name.length;
  }
  return svg(width, height, parts);
}
