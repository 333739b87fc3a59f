import { checkFlag, checkFunction, checkNames, kindOf } from '../arguments';
import type { BatchSource, TrainingBatch } from './batch';
import type { EvaluationRecord, StepRecord } from './log';
import { checkTrainer, type Trainer } from './trainer';

export interface TrainOptions {
  readonly source: BatchSource;
  /** Batches of `source` that make one step. Default 1. */
  readonly microBatches?: number;
  /** For checkpoints, log.jsonl and curves.html; without it nothing is written. */
  readonly folder?: string;
  /** Of the page of curves. */
  readonly title?: string;
  /** Steps from one line of the log to the next. Default: so many that there are 10,000 at most. */
  readonly logEvery?: number;
  /** Held-out batches, the same each time. */
  readonly validation?: () => Iterable<TrainingBatch> | AsyncIterable<TrainingBatch>;
  /** Steps from one evaluation to the next; the last step always has one. Default a twentieth of all. */
  readonly evaluateEvery?: number;
  /** Steps from one checkpoint to the next; the last step always has one. Default a tenth of all. */
  readonly saveEvery?: number;
  /** Checkpoints that are kept. Default 2. */
  readonly keep?: number;
  /** A folder for the model whose validation loss is the lowest so far. */
  readonly best?: string;
  /** Goes on from the newest checkpoint in `folder`. Without it a folder that has some is refused. */
  readonly resume?: boolean;
  /** Ends the training after the step that is under way, with a checkpoint. */
  readonly signal?: AbortSignal;
  readonly onStep?: (record: StepRecord) => void;
  readonly onEvaluation?: (record: EvaluationRecord) => void;
  readonly onCheckpoint?: (path: string) => void;
  readonly onWarning?: (message: string) => void;
}

export interface TrainResult {
  readonly steps: number;
  readonly tokens: number;
  /** Of the last steps that were logged; undefined where none was. */
  readonly loss: number | undefined;
  /** Of the last evaluation, and of the best. */
  readonly validation: number | undefined;
  readonly best: { readonly step: number; readonly validation: number } | undefined;
  /** The last checkpoint. */
  readonly checkpoint: string | undefined;
  /** Whether `signal` ended it. */
  readonly stopped: boolean;
}

const names: readonly (keyof TrainOptions)[] = [
  ...(['source', 'microBatches', 'folder', 'title', 'logEvery', 'validation', 'evaluateEvery'] as const),
  ...(['saveEvery', 'keep', 'best', 'resume', 'signal'] as const),
  ...(['onStep', 'onEvaluation', 'onCheckpoint', 'onWarning'] as const),
];

/** @throws TypeError, RangeError that name the option. */
export function checkTrainOptions(trainer: Trainer, options: TrainOptions): void {
  checkTrainer('train', trainer);
  checkNames('train', options, names, 'options');
  if (typeof (options.source as Partial<BatchSource> | undefined)?.next !== 'function')
    throw new TypeError(`train: source is ${kindOf(options.source)}, expected a BatchSource`);
  for (const name of ['folder', 'title', 'best'] as const)
    if (options[name] !== undefined && typeof options[name] !== 'string')
      throw new TypeError(
        `train: ${name} is ${kindOf(options[name])}, expected ${name === 'title' ? 'text' : 'a path'}`,
      );
  for (const name of ['validation', 'onStep', 'onEvaluation', 'onCheckpoint', 'onWarning'] as const)
    if (options[name] !== undefined) checkFunction('train', options[name], name);
  if (options.signal !== undefined && !(options.signal instanceof AbortSignal))
    throw new TypeError(`train: signal is ${kindOf(options.signal)}, expected an AbortSignal`);
  checkFlag('train', 'resume', options.resume);
  for (const name of ['microBatches', 'logEvery', 'evaluateEvery', 'saveEvery', 'keep'] as const) {
    const value = options[name];
    if (value !== undefined && !(Number.isInteger(value) && value >= 1))
      throw new RangeError(`train: ${name} is ${String(value)}, expected a whole number, 1 or more`);
  }
  for (const name of ['keep', 'saveEvery', 'resume'] as const)
    if (options[name] && options.folder === undefined)
      throw new TypeError(`train: ${name} is given, but no folder for checkpoints`);
  for (const name of ['best', 'evaluateEvery'] as const)
    if (options[name] !== undefined && !options.validation)
      throw new TypeError(`train: ${name} is given, but no validation to go by`);
  if (trainer.steps > 0 && options.resume)
    throw new TypeError(`train: resume is given, but trainer has done ${trainer.steps} steps already`);
}
