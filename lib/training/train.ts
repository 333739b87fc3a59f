import { lockFolder } from '../io/lock';
import { Run } from './run';
import { checkTrainOptions, type TrainOptions, type TrainResult } from './train-options';
import type { Trainer } from './trainer';

/**
 * Trains to the last step of `trainer.options`, or to the end of the data, with evaluations, checkpoints,
 * a log and its curves. What it does from one checkpoint on is the same to the bit on one device, whether
 * it went on or was taken up again.
 * @throws TypeError, RangeError for bad options and TrainingError where the folder has no room or is in use by
 * another training, before any work; TrainingError for a loss that is not finite, with the step, the first such tensor, and the state
 * before that step saved.
 */
export async function train(trainer: Trainer, options: TrainOptions): Promise<TrainResult> {
  checkTrainOptions(trainer, options);
  const { folder, onWarning } = options;
  const lock = folder === undefined ? undefined : await lockFolder(folder, onWarning);
  try {
    return await follow(new Run(trainer, options));
  } finally {
    await lock?.release();
  }
}

async function follow(run: Run): Promise<TrainResult> {
  await run.begin();
  let result: TrainResult;
  try {
    result = await run.toTheEnd();
  } catch (error) {
    await run.close().catch(() => {}); // the first error says more
    throw error;
  }
  await run.close();
  return result;
}
