/** The synthetic tasks: what their sequences are, and a training of one, interrupted and not. */
import { readFileSync } from 'node:fs';
import { device } from '../../lib';
import { accuracyOf } from '../../lib/tasks/accuracy';
import { follow, type CourseOptions, type CourseResult } from '../../lib/tasks/course';
import { inductionHeads } from '../../lib/tasks/induction-heads';
import { drawResults } from '../../lib/tasks/plot';
import { remarks, resultsOf, tableRows } from '../../lib/tasks/results';
import { selectiveCopying } from '../../lib/tasks/selective-copying';
import { batchOf, configOf, lengthAt, testExample, type Layers } from '../../lib/tasks/task';
import { AutoModelForCausalLM, type CausalLM } from '../../lib';
import { temporaryFolder } from '../io/folder';

const many = Array.from({ length: 300 }, (_, i) => i);

describe('induction heads', () => {
  it('ask for what followed the trigger, wherever it was', () => {
    const places = many.map((i) => {
      const { ids, answers } = testExample(inductionHeads, 8, 1, i);
      expect(ids).toHaveLength(8);
      expect(ids.filter((id) => id === 15)).toHaveLength(2);
      expect(ids[7]).toBe(15);
      const at = ids.indexOf(15);
      expect([...answers]).toEqual([ids[at + 1]]);
      expect(ids.every((id) => id >= 0 && id < 16)).toBe(true);
      return at;
    });
    expect([...new Set(places)].sort()).toEqual([0, 1, 2, 3, 4, 5]);
    expect(new Set(many.map((i) => testExample(inductionHeads, 8, 1, i).answers[0])).size).toBe(15);
  });
});

describe('selective copying', () => {
  it('asks for sixteen tokens in their order, at markers', () => {
    const firsts = many.map((i) => {
      const { ids, answers } = testExample(selectiveCopying, 64, 1, i);
      expect(ids).toHaveLength(64);
      expect([...ids.subarray(48)]).toEqual(Array(16).fill(15));
      expect([...ids.subarray(0, 48)].filter((id) => id !== 0)).toEqual([...answers]);
      expect(answers).toHaveLength(16);
      expect(answers.every((id) => id >= 1 && id <= 14)).toBe(true);
      return ids.findIndex((id) => id !== 0);
    });
    expect(new Set(firsts).size).toBeGreaterThan(5);
    const full = testExample(selectiveCopying, selectiveCopying.shortest, 1, 0);
    expect(full.ids.subarray(0, 16)).toEqual(full.answers);
  });
});

describe.each([inductionHeads, selectiveCopying])('a batch of $name', (task) => {
  it('counts the answers alone, and is the same for a seed and a step', () => {
    const { ids, labels, offsets } = batchOf(task, 40, 3, 7, 5);
    expect([...offsets]).toEqual([0, 40, 80, 120]);
    const asked = task === inductionHeads ? 1 : 16;
    labels.forEach((label, i) => expect(label >= 0).toBe(i % 40 >= 40 - asked));
    expect(batchOf(task, 40, 3, 7, 5).ids).toEqual(ids);
    for (const [seed, step] of [
      [8, 5],
      [7, 6],
    ] as const)
      expect(batchOf(task, 40, 3, seed, step).ids).not.toEqual(ids);
    expect(testExample(task, 40, 7, 5).ids).not.toEqual(ids.slice(0, 40));
  });

  it.each<Layers>(['mamba', 's4d'])('fits a model of %s layers', async (layers) => {
    const model = await AutoModelForCausalLM.fromConfig(configOf(task, layers));
    const { accuracy, whole, sequences } = await accuracyOf(model, task, {
      ...{ length: 40, sequences: 50, seed: 0 },
    });
    expect(sequences).toBe(50);
    expect(accuracy).toBeLessThan(0.5); // nothing was learnt
    expect(whole).toBeLessThanOrEqual(accuracy);
    model.dispose();
  });
});

it('asks for one answer after the other, and counts those that are right', async () => {
  // A model that knows the answers, but for the last one of every second sequence.
  const asked: number[] = [];
  const oracle = {
    config: { vocabSize: 16 },
    createState: (rows: number) => {
      asked.push(rows);
      const logits = new Float32Array(rows * 16);
      return {
        ...{ logits: { data: () => Promise.resolve(logits) }, seen: Array.from({ length: rows }, () => []) },
        dispose() {},
      };
    },
    run(
      rows: readonly Int32Array[],
      { logits, seen }: { logits: { data(): Promise<Float32Array> }; seen: number[][] },
    ) {
      return logits.data().then((values) => {
        values.fill(0);
        rows.forEach((ids, i) => {
          seen[i]!.push(...ids.filter((id) => id !== 0));
          const marks = seen[i]!.filter((id) => id === 15).length;
          values[i * 16 + (marks === 16 && i % 2 === 1 ? 0 : seen[i]![marks - 1]!)] = 1;
        });
      });
    },
  } as unknown as CausalLM;
  const options = { length: 2 ** 18, sequences: 6, seed: 3 };
  expect(await accuracyOf(oracle, selectiveCopying, options)).toEqual({
    ...{ length: 2 ** 18, sequences: 6 },
    accuracy: (6 * 16 - 2 - 1) / 96,
    whole: 0.5,
  });
  expect(asked).toEqual([4, 2]);
});

it('a state from chunk to chunk gives what one pass does', async () => {
  const model = await AutoModelForCausalLM.fromConfig(configOf(selectiveCopying, 'mamba'));
  const options = { length: 5000, sequences: 2, seed: 1 };
  const { accuracy } = await accuracyOf(model, selectiveCopying, options);
  const examples = [0, 1].map((i) => testExample(selectiveCopying, 5000, 1, i));
  const { logits } = await model.forward({ inputIds: examples.map(({ ids }) => ids), logitsToKeep: 16 });
  const values = (await logits.data()) as Float32Array;
  const right = examples.flatMap(({ answers }, i) =>
    [...answers].filter((answer, j) => {
      const row = values.subarray((i * 16 + j) * 16, (i * 16 + j + 1) * 16);
      return row.indexOf(Math.max(...row)) === answer;
    }),
  );
  expect(accuracy).toBe(right.length / 32);
  logits.dispose();
  model.dispose();
});

it('shorter sequences come first', () => {
  const { recipe } = selectiveCopying;
  const at = (step: number) => lengthAt(recipe, 4096, 1000, step);
  expect([0, 649, 650, 829, 830, 999].map(at)).toEqual([64, 64, 128, 2048, 4096, 4096]);
  expect(lengthAt(recipe, 48, 1000, 0)).toBe(48);
  expect(lengthAt(inductionHeads.recipe, 256, 1000, 0)).toBe(256);
});

describe('a training', () => {
  const folder = temporaryFolder();
  const options: CourseOptions = {
    ...{ layers: 'mamba', device: device('cpu'), length: 6 },
    recipe: { ...inductionHeads.recipe, steps: 60, rows: 4, learningRate: 3e-3 },
    ...{ testLengths: [6, 12], testSequences: 20, seed: 1 },
  };

  it('goes on after an interruption, to the same results', async () => {
    const { seconds: _, ...whole } = await follow(inductionHeads, options);
    expect(whole.curve).toHaveLength(30);
    expect(whole.tests.map(({ length }) => length)).toEqual([6, 12]);

    const controller = new AbortController();
    const long = { ...options, recipe: { ...options.recipe, steps: 200 } };
    const parts = { ...long, folder: folder.path };
    const interrupted = follow(inductionHeads, {
      ...{ ...parts, signal: controller.signal },
      onProgress: ({ step }) => step === 100 && controller.abort(new Error('enough')),
    });
    await expect(interrupted).rejects.toThrow('enough');
    const { seconds: __, ...again } = await follow(inductionHeads, parts);
    const { seconds: ___, ...straight } = await follow(inductionHeads, long);
    expect(again).toEqual(straight);
    const log = readFileSync(folder.at('log.jsonl'), 'utf8').trim().split('\n');
    expect(log).toHaveLength(40);
    expect(JSON.parse(log.at(-1)!)).toMatchObject({ step: 200, accuracy: straight.curve.at(-1)!.accuracy });

    // A constant rate goes on beyond the steps that were asked for at first; another training is refused.
    const longer = { ...parts, recipe: { ...long.recipe, steps: 210 } };
    expect((await follow(inductionHeads, longer)).curve.at(-1)!.step).toBe(210);
    await expect(follow(inductionHeads, { ...parts, seed: 2 })).rejects.toThrow('take another folder');
    await expect(follow(selectiveCopying, { ...parts, length: 40 })).rejects.toThrow('take another folder');
  });
});

describe('results', () => {
  const tests = [64, 256].map((length, i) => ({ length, sequences: 8, accuracy: 1 - i / 3000, whole: 1 }));
  const run: CourseResult = {
    layers: 'mamba',
    ...{ parameters: 66496, length: 256, seed: 0, recipe: { ...inductionHeads.recipe, steps: 1000 } },
    ...{ device: 'a device', seconds: 3, tests },
    curve: [500, 1000].map((step) => ({ step, loss: 1, accuracy: step / 1000 })),
  };

  it('stand beside those of the paper, and round nothing up to all', () => {
    const results = resultsOf(inductionHeads, '1.2.3', [run, { ...run, layers: 's4d' }]);
    expect(tableRows(results)).toEqual([
      expect.arrayContaining(['length', 'Mamba', 'S4D', 'Mamba (paper)', 'H3 (paper)']),
      ['64', '100.0', '100.0', '100.0', '100.0', '97.7', '100.0'],
      ['256', '99.967', '99.967', '100.0', '100.0', '100.0', '100.0'],
    ]);
    expect(remarks(results)[0]).toMatch(
      /^Mamba: 66,496 parameters, 1,000 steps of 8 sequences of 256 tokens, .* a device/,
    );
    expect(remarks(results).at(-1)).toContain('204,800 steps');
    expect(JSON.parse(JSON.stringify(results))).toMatchObject({ task: 'induction-heads', version: '1.2.3' });
  });

  it('are drawn, over lengths or over steps', () => {
    const lengths = drawResults(resultsOf(inductionHeads, '1', [run]), 'Induction heads');
    expect(lengths).toMatch(/^<svg xmlns=.*<\/svg>\n$/s);
    for (const word of ['Induction heads', 'tokens of the test', '2⁶', '2⁸', 'H3 (paper)'])
      expect(lengths).toContain(word);
    const [own] = tests;
    const at = (length: number) => ({ ...own!, length });
    const short = { ...run, tests: [at(16), at(32), at(64)] };
    const few = drawResults(resultsOf(inductionHeads, '1', [short]), 'Induction heads');
    expect(few.match(/<circle /g)).toHaveLength(3 + inductionHeads.paper.rows.length); // one point each is seen
    const none = { ...run, tests: [at(16), at(32)] };
    expect(drawResults(resultsOf(inductionHeads, '1', [none]), 'Induction heads')).not.toContain('(paper)');
    const recipe = { ...selectiveCopying.recipe, steps: 1000 };
    const one = { ...run, recipe, length: 4096, tests: [{ ...tests[0]!, length: 4096 }] };
    const steps = drawResults(resultsOf(selectiveCopying, '1', [one]), 'Selective copying');
    expect(remarks(resultsOf(selectiveCopying, '1', [one]))[0]).toContain(
      '1,000 steps of 64 to 16 sequences of 64 to 4,096 tokens',
    );
    for (const word of ['steps of the training', '1,000', 'Mamba with S4 layers (paper)'])
      expect(steps).toContain(word);
    for (const drawing of [lengths, steps]) expect(drawing).not.toMatch(/NaN|undefined/);
  });
});
