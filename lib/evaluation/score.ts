import type { Model } from '../models/model';
import type { State } from '../models/state';
import { crossEntropy } from '../ops/loss';
import { keep, scope, Tensor } from '../tensor';

/** Logits that exist at once: 64 MiB of them, whatever the vocabulary. */
const mostLogits = 1 << 24;

/** Some tokens of one sequence, and what follows each: the label -100 is not scored. */
export interface Scored {
  readonly inputs: Int32Array;
  readonly labels: Int32Array;
}

/** Continues row i of `state` with `rows[i].inputs`; gives the sum of -log p of all labels, in nats. */
export async function score(
  model: Model,
  state: State,
  rows: readonly Scored[],
  signal?: AbortSignal,
): Promise<number> {
  const losses: Tensor[] = [];
  const step = Math.max(1, Math.floor(mostLogits / model.config.vocabSize));
  try {
    await model.run(
      rows.map(({ inputs }) => inputs),
      state,
      {
        signal,
        each: (hidden, pieces) => {
          const labels = new Int32Array(hidden.shape[0]!);
          let filled = 0;
          for (const { row, begin, end } of pieces) {
            labels.set(rows[row]!.labels.subarray(begin, end), filled);
            filled += end - begin;
          }
          for (let at = 0; at < labels.length; at += step) {
            const some = labels.slice(at, at + step);
            if (some.every((label) => label < 0)) continue;
            losses.push(lossesOf(model, hidden.rows(at, at + some.length), some));
          }
        },
      },
    );
    let nats = 0;
    for (const tensor of losses) for (const loss of await tensor.data()) nats += loss;
    return nats;
  } finally {
    for (const tensor of losses) tensor.dispose();
  }
}

function lossesOf(model: Model, hidden: Tensor, labels: Int32Array): Tensor {
  return scope(() => {
    const given = Tensor.from(labels, [labels.length], { device: model.device });
    return keep(crossEntropy({ logits: model.head(hidden), labels: given }));
  });
}
