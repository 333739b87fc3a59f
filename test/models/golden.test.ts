import { type CausalLM } from '../../lib';
import { answers, open, relativeError, rowsOf, take } from './checkpoints';

// The answers of transformers and of mamba_ssm, see test/fixtures/README.md
describe.each(['mamba-tiny', 'mamba-odd', 'mamba-sharded-bf16', 'falcon-mamba-tiny', 'mamba-ssm-bin'])(
  '%s',
  (name) => {
    const expected = answers(name);
    const { shape, values } = expected('input_ids');
    const inputIds = rowsOf(values as Int32Array, shape[1]!);
    let model: CausalLM;
    beforeAll(async () => {
      model = await open(name);
    });
    afterAll(() => model.dispose());

    it('gives the logits', async () => {
      const { logits, hiddenStates, loss } = await model.forward({ inputIds });
      expect(logits.shape).toEqual(expected('logits').shape);
      expect(relativeError(await take(logits), expected('logits').values)).toBeLessThan(1e-4);
      expect([hiddenStates, loss]).toEqual([undefined, undefined]);
    });

    // Some rows hold the pad token (0), which both take for padding: see test/fixtures/README.md.
    it('generates the greedy tokens', async () => {
      const { shape, values } = expected('generated');
      const generated = rowsOf(values as Int32Array, shape[1]!);
      const rows = await model.generate(inputIds, { maxNewTokens: shape[1], eosTokenId: [] }).completions();
      expect(rows.map(({ tokens }) => tokens)).toEqual(generated.map((row) => [...row]));
      expect(rows.map(({ finishReason }) => finishReason)).toEqual(generated.map(() => 'length'));
    });
  },
);

describe.each(['mamba-tiny', 'mamba-odd', 'mamba-sharded-bf16', 'falcon-mamba-tiny'])('%s', (name) => {
  it('gives the hidden states', async () => {
    const expected = answers(name);
    const { shape, values } = expected('input_ids');
    const inputIds = rowsOf(values as Int32Array, shape[1]!);
    const model = await open(name);
    const { logits, hiddenStates } = await model.forward({ inputIds, outputHiddenStates: true });
    expect(relativeError(await take(logits), expected('logits').values)).toBeLessThan(1e-4);
    expect(hiddenStates).toHaveLength(model.config.numLayers + 1);
    for (const [i, hidden] of hiddenStates!.entries()) {
      expect(hidden.shape).toEqual(expected(`hidden_states.${i}`).shape);
      expect(relativeError(await take(hidden), expected(`hidden_states.${i}`).values)).toBeLessThan(1e-4);
    }
    model.dispose();
  });
});

describe('mamba-tiny', () => {
  const expected = answers('mamba-tiny');
  const inputIds = rowsOf(expected('input_ids').values as Int32Array, 37);
  let model: CausalLM;
  beforeAll(async () => {
    model = await open('mamba-tiny');
  });
  afterAll(() => model.dispose());

  it('gives the logits of a batch with padding on the left', async () => {
    const attentionMask = rowsOf(expected('attention_mask').values as Int32Array, 37);
    const { logits } = await model.forward({ inputIds, attentionMask });
    const got = rowsOf(await take(logits), 256);
    const wanted = rowsOf(expected('masked_logits').values as Float32Array, 256);
    attentionMask.forEach((row, i) =>
      row.forEach((bit, j) => {
        const at = i * 37 + j;
        if (bit) expect(relativeError(got[at]!, wanted[at]!)).toBeLessThan(1e-4);
        else expect(got[at]!.every((value) => value === 0)).toBe(true);
      }),
    );
  });

  it('gives the loss', async () => {
    const { loss, logits } = await model.forward({ inputIds, labels: inputIds });
    expect(Math.abs(loss! - expected('loss').values[0]!)).toBeLessThan(1e-5);
    logits.dispose();
  });

  it('leaves labels of -100 and padding out of the loss', async () => {
    const whole = await model.forward({ inputIds: inputIds[1]!, labels: inputIds[1]! });
    const labels = [inputIds[0]!.map(() => -100), inputIds[1]!];
    const part = await model.forward({ inputIds, labels });
    expect(part.loss).toBeCloseTo(whole.loss!, 6);
    const padded = [Int32Array.of(9, 9, ...inputIds[1]!)];
    const attentionMask = [padded[0]!.map((_, i) => Number(i > 1))];
    const masked = await model.forward({ inputIds: padded, labels: padded, attentionMask });
    expect(masked.loss).toBeCloseTo(whole.loss!, 6);
    for (const { logits } of [whole, part, masked]) logits.dispose();
  });

  it('says what it is', () => {
    expect(model.config).toMatchObject({
      modelType: 'mamba',
      vocabSize: 256,
      hiddenSize: 64,
      numLayers: 4,
      eosTokenId: 2,
    });
    const elements = [...model.parameters.values()].reduce((sum, tensor) => sum + tensor.size, 0);
    expect(model.numParameters).toBe(elements);
    expect(model.tokenizer).toBeUndefined();
    expect(model.disposed).toBe(false);
  });
});
