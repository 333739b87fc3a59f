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

/** The likeliest token after each of the last `count` tokens of each row. */
async function answersOf(model: CausalLM, rows: readonly Int32Array[], count: number): Promise<number[][]> {
  const { logits } = await model.forward({ inputIds: rows, logitsToKeep: count });
  const values = await logits.data().finally(() => logits.dispose());
  const size = model.config.vocabSize;
  return rows.map((_, i) =>
    Array.from({ length: count }, (_, j) => {
      const row = values.subarray((i * count + j) * size, (i * count + j + 1) * size);
      return row.indexOf(Math.max(...row));
    }),
  );
}
