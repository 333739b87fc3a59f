import { device as openDevice } from '../device';
import { CausalLM } from '../generation/causal-lm';
import type { JsonObject } from '../io/json';
import { familyOf } from '../models';
import { Weights } from '../nn/weights';
import { dtypeBytes, type Tensor } from '../tensor';
import { Optimizer } from './optimizer';
import { completeOptions } from './options';
import { Parameters } from './parameters';
import { Passes } from './step';
import type { TrainerOptions } from './trainer';

/** What a training needs, in bytes of device memory. */
export interface TrainingPlan {
  readonly numParameters: number;
  /** In f32, with their copies in a half precision. */
  readonly parameters: number;
  readonly gradients: number;
  /** Both moments, and averages. */
  readonly optimizer: number;
  /** What the passes of a batch keep and work in. */
  readonly pass: number;
  readonly total: number;
  /** Of a checkpoint, and of the model's folder: on disk. */
  readonly checkpoint: number;
  readonly model: number;
}

/** Parameters and optimizer by themselves are more than there is room for. */
export class TooLarge extends Error {
  readonly bytes: number;

  constructor(bytes: number) {
    super(`parameters and optimizer take ${bytes} bytes`);
    this.bytes = bytes;
  }
}

/**
 * What training a model with batches of so many rows of one length takes: it is built and a step
 * recorded on the device, but no parameter is drawn and nothing run.
 * @throws TooLarge before the step is recorded, where what stands beside it takes more than `most` bytes.
 */
export function planTraining(
  json: JsonObject,
  { device: on, seed: _seed, tokenizer: _tokenizer, ...options }: TrainerOptions,
  batch: { readonly rows: number; readonly length: number },
  most = Infinity,
): TrainingPlan {
  const complete = completeOptions('planTraining', options);
  const device = openDevice(on);
  const { config } = familyOf(json);
  const dtype = complete.precision;
  device.trim();
  // What a graph works in counts as cached: nothing of it is live between replays.
  const held = () => {
    const { used, cached } = device.held();
    return used + cached;
  };
  const before = held();
  const parameters = new Parameters(device, dtype, complete.average !== undefined, false);
  const made: { dispose(): void }[] = [parameters];
  try {
    const weights = new Weights({ device, dtype, place: parameters.place });
    const model = new CausalLM(config, { device, dtype, weights });
    made.unshift(model);
    const optimizer = new Optimizer(device, parameters, complete);
    made.unshift(optimizer);
    const passes = new Passes(model, parameters, optimizer, complete);
    made.unshift(passes);
    const standing = held();
    if (standing - before > most) throw new TooLarge(standing - before);
    passes.prepare(Int32Array.from({ length: batch.rows + 1 }, (_, i) => i * batch.length));
    const total = held() - before;
    const sum = (...names: readonly ('parameter' | 'copy' | 'gradient' | 'm' | 'v' | 'average')[]) =>
      parameters.blocks.reduce(
        (all, block) => all + names.reduce((own, name) => own + bytesOf(block[name]), 0),
        0,
      );
    return {
      numParameters: model.numParameters,
      parameters: sum('parameter', 'copy'),
      gradients: sum('gradient'),
      optimizer: sum('m', 'v', 'average'),
      pass: total - (standing - before),
      total,
      checkpoint: sum('parameter', 'm', 'v', 'average'),
      model: 4 * model.numParameters,
    };
  } finally {
    for (const one of made) one.dispose();
    device.trim();
  }
}

const bytesOf = (tensor: Tensor | undefined): number => (tensor ? tensor.size * dtypeBytes[tensor.dtype] : 0);
