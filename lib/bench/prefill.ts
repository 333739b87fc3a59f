import type { CausalLM } from '../generation/causal-lm';
import { askCard } from './card';
import { timeRuns, warmUps } from './measure';
import { named, prefillFlops, randomPrompts, weightBytes, weightDtype } from './model';
import { profileOps, type OpTime } from './profile';
import type { Result } from './result';

export interface Prompts {
  readonly batch: number;
  readonly length: number;
}

/** On a GPU: what its peers were measured with. */
export const peerPrompts: readonly Prompts[] = [
  { batch: 1, length: 2048 },
  { batch: 8, length: 2048 },
  { batch: 1, length: 32768 },
];

/**
 * Times prompts of `length` tokens, `batch` together, up to the logits of their last tokens. The
 * device's peak is that of the process so far: measure from short to long. On a GPU short prompts
 * come first, which the host's part of the work is compiled by.
 */
export async function benchPrefill(
  model: CausalLM,
  name: string,
  { batch, length }: Prompts,
  runs: number,
): Promise<Result> {
  const prompts = randomPrompts(model, batch, length);
  const state = model.createState(batch);
  try {
    if (model.device.id !== 'cpu') {
      const short = randomPrompts(model, batch, 32);
      for (let run = 0; run < warmUps; run++) await model.run(short, state);
    }
    const ms = await timeRuns(model.device, () => model.run(prompts, state), runs);
    const { peak } = model.device.memoryUsage();
    const names = named(model, name);
    const card = askCard(model.device);
    const flops = prefillFlops(model, batch, length);
    return {
      bench: 'prefill',
      ...names,
      name: `${names.name}, ${batch}×${length}`,
      dtype: weightDtype(model),
      shape: { batch, length },
      ms,
      figures: {
        tokensPerSecond: (1000 * batch * length) / ms.median,
        flops,
        gflopPerSecond: flops / ms.median / 1e6,
        peakBytes: peak,
        beyondWeightsBytes: peak - weightBytes(model),
        ...(card && { cardBytes: card.used }),
      },
    };
  } finally {
    state.dispose();
  }
}

/** Adds how a token's time compares with that of the shortest prompts before: 1 is linear. */
export function withLinearity(result: Result, earlier: readonly Result[]): Result {
  const tokenMs = ({ shape, ms }: Result) => ms.median / (shape['batch']! * shape['length']!);
  const alike = earlier.filter(
    ({ bench, model, dtype, shape }) =>
      bench === 'prefill' &&
      model === result.model &&
      dtype === result.dtype &&
      shape['batch'] === result.shape['batch'] &&
      shape['length']! < result.shape['length']!,
  );
  if (alike.length === 0) return result;
  const shortest = alike.reduce((a, b) => (b.shape['length']! < a.shape['length']! ? b : a));
  const tokenTimeToShortest = tokenMs(result) / tokenMs(shortest);
  return { ...result, figures: { ...result.figures, tokenTimeToShortest } };
}

/** Where the time of such prompts goes; of more tokens than a chunk holds, that of the first chunk. */
export async function prefillOps(model: CausalLM, { batch, length }: Prompts): Promise<OpTime[]> {
  const state = model.createState(batch);
  try {
    return await profileOps(model.device, () => model.run(randomPrompts(model, batch, length), state));
  } finally {
    state.dispose();
  }
}
