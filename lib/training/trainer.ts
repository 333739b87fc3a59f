import { checkFunction, checkRecord, kindOf } from '../arguments';
import { device as openDevice, type Device } from '../device';
import { DisposedError, TrainingError } from '../errors';
import { CausalLM } from '../generation/causal-lm';
import { readModelFolder } from '../generation/model-folder';
import { openCheckpoint } from '../io/checkpoint';
import { resolveModel } from '../io/hub';
import type { JsonObject } from '../io/json';
import { loadTokenizer } from '../io/tokenizer';
import { familyOf } from '../models';
import { generationDefaults, type Extras } from '../models/save';
import { Weights } from '../nn/weights';
import { scope, Tensor } from '../tensor';
import { checkBatch, checkBatches, countLabels, longestOf, type TrainingBatch } from './batch';
import { firstNotFinite } from './diagnosis';
import { tokenizerOf } from './model-tokenizer';
import { Optimizer, type StepReport } from './optimizer';
import { checkRouterOptions, completeOptions, type CompleteOptions, type TrainingOptions } from './options';
import { Parameters } from './parameters';
import type { RouterReport } from './routers';
import { learningRateAt } from './schedule';
import { Passes } from './step';

export interface TrainerOptions extends TrainingOptions {
  /** `cpu`, `cuda`, `cuda:1` or an open device. Default: SELECTIVE_SCAN_DEVICE, or the CPU. */
  readonly device?: string | Device;
  /** Of fresh parameters. */
  readonly seed?: number;
  /** A folder with a tokenizer.json, whose files are saved with the model. `fromPretrained` has the model's own. */
  readonly tokenizer?: string;
}

/** A step's report, with what the host decided. */
export interface TrainingStep extends StepReport {
  /** From 1 on. */
  readonly step: number;
  readonly learningRate: number;
  /** Of a model with mixtures of experts. */
  readonly router?: RouterReport;
}

/** The loss scale of f16 below which no step can be hoped for: 26 in a row were skipped on the way. */
const leastScale = 2 ** -10;

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
  #passes: Passes;
  #steps = 0;
  #fresh = true;
  #averaging = false;
  #disposed = false;

  private constructor(model: CausalLM, options: CompleteOptions, parameters: Parameters) {
    this.model = model;
    this.options = options;
    this.parameters = parameters;
    this.optimizer = new Optimizer(model.device, parameters, options);
    this.#passes = new Passes(model, parameters, this.optimizer, options);
  }

  /** A fresh model of the family and sizes of `json`, what config.json would hold. */
  static async fromConfig(json: JsonObject, options: TrainerOptions): Promise<Trainer> {
    checkRecord('Trainer.fromConfig', json, 'config');
    checkRecord('Trainer.fromConfig', options, 'options');
    return Trainer.#make('Trainer.fromConfig', json, options, {});
  }

  /** Goes on from a model, a folder or hub id: its parameters alone, not what an optimizer had of them. */
  static async fromPretrained(pathOrId: string, options: TrainerOptions): Promise<Trainer> {
    const call = 'Trainer.fromPretrained';
    if (typeof pathOrId !== 'string')
      throw new TypeError(`${call}: pathOrId is ${kindOf(pathOrId)}, expected a folder or a hub id`);
    checkRecord(call, options, 'options');
    const folder = await resolveModel(pathOrId, {});
    const { stored, config, generationConfig, isOfBytes } = await readModelFolder(folder);
    const checkpoint = await openCheckpoint(folder, stored.rename);
    const tokenizer = !isOfBytes && (await loadTokenizer(folder)) ? folder : undefined;
    try {
      const complete = { tokenizer, ...options };
      return await Trainer.#make(call, config.json, complete, { checkpoint }, generationConfig);
    } finally {
      await checkpoint.close();
    }
  }

  static async #make(
    call: string,
    json: JsonObject,
    { device: on, seed = 0, tokenizer: tokenizerFolder, ...options }: TrainerOptions,
    from: Pick<ConstructorParameters<typeof Weights>[0], 'checkpoint'>,
    generationConfig: JsonObject = generationDefaults(json),
  ): Promise<Trainer> {
    const complete = completeOptions(call, options);
    if (!Number.isSafeInteger(seed))
      throw new TypeError(`${call}: seed is ${String(seed)}, expected a whole number`);
    const device = openDevice(on);
    const { config, family } = familyOf(json);
    const tokenizer = await tokenizerOf(call, tokenizerFolder, family.codec === 'bytes', config.vocabSize);
    const extras: Extras = { generationConfig, ...(tokenizer && { tokenizerFolder: tokenizerFolder! }) };
    const dtype = complete.precision;
    const parameters = new Parameters(device, dtype, complete.average !== undefined);
    const weights = new Weights({ device, dtype, seed, place: parameters.place, ...from });
    let model: CausalLM | undefined;
    try {
      model = new CausalLM(config, { device, dtype, weights, extras, ...(tokenizer && { tokenizer }) });
      await weights.load();
      checkRouterOptions(call, complete, model.backbone.routers !== undefined);
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
   * step can be queued before. In f32 and bf16 a loss or gradient that is not finite rejects with a
   * TrainingError, and no step after it is taken; in f16 the step is skipped, and counted, as the loss scale
   * may have been too large, until it has become too small for any hope.
   * @throws TypeError, RangeError for a bad batch, before any work.
   */
  step(batches: TrainingBatch | readonly TrainingBatch[]): Promise<TrainingStep> {
    this.#check('step');
    this.checkNotAveraging('step');
    const all = Array.isArray(batches) ? (batches as readonly TrainingBatch[]) : [batches as TrainingBatch];
    checkBatches('step', all, this.model.config.vocabSize);
    const count = countLabels(all);
    if (count === 0) throw new RangeError('step: labels are all -100, expected some that count');
    const learningRate = learningRateAt(this.#steps, this.options.schedule);
    all.forEach((batch, i) => this.#passes.add(batch, count, this.#steps, i, all.length));
    this.#passes.update(learningRate);
    this.#fresh = false;
    const step = ++this.#steps;
    const reports = Promise.all([this.optimizer.report(), this.#passes.report()]);
    return reports.then(([done, router]) => {
      const wrong = whyNotTaken(done, this.options.precision === 'f16');
      if (wrong !== undefined)
        throw new TrainingError(
          `step: ${wrong} at step ${step}; the parameters are those of the step before`,
        );
      return { step, learningRate, ...done, ...(router && { router }) };
    });
  }

  /**
   * After a step that failed, and has left everything as it was before it: the name of the first tensor
   * that is not finite, where it is found again. The batches are those of that step. The trainer can then
   * go on from before it.
   */
  async diagnose(step: number, batches: readonly TrainingBatch[]): Promise<string | undefined> {
    this.#check('diagnose');
    if (!Number.isSafeInteger(step) || step < 1)
      throw new RangeError(`diagnose: step is ${String(step)}, expected a whole number, 1 or more`);
    checkBatches('diagnose', batches, this.model.config.vocabSize);
    this.#passes.dispose(); // its memory is needed
    this.#passes = new Passes(this.model, this.parameters, this.optimizer, this.options);
    this.#steps = step - 1;
    this.optimizer.allow();
    this.#refresh();
    return firstNotFinite(this.model, this.parameters, this.#passes, batches, this.#steps);
  }

  /** The mean loss over batches, nothing being updated. */
  async evaluate(batches: Iterable<TrainingBatch> | AsyncIterable<TrainingBatch>): Promise<number> {
    this.#check('evaluate');
    if (typeof batches !== 'object' || batches === null)
      throw new TypeError(`evaluate: batches is ${kindOf(batches)}, expected batches one after the other`);
    this.#refresh();
    const { device } = this.model;
    let [sum, count] = [0, 0];
    for await (const batch of batches) {
      checkBatch('evaluate', batch, this.model.config.vocabSize);
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
    if (count === 0) throw new RangeError('evaluate: batches hold no label that counts, expected some');
    return sum / count;
  }

  /**
   * Writes a folder that `AutoModelForCausalLM` and transformers load: the parameters in f32, or their
   * averages inside `withAverages`.
   */
  async save(folder: string): Promise<void> {
    this.#check('save');
    await this.model.savePretrained(folder);
  }

  /**
   * Runs `fn` while the model computes with the averages of its parameters, where they are kept. No step is taken
   * meanwhile.
   */
  async withAverages<R>(fn: () => Promise<R>): Promise<R> {
    this.#check('withAverages');
    checkFunction('withAverages', fn);
    this.checkNotAveraging('withAverages');
    if (this.options.average === undefined) {
      this.#refresh();
      return fn();
    }
    this.#exchangeAverages();
    this.#refresh();
    try {
      return await fn();
    } finally {
      if (!this.#disposed) this.#exchangeAverages();
    }
  }

  #exchangeAverages(): void {
    this.parameters.exchangeAverages();
    this.#averaging = !this.#averaging;
    this.#fresh = false;
  }

  /** @throws TypeError inside `withAverages`, for what is about the parameters themselves. */
  checkNotAveraging(call: string): void {
    if (this.#averaging)
      throw new TypeError(`${call}: trainer computes with averages, expected withAverages to have ended`);
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

export function checkTrainer(call: string, trainer: unknown): void {
  if (!(trainer instanceof Trainer))
    throw new TypeError(`${call}: trainer is ${kindOf(trainer)}, expected a Trainer`);
}

/** Why a step cannot have been meant, if so. */
function whyNotTaken({ loss, gradientNorm, lossScale }: StepReport, scaled: boolean): string | undefined {
  if (!Number.isFinite(loss)) return `loss is ${loss}`;
  if (Number.isFinite(gradientNorm)) return undefined;
  if (!scaled) return `norm of the gradient is ${gradientNorm}`;
  return lossScale >= leastScale
    ? undefined
    : `loss scale is ${lossScale}, and gradients are still not finite`;
}
