import { statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { TrainingError } from '../errors';
import { makeFolder } from '../io/folder';
import { isObject } from '../io/json';
import { countLabels, type TrainingBatch } from './batch';
import { AllDamaged, checkpointBytes, findCheckpoints, loadCheckpoint, saveCheckpoint } from './checkpoints';
import { writeCurves } from './curves';
import { Log, type StepRecord } from './log';
import type { TrainOptions, TrainResult } from './train-options';
import type { Trainer, TrainingStep } from './trainer';

const logName = 'log.jsonl';
const curvesName = 'curves.html';
const failedName = 'failed';

/** Seconds between two drawings of the curves, at least. */
const drawEvery = 20;

/** Steps that are logged together. */
interface Interval {
  loss: number;
  steps: number;
  tokens: number;
  since: number;
}

/** A step that was queued. */
interface Queued {
  readonly step: number;
  readonly report: Promise<TrainingStep>;
  readonly batches: readonly TrainingBatch[];
  /** What `source` gives before it. */
  readonly data: unknown;
}

/** A training from its beginning, or from a checkpoint, to its end. */
export class Run {
  readonly #trainer: Trainer;
  readonly #options: TrainOptions;
  readonly #steps: number;
  readonly #every: { readonly log: number; readonly evaluate: number; readonly save: number };
  #log: Log | undefined;
  #tokens = 0;
  #interval: Interval = { loss: 0, steps: 0, tokens: 0, since: performance.now() };
  #loss: number | undefined;
  #validation: number | undefined;
  #best: TrainResult['best'];
  #checkpoint: string | undefined;
  #savedAt = -1;
  #evaluatedAt = -1;
  /** The step of the last evaluation that the log has. */
  #loggedAt = 0;
  #drawn = -Infinity;

  constructor(trainer: Trainer, options: TrainOptions) {
    const { steps } = trainer.options;
    this.#trainer = trainer;
    this.#options = options;
    this.#steps = steps;
    this.#every = {
      log: options.logEvery ?? Math.ceil(steps / 10_000),
      evaluate: options.evaluateEvery ?? Math.ceil(steps / 20),
      save: options.saveEvery ?? Math.ceil(steps / 10),
    };
  }

  async begin(): Promise<void> {
    const { folder, resume, keep = 2, onWarning } = this.#options;
    if (folder === undefined) return;
    await makeFolder(folder);
    if (resume) {
      const found = await loadCheckpoint(folder, this.#trainer, onWarning).catch((error: unknown) => {
        if (!(error instanceof AllDamaged)) throw error;
      });
      if (!found) throw await nothingToGoOnFrom(folder);
      this.#takeUp(found.data);
      this.#savedAt = this.#trainer.steps;
      this.#checkpoint = found.path;
    } else if ((await findCheckpoints(folder)).length > 0) {
      throw new TrainingError(
        `train: ${folder} has checkpoints of a training already; go on with it, or choose another folder`,
      );
    }
    const there = Math.min(keep, (await findCheckpoints(folder)).length); // they make room for others
    await checkRoom(folder, (keep + 1 - there) * checkpointBytes(this.#trainer));
    this.#log = new Log(join(folder, logName), this.#trainer.steps, this.#loggedAt);
    this.#log.write({ event: resume ? 'resumed' : 'started', at: this.#trainer.steps });
  }

  /** What `#save` gave with a checkpoint. */
  #takeUp(data: unknown): void {
    if (!isObject(data) || typeof data['tokens'] !== 'number')
      throw new TrainingError(`train: the checkpoint in ${this.#options.folder} is not one of train`);
    this.#options.source.restore(data['source']);
    this.#tokens = data['tokens'];
    this.#best = (data['best'] ?? undefined) as TrainResult['best'];
    this.#loggedAt = Number(data['evaluated'] ?? this.#trainer.steps);
  }

  async toTheEnd(): Promise<TrainResult> {
    const { signal } = this.#options;
    let queued: Queued | undefined; // one step is under way while the next one is prepared
    let [more, stopped] = [true, false];
    while (more) {
      stopped = signal?.aborted === true;
      const next = stopped || this.#trainer.steps >= this.#steps ? undefined : await this.#queue();
      if (queued) await this.#settle(queued);
      queued = next;
      more = next !== undefined;
      const { steps } = this.#trainer;
      const evaluates = more && this.#options.validation && steps % this.#every.evaluate === 0;
      const saves = more && this.#options.folder !== undefined && steps % this.#every.save === 0;
      if (!evaluates && !saves) continue;
      await this.#settle(queued!);
      queued = undefined;
      if (evaluates) await this.#evaluate();
      if (saves) await this.#save();
    }
    if (this.#options.validation && !stopped && this.#evaluatedAt !== this.#trainer.steps)
      await this.#evaluate();
    await this.#save();
    return this.#result(stopped);
  }

  #result(stopped: boolean): TrainResult {
    return {
      steps: this.#trainer.steps,
      tokens: this.#tokens,
      loss: this.#loss,
      validation: this.#validation,
      best: this.#best,
      checkpoint: this.#checkpoint,
      stopped,
    };
  }

  async #queue(): Promise<Queued | undefined> {
    const { source, microBatches = 1 } = this.#options;
    const data = source.state();
    const batches: TrainingBatch[] = [];
    for (let batch; batches.length < microBatches && (batch = await source.next());) batches.push(batch);
    if (batches.length < microBatches) return undefined;
    const report = this.#trainer.step(batches);
    report.catch(() => {}); // `#settle` tells of it
    return { step: this.#trainer.steps, report, batches, data };
  }

  async #settle(queued: Queued): Promise<void> {
    const done = await queued.report.catch((error: unknown) => this.#failed(queued, error));
    const interval = this.#interval;
    const count = countLabels(queued.batches);
    this.#tokens += count;
    interval.tokens += count;
    interval.loss += done.loss;
    interval.steps++;
    if (done.step % this.#every.log !== 0 && done.step !== this.#steps) return;
    const seconds = (performance.now() - interval.since) / 1000;
    this.#loss = interval.loss / interval.steps;
    const { gradientNorm, learningRate, lossScale, skipped } = done;
    const { used, cached } = this.#trainer.model.device.held();
    const record: StepRecord = {
      step: done.step,
      tokens: this.#tokens,
      loss: this.#loss,
      learningRate,
      gradientNorm,
      tokensPerSecond: Math.round(interval.tokens / seconds),
      memory: used + cached, // what a graph works in is cached between replays
      ...(this.#trainer.options.precision === 'f16' && { lossScale, skipped }),
      ...(done.router && { router: done.router }),
    };
    this.#restart();
    this.#log?.write(record);
    this.#options.onStep?.(record);
    await this.#draw(false);
  }

  /** The clock of the speed starts anew: what was done besides steps does not count. */
  #restart(): void {
    this.#interval = { loss: 0, steps: 0, tokens: 0, since: performance.now() };
  }

  async #evaluate(): Promise<void> {
    const begin = performance.now();
    const { steps } = this.#trainer;
    const lowest = this.#best?.validation ?? Infinity;
    const validation = await this.#trainer.withAverages(async () => {
      const loss = await this.#trainer.evaluate(this.#options.validation!());
      if (this.#options.best !== undefined && loss < lowest) await this.#trainer.save(this.#options.best);
      return loss;
    });
    const best = validation < lowest; // NaN never is
    if (best) this.#best = { step: steps, validation };
    const record = { step: steps, validation, best };
    this.#validation = validation;
    this.#evaluatedAt = steps;
    if (steps !== this.#loggedAt) this.#log?.write(record);
    this.#loggedAt = steps;
    this.#options.onEvaluation?.(record);
    this.#interval.since += performance.now() - begin;
  }

  async #save(): Promise<void> {
    const { folder, source, keep, onCheckpoint } = this.#options;
    if (folder === undefined || this.#savedAt === this.#trainer.steps) return;
    const begin = performance.now();
    this.#checkpoint = await this.#checkpointIn(folder, source.state(), keep);
    this.#savedAt = this.#trainer.steps;
    onCheckpoint?.(this.#checkpoint);
    this.#interval.since += performance.now() - begin;
  }

  async #checkpointIn(folder: string, source: unknown, keep?: number): Promise<string> {
    const data = { source, tokens: this.#tokens, best: this.#best ?? null, evaluated: this.#loggedAt };
    return saveCheckpoint(folder, this.#trainer, { data, ...(keep !== undefined && { keep }) }).catch(
      (error: NodeJS.ErrnoException) => {
        const last = this.#checkpoint ? `the last one is ${this.#checkpoint}` : 'there is none before it';
        const why = error.code === 'ENOSPC' ? 'the disk is full' : error.message;
        throw new TrainingError(
          `train: the checkpoint of step ${this.#trainer.steps} cannot be written, ${why}; ${last}`,
          { cause: error },
        );
      },
    );
  }

  /** Looks for what is not finite, and saves the state before the step. */
  async #failed({ step, batches, data }: Queued, error: unknown): Promise<never> {
    if (!(error instanceof TrainingError)) throw error;
    const { folder } = this.#options;
    const what = /^step: (.*?) at step/.exec(error.message)?.[1] ?? error.message;
    const tensor = await this.#trainer.diagnose(step, batches);
    const first = tensor
      ? `the first tensor that is not finite is ${tensor}`
      : 'in a second pass all tensors are finite';
    this.#log?.write({ event: 'failed', at: step, why: what, tensor: tensor ?? null });
    const at = folder && (await this.#checkpointIn(join(folder, failedName), data));
    const saved = at ? `; the state before the step is saved in ${at}` : '';
    throw new TrainingError(`train: ${what} at step ${step}; ${first}${saved}`, { cause: error });
  }

  async #draw(last: boolean): Promise<void> {
    const { folder, title = 'Training' } = this.#options;
    if (!this.#log || folder === undefined) return;
    const now = performance.now();
    if (!last && now - this.#drawn < 1000 * drawEvery) return;
    this.#drawn = now;
    await this.#log.close();
    await writeCurves(join(folder, logName), join(folder, curvesName), title, last ? undefined : drawEvery);
    this.#interval.since += performance.now() - now;
  }

  /** The page as it stays, and all lines written. */
  async close(): Promise<void> {
    await this.#draw(true);
    await this.#log?.close();
  }
}

async function nothingToGoOnFrom(folder: string): Promise<TrainingError> {
  const failed = join(folder, failedName);
  const state = (await findCheckpoints(failed)).at(-1);
  const anew =
    (await findCheckpoints(folder)).length > 0
      ? 'to begin the training anew, move that folder away first'
      : 'the command that began the training begins it anew';
  const kept = state === undefined ? '' : `; ${join(failed, state)} has the state before a step that failed`;
  return new TrainingError(`train: ${folder} holds no checkpoint that could be gone on from; ${anew}${kept}`);
}

/** @throws TrainingError where a folder's disk has less than `bytes` free. */
async function checkRoom(folder: string, bytes: number): Promise<void> {
  const { bavail, bsize } = await statfs(folder);
  const free = bavail * bsize;
  if (free >= bytes) return;
  const MiB = (size: number) => `${(size / 2 ** 20).toFixed(1)} MiB`;
  throw new TrainingError(
    `train: ${folder} has ${MiB(free)} free, expected ${MiB(bytes)} or more; that is what checkpoints take`,
  );
}
