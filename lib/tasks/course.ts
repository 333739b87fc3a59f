import { join } from 'node:path';
import type { Device } from '../device';
import { FormatError } from '../errors';
import { makeFolder } from '../io/folder';
import { isObject } from '../io/json';
import { loadCheckpoint, saveCheckpoint } from '../training/checkpoints';
import { Log } from '../training/log';
import { Trainer, type TrainingStep } from '../training/trainer';
import { accuracyOf, type Accuracy } from './accuracy';
import { batchOf, configOf, lengthAt, type Layers, type Recipe, type Task } from './task';

export interface CourseOptions {
  readonly layers: Layers;
  readonly device: Device;
  readonly recipe: Recipe;
  /** Tokens of the sequences that are trained on, at the end of the curriculum. */
  readonly length: number;
  readonly testLengths: readonly number[];
  /** Sequences of each test, at most. */
  readonly testSequences: number;
  readonly seed: number;
  /** Where checkpoints and the log go; what is there is gone on from. */
  readonly folder?: string;
  /** Ends the training early: a checkpoint is saved, and the promise rejects with the signal's reason. */
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
  readonly onWarning?: (message: string) => void;
}

export interface Progress {
  readonly layers: Layers;
  readonly step: number;
  readonly steps: number;
  /** Mean of the last hundred steps, in nats. */
  readonly loss: number;
}

/** A point of the curve: the loss is the mean since the one before, the accuracy that at the training's length. */
export interface CurvePoint {
  readonly step: number;
  readonly loss: number;
  readonly accuracy: number;
}

/** What came of one training. */
export interface CourseResult {
  readonly layers: Layers;
  readonly parameters: number;
  /** Tokens of the sequences at the end of the training. */
  readonly length: number;
  readonly seed: number;
  readonly recipe: Recipe;
  readonly device: string;
  /** Of training, all parts of an interrupted one together. */
  readonly seconds: number;
  readonly curve: readonly CurvePoint[];
  readonly tests: readonly Accuracy[];
}

/** Points of the curve, at each of which a checkpoint is saved. */
const points = 40;
/** Sequences that a point's accuracy is of. */
const curveSequences = 64;
const progressSteps = 100;

/** Trains a model on a task and tests it. */
export async function follow(task: Task, options: CourseOptions): Promise<CourseResult> {
  const { layers, device, recipe, length, seed } = options;
  const { steps, learningRate, schedule, beta2, eps, average } = recipe;
  const trainer = await Trainer.fromConfig(configOf(task, layers), {
    ...{ device, steps, learningRate, seed, schedule, beta2, eps, average, weightDecay: 0 },
    minimumLearningRate: learningRate / 100,
    warmup: schedule === 'constant' ? 0 : Math.min(100, Math.floor(steps / 10)),
  });
  try {
    const course = new Course(task, options, trainer);
    await course.resume();
    await course.train();
    const tests: Accuracy[] = [];
    for (const length of options.testLengths)
      tests.push(await course.test(length, sequencesAt(length, options.testSequences)));
    const { seconds, curve } = course;
    const settings = { layers, parameters: trainer.model.numParameters, length, seed, recipe };
    return { ...settings, device: device.info.name, seconds, curve, tests };
  } finally {
    trainer.dispose();
  }
}

/** Fewer of the longest sequences: `most` up to 65,536 tokens, sixteen from 262,144 on. */
const sequencesAt = (length: number, most: number): number =>
  Math.min(most, Math.max(16, Math.floor(2 ** 22 / length)));

class Course {
  readonly curve: CurvePoint[] = [];
  seconds = 0;
  readonly #task: Task;
  readonly #options: CourseOptions;
  readonly #trainer: Trainer;
  #log: Log | undefined;
  /** Losses after the last point of the curve. */
  #losses = { sum: 0, count: 0 };
  #recent: number[] = [];

  constructor(task: Task, options: CourseOptions, trainer: Trainer) {
    this.#task = task;
    this.#options = options;
    this.#trainer = trainer;
  }

  get #settings(): string {
    const { layers, recipe, length, seed } = this.#options;
    // A constant rate can be gone on with beyond the steps that were asked for at first.
    const steps = recipe.schedule === 'constant' ? undefined : recipe.steps;
    return JSON.stringify({ task: this.#task.name, layers, length, ...recipe, steps, seed });
  }

  /** Goes on from the folder's last checkpoint, if there is one. */
  async resume(): Promise<void> {
    const { folder, onWarning } = this.#options;
    if (folder === undefined) return;
    await makeFolder(folder);
    const loaded = await loadCheckpoint(folder, this.#trainer, onWarning);
    if (loaded) this.#takeUp(folder, loaded.data);
    this.#log = new Log(join(folder, 'log.jsonl'), this.#trainer.steps);
  }

  #takeUp(folder: string, data: unknown): void {
    const { settings, curve, seconds, losses } = isObject(data) ? data : {};
    if (settings !== this.#settings)
      throw new FormatError(
        `${folder}: holds a training of ${String(settings)}, not of ${this.#settings}; take another folder`,
      );
    this.curve.push(...(curve as readonly CurvePoint[]));
    this.seconds = Number(seconds);
    this.#losses = losses as { sum: number; count: number };
  }

  async #save(): Promise<void> {
    const { folder } = this.#options;
    if (folder === undefined) return;
    const { curve, seconds } = this;
    const data = { settings: this.#settings, curve, seconds, losses: this.#losses };
    await saveCheckpoint(folder, this.#trainer, { data });
  }

  /** One step is queued while the one before it runs. */
  async train(): Promise<void> {
    const { recipe, length, seed, signal } = this.#options;
    const { steps, rows, mostTokens } = recipe;
    if (this.#trainer.steps >= steps) return;
    const every = Math.max(1, Math.ceil(steps / points));
    let begin = performance.now();
    let before: Promise<TrainingStep> | undefined;
    const pause = () => {
      const now = performance.now();
      this.seconds += (now - begin) / 1000;
      begin = now;
    };
    while (this.#trainer.steps < steps && !signal?.aborted) {
      const step = this.#trainer.steps;
      const tokens = lengthAt(recipe, length, steps, step);
      const count = Math.max(1, Math.min(rows, Math.floor(mostTokens / tokens)));
      const next = this.#trainer.step(batchOf(this.#task, tokens, count, seed, step));
      next.catch(() => {}); // whoever waits for it is told
      if (before) this.#saw(await before);
      before = next;
      if ((step + 1) % every !== 0 && step + 1 !== steps) continue;
      this.#saw(await before);
      before = undefined;
      pause();
      await this.#point();
      await this.#save();
      begin = performance.now();
    }
    if (before) {
      this.#saw(await before);
      pause();
    }
    if (signal?.aborted) await this.#save();
    await this.#log?.close();
    signal?.throwIfAborted();
  }

  #saw({ step, loss }: TrainingStep): void {
    this.#losses.sum += loss;
    this.#losses.count++;
    this.#recent.push(loss);
    if (step % progressSteps !== 0) return;
    const { layers, recipe, onProgress } = this.#options;
    const mean = this.#recent.reduce((sum, value) => sum + value, 0) / this.#recent.length;
    this.#recent = [];
    onProgress?.({ layers, step, steps: recipe.steps, loss: mean });
  }

  /** A point of the curve. */
  async #point(): Promise<void> {
    const { accuracy } = await this.test(this.#options.length, curveSequences);
    const { sum, count } = this.#losses;
    const point = { step: this.#trainer.steps, loss: sum / count, accuracy };
    this.#losses = { sum: 0, count: 0 };
    this.curve.push(point);
    this.#log?.write({ ...point, seconds: this.seconds });
  }

  /** The accuracy of the model as it is. */
  async test(length: number, sequences: number): Promise<Accuracy> {
    const { model } = this.#trainer;
    const { seed, signal } = this.#options;
    return this.#trainer.withAverages(() =>
      accuracyOf(model, this.#task, { length, sequences, seed, signal }),
    );
  }
}
