/** The loss and the gradients of whole models, against those of other implementations. */
import { type CausalLM, Tensor } from '../../lib';
import { grad } from '../../lib/autograd/grad';
import { answers, open, relativeError, rowsOf } from './checkpoints';

/** Packed sequences and what each token should predict. */
function packed(model: CausalLM, rows: readonly Int32Array[]) {
  const { device } = model;
  const ints = (data: readonly number[]) => Tensor.from(Int32Array.from(data), [data.length], { device });
  const offsets = rows.reduce<number[]>((all, { length }) => [...all, all.at(-1)! + length], [0]);
  const labels = rows.flatMap((row) => [...row.subarray(1), -100]);
  return {
    ids: ints(rows.flatMap((row) => [...row])),
    batch: { offsets: ints(offsets), slots: ints(rows.map((_, i) => i)) },
    labels: ints(labels),
    factor: Tensor.from([1 / labels.filter((label) => label >= 0).length], [1], { device }),
  };
}

describe('mamba-tiny', () => {
  const expected = answers('mamba-tiny');
  const rows = rowsOf(expected('input_ids').values as Int32Array, expected('input_ids').shape[1]!);

  it('gives the loss and every gradient of transformers', async () => {
    const model = await open('mamba-tiny');
    const { ids, batch, labels, factor } = packed(model, rows);
    const before = model.device.memoryUsage().tensors;
    const { value, gradients } = grad(
      () => model.loss(ids, batch, labels, factor),
      [...model.parameters.values()],
    );
    expect(model.device.memoryUsage().tensors).toBe(before + 1 + gradients.length);
    expect(relativeError(await value.data(), expected('loss').values)).toBeLessThan(1e-5);
    for (const [i, name] of [...model.parameters.keys()].entries()) {
      const error = relativeError(await gradients[i]!.data(), expected(`grad.${name}`).values);
      expect([name, error < 1e-4]).toEqual([name, true]);
    }
    for (const tensor of [value, ...gradients]) tensor.dispose();
    model.dispose();
  });
});
