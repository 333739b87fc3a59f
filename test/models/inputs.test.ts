import { DisposedError, Tensor, type CausalLM, type ForwardInput } from '../../lib';
import { inUse, logitsOf, open, take } from './checkpoints';

let model: CausalLM;
beforeAll(async () => {
  model = await open('mamba-tiny');
});
afterAll(() => model.dispose());

describe('forward takes ids', () => {
  const ids = [5, 0, 255, 17];
  const kinds: [string, () => ForwardInput['inputIds']][] = [
    ['numbers', () => ids],
    ['Int32Array', () => Int32Array.from(ids)],
    ['Uint32Array', () => Uint32Array.from(ids)],
    ['BigInt64Array', () => BigInt64Array.from(ids.map(BigInt))],
    ['nested numbers', () => [ids]],
    ['nested typed arrays', () => [BigInt64Array.from(ids.map(BigInt))]],
    ['a view of a larger array', () => Int32Array.from([1, 1, ...ids, 1]).subarray(2, 6)],
    ['an i32 tensor', () => Tensor.from(Int32Array.from(ids), [1, 4])],
  ];
  it.each(kinds)('as %s', async (_, make) => {
    const inputIds = make();
    const { logits } = await model.forward({ inputIds });
    expect(logits.shape).toEqual([1, 4, 256]);
    expect(await take(logits)).toEqual(await logitsOf(model, ids));
    if (inputIds instanceof Tensor) inputIds.dispose();
  });

  it('and masks and labels as tensors', async () => {
    const tensor = (values: readonly number[]) => Tensor.from(Int32Array.from(values), [2, 3]);
    const rows = {
      inputIds: [1, 2, 3, 4, 5, 6],
      attentionMask: [0, 1, 1, 1, 1, 1],
      labels: [1, 2, 3, 4, 5, -100],
    };
    const tensors = {
      inputIds: tensor(rows.inputIds),
      attentionMask: tensor(rows.attentionMask),
      labels: tensor(rows.labels),
    };
    const pair = (row: readonly number[]) => [row.slice(0, 3), row.slice(3)];
    const lists = {
      inputIds: pair(rows.inputIds),
      attentionMask: pair(rows.attentionMask),
      labels: pair(rows.labels),
    };
    const [a, b] = [await model.forward(tensors), await model.forward(lists)];
    expect(a.loss).toBe(b.loss);
    expect(await take(a.logits)).toEqual(await take(b.logits));
    for (const made of Object.values(tensors)) made.dispose();
  });
});

describe('forward refuses', () => {
  const bad: [string, object, new (message: string) => Error, RegExp][] = [
    [
      'an id above the vocabulary',
      { inputIds: [1, 256] },
      RangeError,
      /forward: inputIds\[0\]\[1\] is 256, expected a whole number from 0 to 255/,
    ],
    ['a negative id', { inputIds: [[1], [-1]] }, RangeError, /inputIds\[1\]\[0\] is -1/],
    ['a fraction', { inputIds: [1.5] }, RangeError, /inputIds\[0\]\[0\] is 1\.5/],
    ['NaN', { inputIds: [NaN] }, RangeError, /inputIds\[0\]\[0\] is NaN/],
    ['a huge BigInt', { inputIds: BigInt64Array.of(2n ** 62n) }, RangeError, /is 4611686018427387904/],
    ['strings for ids', { inputIds: ['a'] }, TypeError, /inputIds/],
    ['text', { inputIds: 'hello' }, TypeError, /forward: inputIds is string, expected token ids/],
    ['nothing', {}, TypeError, /forward: inputIds is undefined, expected token ids/],
    ['null', { inputIds: null }, TypeError, /forward: inputIds is/],
    ['no sequence', { inputIds: [] }, RangeError, /inputIds\[0\] is empty|inputIds is empty/],
    [
      'an empty sequence',
      { inputIds: [[1], []] },
      RangeError,
      /inputIds\[1\] is empty, expected at least one token/,
    ],
    ['all padding', { inputIds: [1, 2], attentionMask: [0, 0] }, RangeError, /inputIds\[0\] is empty/],
    [
      'a mask of another shape',
      { inputIds: [1, 2], attentionMask: [1] },
      TypeError,
      /attentionMask has another shape/,
    ],
    [
      'a mask of another batch',
      { inputIds: [[1], [2]], attentionMask: [[1]] },
      TypeError,
      /attentionMask has another shape/,
    ],
    [
      'a mask of twos',
      { inputIds: [1], attentionMask: [2] },
      RangeError,
      /attentionMask\[0\]\[0\] is 2, expected a whole number from 0 to 1/,
    ],
    ['labels of another shape', { inputIds: [1, 2], labels: [1] }, TypeError, /labels has another shape/],
    [
      'labels of another batch',
      { inputIds: [[1], [2]], labels: [[1]] },
      TypeError,
      /labels has another shape/,
    ],
    ['labels out of range', { inputIds: [1, 2], labels: [1, 256] }, RangeError, /labels\[0\]\[1\] is 256/],
    [
      'labels below 0',
      { inputIds: [1, 2], labels: [1, -5] },
      RangeError,
      /labels hold -5, expected token ids or -100/,
    ],
    [
      'labels with logitsToKeep',
      { inputIds: [1, 2], labels: [1, 2], logitsToKeep: 1 },
      TypeError,
      /labels need all logits/,
    ],
    ['a negative logitsToKeep', { inputIds: [1], logitsToKeep: -1 }, RangeError, /logitsToKeep is -1/],
    [
      'a misspelt name',
      { inputIds: [1], attention_mask: [1] },
      TypeError,
      /there is no option attention_mask/,
    ],
    ['a state that is none', { inputIds: [1], state: {} }, TypeError, /state is object, expected a State/],
    ['half a logit', { inputIds: [1], logitsToKeep: 0.5 }, RangeError, /logitsToKeep is 0\.5/],
  ];
  it.each(bad)('%s', async (_, input, kind, message) => {
    const before = inUse();
    const failure = model.forward(input as ForwardInput);
    await expect(failure).rejects.toThrow(message);
    await expect(failure).rejects.toBeInstanceOf(kind);
    expect(inUse()).toEqual(before);
  });

  it('tensors of another dtype or rank, or disposed', async () => {
    const floats = Tensor.from([1, 2], [1, 2]);
    await expect(model.forward({ inputIds: floats })).rejects.toThrow(
      /inputIds is f32\[1,2\], expected i32\[batch,length\]/,
    );
    const flat = Tensor.from(Int32Array.of(1, 2));
    await expect(model.forward({ inputIds: flat })).rejects.toThrow(
      /inputIds is i32\[2\], expected i32\[batch,length\]/,
    );
    const gone = Tensor.from(Int32Array.of(1, 2), [1, 2]);
    for (const tensor of [floats, flat, gone]) tensor.dispose();
    await expect(model.forward({ inputIds: gone })).rejects.toBeInstanceOf(DisposedError);
  });
});
