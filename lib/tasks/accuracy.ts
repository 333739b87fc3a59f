import type { CausalLM } from '../generation/causal-lm';
import { testExample, type Task } from './task';

export interface Accuracy {
  /** Tokens of each sequence. */
  readonly length: number;
  readonly sequences: number;
  /** Share of the answers that were right. */
  readonly accuracy: number;
  /** Share of the sequences whose answers were all right. */
  readonly whole: number;
}

export interface AccuracyOptions {
  readonly length: number;
  readonly sequences: number;
  readonly seed: number;
  readonly signal?: AbortSignal;
}

/** Tokens that the host holds at a time; the device holds a chunk of them and the states. */
const mostTokens = 1 << 20;

/** How many of a test's answers are the model's likeliest token. Long sequences pass through in chunks. */
export async function accuracyOf(
  model: CausalLM,
  task: Task,
  { length, sequences, seed, signal }: AccuracyOptions,
): Promise<Accuracy> {
  const most = Math.max(1, Math.floor(mostTokens / length));
  let [right, asked, whole] = [0, 0, 0];
  for (let begin = 0; begin < sequences; begin += most) {
    signal?.throwIfAborted();
    const examples = Array.from({ length: Math.min(most, sequences - begin) }, (_, i) =>
      testExample(task, length, seed, begin + i),
    );
    const given = await answersOf(
      model,
      examples.map(({ ids }) => ids),
      examples[0]!.answers.length,
    );
    examples.forEach(({ answers }, i) => {
      const hits = answers.reduce((sum, answer, j) => sum + Number(given[i]![j] === answer), 0);
      right += hits;
      asked += answers.length;
      whole += Number(hits === answers.length);
    });
  }
  return { length, sequences, accuracy: right / asked, whole: whole / sequences };
}

/**
 * The likeliest token after each of the last `count` tokens of each row. What comes before them passes in
 * chunks, from one state to the next, and the last ones one by one: no other logits are ever made.
 */
async function answersOf(model: CausalLM, rows: readonly Int32Array[], count: number): Promise<number[][]> {
  const state = model.createState(rows.length);
  const answers: number[][] = rows.map(() => []);
  try {
    for (let left = count - 1; left >= 0; left--) {
      const part = (row: Int32Array) =>
        row.subarray(left === count - 1 ? 0 : row.length - left - 1, row.length - left);
      await model.run(rows.map(part), state);
      const logits = (await state.logits.data()) as Float32Array;
      answers.forEach((given, i) => given.push(likeliest(logits, i, model.config.vocabSize)));
    }
    return answers;
  } finally {
    state.dispose();
  }
}

function likeliest(logits: Float32Array, row: number, size: number): number {
  const own = logits.subarray(row * size, (row + 1) * size);
  return own.indexOf(Math.max(...own));
}
