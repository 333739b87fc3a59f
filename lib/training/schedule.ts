/** How the learning rate goes over the steps. */
export interface Schedule {
  /** The largest. */
  readonly learningRate: number;
  /** Steps over which it rises to that, in a line. */
  readonly warmup: number;
  /** After it `constant`, or by half a cosine down to `minimum` at the last step (Loshchilov and Hutter 2017). */
  readonly shape: 'constant' | 'cosine';
  readonly minimum: number;
  /** Steps in all. */
  readonly steps: number;
}

/** The learning rate of step `step`, from 0 on. */
export function learningRateAt(
  step: number,
  { learningRate, warmup, shape, minimum, steps }: Schedule,
): number {
  if (step < warmup) return (learningRate * (step + 1)) / warmup;
  if (shape === 'constant') return learningRate;
  const done = Math.min(1, (step - warmup) / Math.max(1, steps - 1 - warmup));
  return minimum + ((learningRate - minimum) * (1 + Math.cos(Math.PI * done))) / 2;
}
