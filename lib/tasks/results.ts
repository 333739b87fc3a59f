import type { CourseResult } from './course';
import type { Layers, PaperRow, Task } from './task';

/** All that was measured of a task, beside what the paper has. */
export interface Results {
  readonly task: string;
  readonly version: string;
  readonly paper: Task['paper'] & { readonly testLengths: readonly number[] };
  readonly runs: readonly CourseResult[];
}

export const layerNames: Readonly<Record<Layers, string>> = { mamba: 'Mamba', s4d: 'S4D' };

export const resultsOf = (task: Task, version: string, runs: readonly CourseResult[]): Results => ({
  task: task.name,
  version,
  paper: { ...task.paper, testLengths: task.testLengths },
  runs,
});

/** Lengths that were tested, shortest first. */
export const lengthsOf = ({ runs }: Results): readonly number[] =>
  [...new Set(runs.flatMap(({ tests }) => tests.map(({ length }) => length)))].sort((a, b) => a - b);

/** Per cent of a paper's row at a length. */
export function paperAt({ paper }: Results, { accuracy }: PaperRow, length: number): number | undefined {
  const at = paper.testLengths.indexOf(length);
  return at < 0 ? undefined : accuracy[at];
}

/** A row for each length: accuracy in per cent, of what was run and of the paper. */
export function tableRows(results: Results): readonly (readonly string[])[] {
  const { runs, paper } = results;
  const head = [
    'length',
    ...runs.map(({ layers }) => layerNames[layers]),
    ...paper.rows.map(({ model }) => `${model} (paper)`),
  ];
  const per = (value: number | undefined) => (value === undefined ? '-' : percent(value));
  const rows = lengthsOf(results).map((length) => [
    String(length),
    ...runs.map(({ tests }) => {
      const test = tests.find((test) => test.length === length);
      return per(test && 100 * test.accuracy);
    }),
    ...paper.rows.map((row) => per(paperAt(results, row, length))),
  ]);
  return [head, ...rows];
}

/** 100 only where it is: 99.96 is not. */
function percent(value: number): string {
  const rounded = value.toFixed(1);
  return value < 100 && rounded === '100.0' ? value.toFixed(3) : rounded;
}

/** What each run was, and how it differs from the paper's. */
export function remarks({ runs, paper }: Results): readonly string[] {
  const count = (n: number) => n.toLocaleString('en-US');
  const lines = runs.map(({ layers, parameters, recipe, length, seconds, device, tests, seed }) => {
    const { steps, rows, mostTokens, learningRate, curriculum } = recipe;
    const [first] = curriculum.map((stage) => stage.length).filter((shorter) => shorter < length);
    const lengths = first === undefined ? count(length) : `${count(first)} to ${count(length)}`;
    const atLeast = Math.max(1, Math.min(rows, Math.floor(mostTokens / length)));
    const sequences = tests.map((test) => test.sequences);
    const [most, few] = [Math.max(...sequences), Math.min(...sequences)];
    const tested = few === most ? `${most}` : `${most} to ${few}`;
    return (
      `${layerNames[layers]}: ${count(parameters)} parameters, ${count(steps)} steps of ` +
      `${atLeast === rows ? rows : `${rows} to ${atLeast}`} sequences of ${lengths} tokens, ` +
      `learning rate ${learningRate}, seed ${seed}, ${seconds.toFixed(0)} s on ${device}; ${tested} sequences a test`
    );
  });
  return [...lines, `Paper: ${paper.source}; ${paper.recipe}`];
}
