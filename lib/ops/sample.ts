import { op } from '../op';

/**
 * Draws one token for each row of `logits`, in the order: repetition penalty (Keskar et al. 2019) on
 * the ids marked in `seen`, temperature, top-k, top-p (Holtzman et al. 2020), min-p (Nguyen et al.
 * 2024). Temperature 0 is greedy; top-k 0, top-p 1, min-p 0 and penalty 1 are off. The random number
 * of a row is Philox 4x32-10 of its `seed` (64 bits) and `position`, so a row's tokens do not depend
 * on the rows beside it. Before position `quiet` the ids in `stop` are not drawn. `logprob` is the
 * model's own: the log-softmax of the raw logits.
 */
export const sample = op('sample', {
  in: {
    logits: 'f32[b,v]',
    temperature: 'f32[b]',
    topK: 'i32[b]',
    topP: 'f32[b]',
    minP: 'f32[b]',
    penalty: 'f32[b]',
    seed: 'i32[b,2]',
    stop: 'i32[e]?',
    quiet: 'i32[b]?',
    seen: 'i32[b,m]?!',
    position: 'i32[b]!',
    token: 'i32[b]!',
    logprob: 'f32[b]!',
  },
  out: {},
  check: (size) => {
    const v = size('v')!;
    if (v === 0) return 'logits has no columns, expected 1 or more';
    const words = Math.ceil(v / 32);
    const m = size('m') ?? words;
    return m < words ? `seen has ${m} columns, expected ${words}: one bit for each of ${v} ids` : undefined;
  },
});
