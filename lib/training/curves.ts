import { writeAtomically, writeFully } from '../io/atomic';
import { lines, type Lines, type LineSeries } from '../plot/lines';
import { escape } from '../plot/svg';
import { readLog, type EvaluationRecord, type StepRecord } from './log';

type Points = LineSeries['points'];

/** Points that a line has at most: more than a chart has pixels. */
const mostPoints = 600;

/** Neighbours together as their mean, until there are few enough. */
function thinned(points: Points): Points {
  const each = Math.ceil(points.length / mostPoints);
  if (each <= 1) return points;
  return Array.from({ length: Math.ceil(points.length / each) }, (_, i) => {
    const some = points.slice(i * each, (i + 1) * each);
    const mean = (axis: 0 | 1) => some.reduce((sum, point) => sum + point[axis], 0) / some.length;
    return [mean(0), mean(1)] as const;
  });
}

/** A moving average over about a fiftieth of the points, at least five, corrected for its start. */
function smoothed(points: Points): Points {
  const decay = 1 - 1 / Math.max(5, points.length / 50);
  let [sum, weight] = [0, 0];
  return points.map(([x, y]) => {
    sum = decay * sum + (1 - decay) * y;
    weight = decay * weight + (1 - decay);
    return [x, sum / weight] as const;
  });
}

/** The charts of a training: its losses, learning rate, gradient norm and speed over the steps. */
export function chartsOf(steps: readonly StepRecord[], evaluations: readonly EvaluationRecord[]): Lines[] {
  const points = (value: (record: StepRecord) => number) =>
    thinned(steps.map((record) => [record.step, value(record)]));
  const loss = points((record) => record.loss);
  const held = evaluations.map(({ step, validation }) => [step, validation] as const);
  const one = (points: Points): LineSeries[] => [{ name: '', points }];
  return [
    {
      title: 'Loss',
      x: 'step',
      y: 'nats a token',
      series: [
        { name: 'training', points: loss, style: 'pale' },
        { name: 'training, smoothed', points: smoothed(loss) },
        { name: 'held out', points: held, style: 'dots' },
      ],
    },
    { title: 'Learning rate', x: 'step', y: 'learning rate', series: one(points((r) => r.learningRate)) },
    {
      title: 'Norm of the gradient, before clipping',
      x: 'step',
      y: 'norm',
      series: one(points((record) => record.gradientNorm)),
      logarithmic: { y: true },
    },
    { title: 'Speed', x: 'step', y: 'tokens a second', series: one(points((r) => r.tokensPerSecond)) },
  ];
}

/** A page that needs nothing besides itself; `refresh` has a browser read it again every so many seconds. */
function curvesPage(
  title: string,
  steps: readonly StepRecord[],
  evaluations: readonly EvaluationRecord[],
  refresh?: number,
): string {
  const charts = chartsOf(steps, evaluations).map(lines);
  const last = steps.at(-1);
  const best = evaluations.reduce((least, { validation }) => Math.min(least, validation), Infinity);
  const said = [
    ...(last ? [`step ${last.step.toLocaleString('en-US')}`, `loss ${last.loss.toFixed(4)}`] : []),
    ...(Number.isFinite(best) ? [`best held out ${best.toFixed(4)}`] : []),
    ...(last ? [`${last.tokens.toLocaleString('en-US')} tokens`] : []),
  ];
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
${refresh === undefined ? '' : `<meta http-equiv="refresh" content="${refresh}">\n`}<title>${escape(title)}</title>
<style>
body { font: 15px system-ui, sans-serif; color: #222; background: #fff; margin: 24px auto; max-width: 1300px; padding: 0 16px; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(560px, 100%), 1fr)); gap: 16px; }
svg { width: 100%; height: auto; }
</style>
</head>
<body>
<h1>${escape(title)}</h1>
<p>${escape(said.join(', '))}</p>
<main>
${charts.join('')}</main>
</body>
</html>
`;
}

/** Draws the log's curves beside it; `refresh` as in `curvesPage`. */
export async function writeCurves(
  logPath: string,
  pagePath: string,
  title: string,
  refresh?: number,
): Promise<void> {
  const { steps, evaluations } = await readLog(logPath);
  const page = curvesPage(title, steps, evaluations, refresh);
  await writeAtomically(pagePath, (file) => writeFully(file, Buffer.from(page)));
}
