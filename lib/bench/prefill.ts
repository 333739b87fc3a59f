import type { CausalLM } from '../generation/causal-lm';
import { timeRuns } from './measure';
import { prefillFlops, randomPrompts, weightDtype } from './model';
import { profileOps, type OpTime } from './profile';
import type { Result } from './result';

interface Prompts {
  readonly batch: number;
  readonly length: number;
}

/** Times prompts of `length` tokens, `batch` together, up to the logits of their last tokens. */
export async function benchPrefill(
  model: CausalLM,
  name: string,
  { batch, length }: Prompts,
  runs: number,
): Promise<Result> {
  const prompts = randomPrompts(model, batch, length);
  const state = model.createState(batch);
  try {
    const ms = await timeRuns(() => model.run(prompts, state), runs);
    const flops = prefillFlops(model, batch, length);
    return {
      bench: 'prefill',
      name: `${name}, ${batch}×${length}`,
      model: name,
      dtype: weightDtype(model),
      shape: { batch, length },
      ms,
      figures: {
        tokensPerSecond: (1000 * batch * length) / ms.median,
        flops,
        gflopPerSecond: flops / ms.median / 1e6,
      },
    };
  } finally {
    state.dispose();
  }
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
