import { device as openDevice, type Device } from '../device';
import { DisposedError } from '../errors';
import { CausalLM } from '../generation/causal-lm';
import { openCheckpoint } from '../io/checkpoint';
import { readJson, type JsonObject } from '../io/json';
import { familyOf } from '../models';
import { Weights } from '../nn/weights';
import { scope, Tensor } from '../tensor';
import { checkBatch, countLabels, longestOf, type TrainingBatch } from './batch';
import { Optimizer, type StepReport } from './optimizer';
import { completeOptions, type CompleteOptions, type TrainingOptions } from './options';
import { Parameters } from './parameters';
import { learningRateAt } from './schedule';
import { Passes } from './step';

export interface TrainerOptions extends TrainingOptions {
  /** `cpu`, `cuda`, `cuda:1` or an open device. Default: SELECTIVE_SCAN_DEVICE, or the CPU. */
  readonly device?: string | Device;
  /** Of fresh parameters. */
  readonly seed?: number;
}

/** A step's report, with what the host decided. */
export interface TrainingStep extends StepReport {
  /** From 1 on. */
  readonly step: number;
  readonly learningRate: number;
}

/**
 * A model that is being trained: parameters and AdamW's moments in f32, the forward and backward pass of a
 * batch recorded once for its shape and run again as one call.
 */
export class Trainer {
  /** Computes with the parameters as they are after the last step. In a half precision it uses their copies. */
  readonly model: CausalLM;
  readonly options: CompleteOptions;
  readonly parameters: Parameters;
  readonly optimizer: Optimizer;
  readonly #passes: Passes;
  #steps = 0;
  #fresh = true;
  #disposed = false;

  private constructor(model: CausalLM, options: CompleteOptions, parameters: Parameters) {
    this.model = model;
    this.options = options;
    this.parameters = parameters;
    this.optimizer = new Optimizer(model.device, parameters, options);
    this.#passes = new Passes(model, parameters, this.optimizer);
  }

  /** A fresh model of the family and sizes of `json`, what config.json would hold. */
  static async fromConfig(json: JsonObject, options: TrainerOptions): Promise<Trainer> {
    return Trainer.#make('Trainer.fromConfig', json, options, {});
  }

  /** Goes on from the model in a folder: its parameters alone, not what an optimizer had of them. */
  static async fromPretrained(folder: string, options: TrainerOptions): Promise<Trainer> {
    const json = await readJson(`${folder}/config.json`);
    const { family } = familyOf(json);
    const checkpoint = await openCheckpoint(folder, family.rename);
    try {
      return await Trainer.#make('Trainer.fromPretrained', json, options, { checkpoint });
    } finally {
      await checkpoint.close();
    }
  }

  static async #make(
    call: string,
    json: JsonObject,
    { device: on, seed = 0, ...options }: TrainerOptions,
    from: Pick<ConstructorParameters<typeof Weights>[0], 'checkpoint'>,
  ): Promise<Trainer> {
    const complete = completeOptions(call, options);
    if (!Number.isSafeInteger(seed))
      throw new TypeError(`${call}: seed is ${String(seed)}, expected a whole number`);
    const device = openDevice(on);
    const { config } = familyOf(json);
    const dtype = complete.precision;
    const parameters = new Parameters(device, dtype, complete.average !== undefined);
    const weights = new Weights({ device, dtype, seed, place: parameters.place, ...from });
    let model: CausalLM | undefined;
    try {
      model = new CausalLM(config, { device, dtype, weights });
      await weights.load();
      parameters.refresh(true);
      model.refresh();
      return new Trainer(model, complete, parameters);
    } catch (error) {
      model?.dispose();
      parameters.dispose();
      throw error;
    }
  }

  /** Steps so far. */
  get steps(): number {
    return this.#steps;
  }

  /**
   * One step: the gradients of all `batches` together (several are micro-batches, one after the other),
   * clipped, and AdamW. Everything is queued at once; the promise is of what came of it, so that the next
   * step can be queued before. A loss that is not finite rejects in f32 and bf16; in f16 the step is
   * skipped, and counted, as the loss scale may have been too large.
   * @throws TypeError, RangeError for a bad batch, before any work.
   */
  step(batches: TrainingBatch | readonly TrainingBatch[]): Promise<TrainingStep> {
    this.#check('step');
    const all = Array.isArray(batches) ? (batches as readonly TrainingBatch[]) : [batches as TrainingBatch];
    if (all.length === 0) throw new RangeError('step: batches is empty, expected one or more');
    for (const batch of all) checkBatch('step', batch);
    const count = countLabels(all);
    if (count === 0) throw new RangeError('step: labels are all -100, expected some that count');
    const learningRate = learningRateAt(this.#steps, this.options.schedule);
    for (const batch of all) this.#passes.add(batch, count);
    this.#passes.update(learningRate);
    this.#fresh = false;
    const step = ++this.#steps;
    const report = this.optimizer.report();
    return report.then((done) => {
      if (!Number.isFinite(done.loss) && this.options.precision !== 'f16')
        throw new RangeError(
          `step: loss is ${done.loss} at step ${step}; the parameters are those of the step before`,
        );
      return { step, learningRate, ...done };
    });
  }

  /** The mean loss over batches, nothing being updated. */
  async evaluate(batches: Iterable<TrainingBatch> | AsyncIterable<TrainingBatch>): Promise<number> {
    this.#check('evaluate');
    this.#refresh();
    const { device } = this.model;
    let [sum, count] = [0, 0];
    for await (const batch of batches) {
      checkBatch('evaluate', batch);
      this.#check('evaluate');
      const loss = scope(() => {
        const ints = (values: Int32Array) => Tensor.from(values, [values.length], { device });
        const slots = ints(Int32Array.from({ length: batch.offsets.length - 1 }, (_, i) => i));
        const packing = { offsets: ints(batch.offsets), slots, longest: longestOf(batch.offsets) };
        const factor = Tensor.from([1], [1], { device });
        return this.model.loss(ints(batch.ids), packing, ints(batch.labels), factor);
      });
      sum += (await loss.data().finally(() => loss.dispose()))[0]!;
      count += countLabels([batch]);
    }
    return sum / count;
  }

  /** Writes a folder that `AutoModelForCausalLM` and transformers load: the parameters in f32. */
  async save(folder: string): Promise<void> {
    this.#check('save');
    await this.model.savePretrained(folder);
  }

  /** What is computed from parameters once, such as A, has to follow them before the model is used. */
  #refresh(): void {
    if (this.#fresh) return;
    this.model.refresh();
    this.#fresh = true;
  }

  /** After the parameters, the moments and the scaler were set from outside. */
  resumed(steps: number): void {
    this.#steps = steps;
    this.#fresh = false;
    this.parameters.refresh(false);
    this.#refresh();
  }

  #check(call: string): void {
    if (this.#disposed) throw new DisposedError(`${call}: trainer is disposed`);
  }

  /** Frees the model and all that the training keeps of it. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#passes.dispose();
    this.optimizer.dispose();
    this.model.dispose();
    this.parameters.dispose();
  }
}
