import type { Device } from '../device';
import { planStep } from '../ops/optimizer';
import { keep, Tensor } from '../tensor';
import type { CompleteOptions } from './options';
import type { Parameters } from './parameters';

/** What a step did, read from the device. */
export interface StepReport {
  /** Mean over the step's labels, in nats. */
  readonly loss: number;
  /** Of all gradients, before clipping. */
  readonly gradientNorm: number;
  readonly lossScale: number;
  /** Steps that changed the parameters, and those that were skipped, their gradients not being finite. */
  readonly taken: number;
  readonly skipped: number;
}

/** The tensors that a step leaves to the next, and the ops of its end. All of it stays on the device. */
export class Optimizer {
  /** f32[6]: see `planStep`. */
  readonly scaler: Tensor;
  /** f32[1]: the scale, in place. */
  readonly scale: Tensor;
  /** f32[1]: times the scale; micro-batches add to it. */
  readonly loss: Tensor;
  readonly learningRate: Tensor;
  readonly #squares: Tensor;
  readonly #options: CompleteOptions;
  readonly #parameters: Parameters;

  constructor(device: Device, parameters: Parameters, options: CompleteOptions) {
    const f32 = (...values: readonly number[]) => keep(Tensor.from(values, [values.length], { device }));
    const scaled = options.precision === 'f16';
    this.scaler = f32(scaled ? options.lossScale : 1, 0, 0, 0, 0, 0);
    this.scale = keep(this.scaler.rows(0, 1));
    this.loss = f32(0);
    this.learningRate = f32(0);
    this.#squares = f32(0);
    this.#options = options;
    this.#parameters = parameters;
  }

  /** Clips, updates and starts anew. Ops only. */
  update(): void {
    const { beta1, beta2, eps, clip, weightDecay, average, precision, lossScaleInterval } = this.#options;
    this.#parameters.addSquares(this.#squares);
    const control = planStep({
      squares: this.#squares,
      loss: this.loss,
      learningRate: this.learningRate,
      scaler: this.scaler,
      maxNorm: clip,
      beta1,
      beta2,
      interval: precision === 'f16' ? lossScaleInterval : 0,
    });
    this.#parameters.update(control, { beta1, beta2, eps, decay: weightDecay }, average);
  }

  /** Steps are taken again, after one that was not. */
  allow(): void {
    this.#squares.set(Float32Array.of(0));
  }

  /** What the last step that was queued did. */
  async report(): Promise<StepReport> {
    const [lossScale, , taken, skipped, gradientNorm, loss] = (await this.scaler.data()) as unknown as [
      number,
      number,
      number,
      number,
      number,
      number,
    ];
    return { loss, gradientNorm, lossScale, taken, skipped };
  }

  dispose(): void {
    for (const tensor of [this.scale, this.scaler, this.loss, this.learningRate, this.#squares])
      tensor.dispose();
  }
}
