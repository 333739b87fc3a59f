import { join } from 'node:path';
import type { JsonObject } from '../io/json';
import { familyOf } from '../models';
import type { EvaluationRecord } from '../training/log';
import { completeOptions } from '../training/options';
import type { TrainingPlan } from '../training/plan';
import type { TrainResult } from '../training/train-options';
import type { TrainerOptions } from '../training/trainer';
import type { TrainingData } from './train-data';
import type { Settings } from './train-settings';
import { count, oneLine, size, table } from './terminal';

const plural = (n: number, what: string) => `${count(n)} ${what}${n === 1 ? '' : 's'}`;

/** What a training is going to do, and what it takes. */
export function describePlan(
  settings: Settings,
  plan: TrainingPlan,
  data: TrainingData,
  { device: _device, seed: _seed, tokenizer: _tokenizer, ...options }: TrainerOptions,
  json: JsonObject,
): string {
  const { batch = 8, microBatches = 1, length = 256, from, out, keep = 2, keepBest } = settings;
  const { numLayers, hiddenSize, modelType, vocabSize } = familyOf(json).config;
  const { steps, learningRate, precision, average, schedule } = completeOptions('train', options);
  const tokens = data.bytes ? 'bytes' : 'tokens';
  const perStep = batch * length;
  const epochs = (steps * perStep) / data.epochTokens;
  const rate =
    schedule.shape === 'constant'
      ? `${learningRate}`
      : `${learningRate} to ${schedule.minimum} by half a cosine`;
  const { evaluateEvery = Math.ceil(steps / 20), saveEvery = Math.ceil(steps / 10) } = settings;
  const average_ = average === undefined ? '' : `; averages of ${average} are evaluated and saved`;
  const rows: (readonly [string, string])[] = [
    [
      'model',
      `${modelType}${from ? ` from ${oneLine(from)}` : ''}, ${plural(numLayers, 'layer')} of ${hiddenSize}, ` +
        `vocabulary ${count(vocabSize)}: ${count(plan.numParameters)} parameters`,
    ],
    [
      'data',
      `${count(data.tokens)} ${tokens} of ${plural(data.files, 'file')}` +
        (data.heldOut > 0 ? `, ${count(data.heldOut)} ${tokens} held out` : ', none held out'),
    ],
    [
      'step',
      `${batch} × ${length} = ${count(perStep)} ${tokens}` +
        (microBatches > 1 ? ` in ${microBatches} micro-batches` : '') +
        `, ${precision}`,
    ],
    ['plan', `${plural(steps, 'step')}, ${epochs.toFixed(2)} times through the data`],
    ['learning rate', `${rate}, after ${plural(schedule.warmup, 'step')} of warm-up${average_}`],
    ...(data.validation ? [['evaluation', `every ${plural(evaluateEvery, 'step')}`] as const] : []),
    [
      'checkpoints',
      `every ${plural(saveEvery, 'step')}, the last ${keep}${keepBest ? ' and the best model' : ''}; ` +
        `${size(plan.checkpoint)} each, the model ${size(plan.model)}`,
    ],
    [
      'memory',
      `${size(plan.total)}: parameters ${size(plan.parameters)}, gradients ${size(plan.gradients)}, ` +
        `optimizer ${size(plan.optimizer)}, a pass ${size(plan.pass)}`,
    ],
    ...(out ? [['out', oneLine(out)] as const] : []),
  ];
  return table(rows);
}

const bits = (nats: number) => nats / Math.LN2;

/** A loss in nats a token; of bytes also in bits, in which they are compared. */
const loss = (nats: number, data: TrainingData) =>
  data.bytes ? `${nats.toFixed(4)} (${bits(nats).toFixed(4)} bits per byte)` : nats.toFixed(4);

export const describeEvaluation = (
  { step, validation, best }: EvaluationRecord,
  data: TrainingData,
): string =>
  `step ${count(step)}: held-out loss ${loss(validation, data)}${best ? ', the lowest so far' : ''}`;

/** What came of it, and what to do next. */
export function describeResult(out: string, result: TrainResult, data: TrainingData): string {
  const { steps, tokens, validation, best, checkpoint } = result;
  const rows: (readonly [string, string])[] = [
    ['steps', `${count(steps)}, ${count(tokens)} ${data.bytes ? 'bytes' : 'tokens'}`],
    ...(result.loss === undefined ? [] : [['loss', loss(result.loss, data)] as const]),
    ...(validation === undefined ? [] : [['held out', loss(validation, data)] as const]),
    ...(best && best.validation !== validation
      ? [['best', `${loss(best.validation, data)} at step ${count(best.step)}`] as const]
      : []),
    ['model', oneLine(out)],
    ['curves', oneLine(join(out, 'training', 'curves.html'))],
    ...(checkpoint === undefined ? [] : [['checkpoint', oneLine(checkpoint)] as const]),
  ];
  return table(rows);
}
