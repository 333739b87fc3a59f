import { totalmem } from 'node:os';
import { join } from 'node:path';
import { device as openDevice } from '../device';
import { FormatError } from '../errors';
import { resolveModel } from '../io/hub';
import { writeByteLevelTokenizer } from '../io/byte-level';
import { readJson, type JsonObject } from '../io/json';
import { loadTokenizer, type Tokenizer } from '../io/tokenizer';
import { familyOf } from '../models';
import type { CommonConfig } from '../models/family';
import { completeOptions } from '../training/options';
import { planTraining, TooLarge, type TrainingPlan } from '../training/plan';
import { Trainer, type TrainerOptions } from '../training/trainer';
import { UsageError } from './exit';
import { forgetTokens, openData, type TrainingData } from './train-data';
import { modelOf } from './train-model';
import type { Settings } from './train-settings';
import { note, size } from './terminal';

/** A training, ready to begin. */
export interface Job {
  readonly config: JsonObject;
  readonly data: TrainingData;
  readonly plan: TrainingPlan;
  readonly options: TrainerOptions;
  /** The folder that `--from` means. */
  readonly from: string | undefined;
}

/** Everything that can be refused is refused here. `folder` takes what data need. */
export async function prepare(
  settings: Settings,
  folder: string,
  signal: AbortSignal,
  resumes: boolean,
): Promise<Job> {
  checkOptionsEarly(settings);
  const from = settings.from === undefined ? undefined : await resolveModel(settings.from, { signal });
  const config = from ? await readJson(join(from, 'config.json')) : undefined;
  const tokenizer = await tokenizerFor(settings, from, config);
  const json = config ?? (await modelOf(settings, tokenizer));
  const { vocabSize } = config ? familyOf(json).config : configOf(json, settings);
  if (tokenizer && tokenizer.vocabSize > vocabSize)
    throw new UsageError(
      `--tokenizer has ${tokenizer.vocabSize} tokens, expected at most vocab_size of the model, which is ${vocabSize}`,
    );
  if (!tokenizer && vocabSize < 256)
    throw new UsageError(`vocab_size of the model is ${vocabSize}, expected 256 or more for bytes`);
  if (!resumes) await forgetTokens(folder);
  const data = await openData(settings, tokenizer, vocabSize, folder, note);
  signal.throwIfAborted();
  const options = trainerOptions(settings, data);
  const { batch = 8, microBatches = 1, length = 256 } = settings;
  const plan = planned(json, options, { rows: batch / microBatches, length });
  return { config: json, data, plan, options, from };
}

/** Of a fresh model. Sizes that flags gave are called by them. */
function configOf(json: JsonObject, { model }: Settings): CommonConfig {
  try {
    return familyOf(json).config;
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    const said = model === undefined && /^config\.json: (\w+) (.*)/s.exec(error.message);
    const flag = said && sizeFlags.get(said[1]!);
    throw new UsageError(flag ? `${flag} ${said[2]}` : error.message, { cause: error });
  }
}

const sizeFlags: ReadonlyMap<string, string> = new Map([
  ['hidden_size', '--width'],
  ['num_hidden_layers', '--layers'],
  ['num_layers', '--layers'],
  ['state_size', '--state-size'],
  ['num_experts', '--experts'],
]);

function planned(
  json: JsonObject,
  options: TrainerOptions,
  batch: { readonly rows: number; readonly length: number },
): TrainingPlan {
  const refuse = (why: string, cause?: unknown) =>
    new UsageError(
      `this model and a pass over ${batch.rows} rows of ${batch.length} tokens do not fit, expected a smaller model, --batch or --length, or more --micro-batches; ${why}`,
      { cause },
    );
  // A CPU's memory is given before it is there: what uses more of it is ended without a word.
  const most = openDevice(options.device).id === 'cpu' ? totalmem() : Infinity;
  let plan;
  try {
    plan = planTraining(json, options, batch, most);
  } catch (error) {
    if (error instanceof TooLarge)
      throw refuse(
        `parameters and optimizer alone take ${size(error.bytes)}, and this machine has ${size(most)}`,
        error,
      );
    const { message } = error as Error;
    throw message.includes('out of memory') ? refuse(message, error) : error;
  }
  if (plan.total > most) throw refuse(`they take ${size(plan.total)}, and this machine has ${size(most)}`);
  return plan;
}

/** The tokenizer that makes tokens of texts; undefined where bytes are tokens. */
async function tokenizerFor(
  { tokenizer }: Settings,
  from: string | undefined,
  config: JsonObject | undefined,
): Promise<Tokenizer | undefined> {
  const bytes = config !== undefined && familyOf(config).family.codec === 'bytes';
  if (bytes && tokenizer !== undefined)
    throw new UsageError('--tokenizer is given, but the tokens of the model of --from are bytes');
  const folder = tokenizer ?? (bytes ? undefined : from);
  const found = folder === undefined ? undefined : await loadTokenizer(folder);
  if (!found && tokenizer !== undefined)
    throw new UsageError(`--tokenizer: ${tokenizer} has no tokenizer.json, expected a folder with one`);
  return found;
}

const namesOfOptions = [
  ...([
    'learningRate',
    'schedule',
    'warmup',
    'minimumLearningRate',
    'weightDecay',
    'beta1',
    'beta2',
  ] as const),
  ...(['eps', 'clip', 'lossScale', 'lossScaleInterval', 'device', 'seed'] as const),
];

const mostSteps = 1e9;

function trainerOptions(settings: Settings, data: TrainingData): TrainerOptions {
  const { steps, epochs = 1, microBatches = 1, learningRate = 1e-3, ema, dtype } = settings;
  const given = namesOfOptions.filter((name) => settings[name] !== undefined);
  const each = Math.floor((epochs * data.training.batchesPerEpoch) / microBatches);
  if (steps === undefined && each > mostSteps)
    throw new UsageError(
      `--epochs is ${epochs}, which is ${each} steps, expected at most ${mostSteps} of them`,
    );
  return {
    ...Object.fromEntries(given.map((name) => [name, settings[name]])),
    learningRate,
    steps: steps ?? Math.max(1, each),
    ...(ema !== undefined && { average: ema }),
    ...(dtype !== undefined && { precision: dtype }),
  };
}

/** Before files are read, which may take long. */
function checkOptionsEarly(settings: Settings): void {
  const data = { training: { batchesPerEpoch: 1 } } as TrainingData; // it is not known how many
  const { device: _device, seed, ...options } = trainerOptions({ steps: mostSteps, ...settings }, data);
  completeOptions('Trainer.fromConfig', options);
  if (seed !== undefined && !Number.isSafeInteger(seed))
    throw new UsageError(`--seed is ${seed}, expected a whole number`);
  const { steps, warmup } = settings;
  if (steps !== undefined && warmup !== undefined && warmup > steps)
    throw new UsageError(`--warmup is ${warmup}, expected at most --steps, which is ${steps}`);
}

/** The trainer of a job; what a model of bytes needs beside it is written into `out`. */
export async function makeTrainer(
  { config, options, from }: Pick<Job, 'config' | 'options' | 'from'>,
  { tokenizer, out }: Settings & { readonly out: string },
): Promise<Trainer> {
  if (from) return Trainer.fromPretrained(from, { ...options, ...(tokenizer && { tokenizer }) });
  if (tokenizer) return Trainer.fromConfig(config, { ...options, tokenizer });
  if (familyOf(config).family.codec === 'bytes') return Trainer.fromConfig(config, options);
  await writeByteLevelTokenizer(out);
  return Trainer.fromConfig(config, { ...options, tokenizer: out });
}
