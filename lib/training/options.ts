import { checkNames } from '../arguments';
import type { Schedule } from './schedule';

/** How a model is trained. */
export interface TrainingOptions {
  /** Steps in all. */
  readonly steps: number;
  readonly learningRate: number;
  /** What matrix products and activations are in; parameters and sums are f32 (Micikevicius et al. 2018). Default f32. */
  readonly precision?: 'f32' | 'bf16' | 'f16';
  /** Default `cosine`, after a tenth of the steps, but at most 1000. */
  readonly schedule?: Schedule['shape'];
  readonly warmup?: number;
  /** The cosine's end. Default a tenth of the learning rate. */
  readonly minimumLearningRate?: number;
  /** Decoupled; default 0.1, of weights alone. */
  readonly weightDecay?: number;
  readonly beta1?: number;
  readonly beta2?: number;
  readonly eps?: number;
  /** Gradients are clipped to this norm. Default 1; 0 for any. */
  readonly clip?: number;
  /** f16 alone: the loss scale to begin with, and the steps until it is tried doubled. Default 65536, 2000. */
  readonly lossScale?: number;
  readonly lossScaleInterval?: number;
  /**
   * Weights of the routers' balancing loss and z-loss, each a sum over the routers. Default: those of the
   * model's config, or 0.
   */
  readonly routerBalance?: number;
  readonly routerZ?: number;
  /** Keeps an exponential moving average of the parameters with this decay. */
  readonly average?: number;
}

export type CompleteOptions = Required<
  Omit<TrainingOptions, 'average' | 'schedule' | 'routerBalance' | 'routerZ'>
> & {
  readonly average: number | undefined;
  readonly routerBalance: number | undefined;
  readonly routerZ: number | undefined;
  readonly schedule: Schedule;
};

const names: readonly (keyof TrainingOptions)[] = [
  ...(['steps', 'learningRate', 'precision', 'schedule', 'warmup', 'minimumLearningRate'] as const),
  ...(['weightDecay', 'beta1', 'beta2', 'eps', 'clip', 'lossScale', 'lossScaleInterval', 'average'] as const),
  ...(['routerBalance', 'routerZ'] as const),
];

/** [least, most] */
const ranges: Readonly<Record<string, readonly [number, number]>> = {
  steps: [1, 1e9],
  learningRate: [0, 1e3],
  warmup: [0, 1e9],
  minimumLearningRate: [0, 1e3],
  weightDecay: [0, 1e3],
  beta1: [0, 0.999999],
  beta2: [0, 0.999999],
  eps: [0, 1],
  clip: [0, 1e9],
  lossScale: [1, 2 ** 24],
  lossScaleInterval: [1, 1e9],
  average: [0, 0.9999999],
  routerBalance: [0, 1e3],
  routerZ: [0, 1e3],
};
const whole = new Set(['steps', 'warmup', 'lossScaleInterval']);

/** @throws TypeError, RangeError that name the option. */
export function completeOptions(call: string, options: TrainingOptions): CompleteOptions {
  checkNames(call, options, names, 'options');
  for (const name of ['steps', 'learningRate'] as const)
    if (options[name] === undefined) throw new TypeError(`${call}: ${name} is missing, expected a number`);
  for (const [name, [least, most]] of Object.entries(ranges)) {
    const value = options[name as keyof TrainingOptions];
    if (value === undefined) continue;
    if (typeof value !== 'number')
      throw new TypeError(`${call}: ${name} is ${String(value)}, expected a number`);
    if (!(value >= least && value <= most) || (whole.has(name) && !Number.isInteger(value)))
      throw new RangeError(
        `${call}: ${name} is ${value}, expected ${whole.has(name) ? 'a whole number' : 'one'} from ${least} to ${most}`,
      );
  }
  const { steps, learningRate, precision = 'f32', schedule = 'cosine' } = options;
  if (!['f32', 'bf16', 'f16'].includes(precision))
    throw new TypeError(`${call}: precision is ${String(precision)}, expected f32, bf16 or f16`);
  if (!['constant', 'cosine'].includes(schedule))
    throw new TypeError(`${call}: schedule is ${String(schedule)}, expected constant or cosine`);
  const warmup = options.warmup ?? Math.min(1000, Math.floor(steps / 10));
  const minimumLearningRate = options.minimumLearningRate ?? learningRate / 10;
  if (minimumLearningRate > learningRate)
    throw new RangeError(
      `${call}: minimumLearningRate is ${minimumLearningRate}, expected at most learningRate, which is ${learningRate}`,
    );
  return {
    steps,
    learningRate,
    precision,
    warmup,
    minimumLearningRate,
    weightDecay: options.weightDecay ?? 0.1,
    beta1: options.beta1 ?? 0.9,
    beta2: options.beta2 ?? 0.95,
    eps: options.eps ?? 1e-8,
    clip: options.clip ?? 1,
    lossScale: options.lossScale ?? 65536,
    lossScaleInterval: options.lossScaleInterval ?? 2000,
    average: options.average,
    routerBalance: options.routerBalance,
    routerZ: options.routerZ,
    schedule: { learningRate, warmup, shape: schedule, minimum: minimumLearningRate, steps },
  };
}

/** @throws TypeError where routers' losses are weighed of a model that has no routers. */
export function checkRouterOptions(call: string, options: CompleteOptions, routers: boolean): void {
  for (const name of ['routerBalance', 'routerZ'] as const)
    if (!routers && options[name] !== undefined)
      throw new TypeError(`${call}: ${name} is ${options[name]}, expected none; the model has no routers`);
}
