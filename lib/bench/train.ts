import type { Device } from '../device';
import type { CausalLM } from '../generation/causal-lm';
import type { FloatFormat } from '../io/convert';
import type { JsonObject } from '../io/json';
import { seeded } from '../nn/init';
import { scope } from '../tensor';
import { countLabels, rowsToBatch, type TrainingBatch } from '../training/batch';
import { Optimizer } from '../training/optimizer';
import { completeOptions } from '../training/options';
import { Parameters } from '../training/parameters';
import { Passes } from '../training/step';
import { timeRuns } from './measure';
import { profileOps, type OpTime } from './profile';
import { modelOfRandomWeights } from './random-weights';
import type { Result } from './result';

export interface TrainShape {
  readonly batch: number;
  readonly length: number;
}

/** What the peer was measured with, on a GPU. */
export const peerTraining: TrainShape = { batch: 8, length: 2048 };

/** All that a step of training needs, of a model of random weights. */
export class TrainingBench {
  private constructor(
    readonly model: CausalLM,
    readonly name: string,
    readonly precision: FloatFormat,
    readonly parameters: Parameters,
    readonly optimizer: Optimizer,
    readonly passes: Passes,
  ) {}

  /** `config` is what config.json would hold. */
  static async open(
    device: Device,
    name: string,
    config: JsonObject,
    precision: FloatFormat,
  ): Promise<TrainingBench> {
    const options = completeOptions('train', { steps: 1000, learningRate: 1e-4, precision });
    const parameters = new Parameters(device, precision, false);
    try {
      const model = await modelOfRandomWeights(config, device, precision, undefined, parameters.place);
      parameters.refresh(false);
      model.refresh();
      const optimizer = new Optimizer(device, parameters, options);
      const passes = new Passes(model, parameters, optimizer);
      return new TrainingBench(model, name, precision, parameters, optimizer, passes);
    } catch (error) {
      parameters.dispose();
      throw error;
    }
  }

  /** Times whole steps: batch brought in, forward and backward pass, clipping and AdamW. */
  async time(shape: TrainShape, runs: number): Promise<Result> {
    const batch = this.#batch(shape);
    const ms = await timeRuns(this.model.device, () => this.#step(batch), runs);
    const { loss, gradientNorm } = await this.optimizer.report();
    if (!Number.isFinite(gradientNorm))
      throw new Error(
        `${this.name}: the norm of the gradient is ${gradientNorm}, the loss ${loss}: no parameter moved, which takes less time`,
      );
    const { peak } = this.model.device.memoryUsage();
    return {
      bench: 'train_step',
      name: `${this.name}, ${shape.batch}×${shape.length}`,
      model: this.name,
      dtype: this.precision,
      shape: { ...shape },
      ms,
      figures: {
        tokensPerSecond: (1000 * shape.batch * shape.length) / ms.median,
        peakBytes: peak,
      },
    };
  }

  /** Where the time of a step goes: its ops one by one, nothing recorded as a graph. */
  ops(shape: TrainShape): Promise<OpTime[]> {
    const batch = this.#batch(shape);
    return profileOps(this.model.device, () => {
      this.passes.addDirectly(batch, countLabels([batch]));
      scope(() => this.optimizer.update());
      return Promise.resolve();
    });
  }

  #step(batch: TrainingBatch): void {
    this.passes.add(batch, countLabels([batch]));
    this.passes.update(1e-4);
  }

  /** Rows of random tokens. */
  #batch({ batch, length }: TrainShape): TrainingBatch {
    const random = seeded(1);
    const { vocabSize } = this.model.config;
    return rowsToBatch(
      Array.from({ length: batch }, () =>
        Int32Array.from({ length: length + 1 }, () => Math.floor(random() * vocabSize)),
      ),
    );
  }

  dispose(): void {
    this.passes.dispose();
    this.optimizer.dispose();
    this.model.dispose();
    this.parameters.dispose();
  }
}
