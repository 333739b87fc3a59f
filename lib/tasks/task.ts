import { seeded, type Random } from '../nn/init';
import type { TrainingBatch } from '../training/batch';

/** A sequence, and what is asked at its end. */
export interface Example {
  readonly ids: Int32Array;
  /** What each of the last so many tokens should predict; nothing else counts. */
  readonly answers: Int32Array;
}

/** Which mixers a model has: Mamba's selective ones, or S4D's, the same at every token. */
export type Layers = 'mamba' | 's4d';

/** How a task is trained by default: by Adam without decay. */
export interface Recipe {
  readonly steps: number;
  /** Sequences of a step; fewer where that would be more than `mostTokens`. */
  readonly rows: number;
  readonly mostTokens: number;
  readonly learningRate: number;
  /** `cosine`: down to a hundredth of it, after a hundred steps upwards. */
  readonly schedule: 'constant' | 'cosine';
  readonly beta2: number;
  readonly eps: number;
  /** What is tested is an average of the parameters with this decay. */
  readonly average?: number;
  readonly seed: number;
  /** Shorter sequences to begin with: each length until this share of the steps is done. */
  readonly curriculum: readonly { readonly length: number; readonly until: number }[];
}

/** What a paper found. */
export interface PaperRow {
  readonly model: string;
  /** Per cent; by the length of the test, where there are several. `undefined` is out of memory. */
  readonly accuracy: readonly (number | undefined)[];
}

/** A task of Gu and Dao 2023 whose sequences are drawn, not read. */
export interface Task {
  readonly name: string;
  readonly title: string;
  readonly vocabSize: number;
  /** Tokens of the sequences of the training. */
  readonly length: number;
  /** Lengths that are tested. */
  readonly testLengths: readonly number[];
  /** The shortest sequence that has room for what it is to hold. */
  readonly shortest: number;
  readonly recipe: Recipe;
  readonly paper: { readonly source: string; readonly recipe: string; readonly rows: readonly PaperRow[] };
  example(length: number, random: Random): Example;
}

export const hiddenSize = 64;
export const mostSeed = 2 ** 20 - 1;

/** Config of a model of two layers, D = 64. */
export function configOf(task: Task, layers: Layers): Readonly<Record<string, unknown>> {
  const sizes = { vocab_size: task.vocabSize, hidden_size: hiddenSize, num_hidden_layers: 2 };
  return layers === 'mamba'
    ? { model_type: 'mamba', ...sizes, initializer_range: 0.02 }
    : { model_type: 's4d', ...sizes, state_size: 64 };
}

/** A generator for the `index`th draw of a training or a test: no two of a seed are alike. */
const drawing = (kind: 'training' | 'test', seed: number, index: number): Random =>
  seeded(index + (seed + (kind === 'test' ? mostSeed + 1 : 0)) * 2 ** 32);

/** Tokens of the sequences of a step, in a training at `length`. */
export function lengthAt({ curriculum }: Recipe, length: number, steps: number, step: number): number {
  const shorter = curriculum.find((stage) => step < stage.until * steps);
  return Math.min(length, shorter?.length ?? length);
}

/** The sequences of step `step`; labels are -100 but for the answers. */
export function batchOf(task: Task, length: number, rows: number, seed: number, step: number): TrainingBatch {
  const random = drawing('training', seed, step);
  const ids = new Int32Array(rows * length);
  const labels = new Int32Array(rows * length).fill(-100);
  for (let row = 0; row < rows; row++) {
    const example = task.example(length, random);
    ids.set(example.ids, row * length);
    labels.set(example.answers, (row + 1) * length - example.answers.length);
  }
  return { ids, labels, offsets: Int32Array.from({ length: rows + 1 }, (_, i) => i * length) };
}

/** The `index`th sequence of a test. */
export const testExample = (task: Task, length: number, seed: number, index: number): Example =>
  task.example(length, drawing('test', seed, index));

/** A whole number from 0 to `below` - 1. */
export const draw = (random: Random, below: number): number => Math.floor(random() * below);
