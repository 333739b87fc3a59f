import { AutoModelForCausalLM, type ModelOptions } from '../../lib';
import { logitsOf, randomIds, relativeError, take } from './checkpoints';
import { parametersOf, plainLogits, type PlainConfig } from './plain';

const base = {
  model_type: 'mamba',
  vocab_size: 61,
  hidden_size: 24,
  num_hidden_layers: 2,
  state_size: 16,
  conv_kernel: 4,
  expand: 2,
  time_step_rank: 2,
  layer_norm_epsilon: 1e-5,
  tie_word_embeddings: true,
};

async function error(change: Partial<PlainConfig> & Record<string, unknown>, options: ModelOptions = {}) {
  const config = { ...base, ...change };
  const model = await AutoModelForCausalLM.fromConfig(config, { ...options, seed: 7 });
  const ids = randomIds(29, config.vocab_size);
  const wanted = plainLogits(config, await parametersOf(model), ids);
  const got = await logitsOf(model, ids);
  model.dispose();
  return relativeError(got, wanted);
}

it('a masked token in the middle is no input, but time passes: in forward, and in generate for the pad token', async () => {
  const config = { ...base, pad_token_id: 3, eos_token_id: 4 };
  const model = await AutoModelForCausalLM.fromConfig(config, { seed: 7 });
  const ids = randomIds(29, config.vocab_size).map((id, i) => (i === 5 || i === 20 ? 3 : id === 3 ? 1 : id));
  const attentionMask = [...ids].map((id, i) => (i === 20 || id !== 3 ? 1 : 0));
  const parameters = await parametersOf(model);
  const { logits } = await model.forward({ inputIds: ids, attentionMask });
  expect(relativeError(await take(logits), plainLogits(config, parameters, ids, attentionMask))).toBeLessThan(
    1e-4,
  );

  const muted = [...ids].map((id) => (id === 3 ? 0 : 1));
  const last = plainLogits(config, parameters, ids, muted).slice(-config.vocab_size);
  const padded = Int32Array.of(3, 3, ...ids); // padding in front changes nothing
  const options = { maxNewTokens: 1, eosTokenId: [] };
  const [row] = await model.generate(padded, options).completions();
  expect(row!.tokens).toEqual([last.indexOf(Math.max(...last))]);
  const [taken] = await model.generate(ids, { ...options, padTokenId: null }).completions();
  const plain = plainLogits(config, parameters, ids).slice(-config.vocab_size);
  expect(taken!.tokens).toEqual([plain.indexOf(Math.max(...plain))]);
  model.dispose();
});

it('padding after the ids, or nothing but padding, is refused by name', async () => {
  const model = await AutoModelForCausalLM.fromConfig({ ...base, pad_token_id: 1, eos_token_id: 2 });
  const take = (ids: number[] | number[][], padTokenId?: number | null) =>
    model.generate(ids, { maxNewTokens: 1, padTokenId }).completions();
  await expect(take([[5], [5, 6, 1, 1]])).rejects.toThrow(
    'generate: prompt 1 ends with padding (1), expected padding on the left only; with padTokenId null it is a token',
  );
  await expect(take([5, 6], 6)).rejects.toThrow('generate: prompt ends with padding (6)');
  await expect(take([1, 1])).rejects.toThrow(
    'generate: prompt is nothing but padding (1), expected at least one token',
  );
  expect(await take([5, 1, 1], null)).toHaveLength(1);
  model.dispose();
});

describe('fresh models of many shapes agree with plain f64 loops', () => {
  it.each([1, 2, 3, 7, 8, 17, 33, 64])('state_size %i', async (state_size) => {
    expect(await error({ state_size })).toBeLessThan(1e-4);
  });

  it.each([1, 2, 3, 5])('conv_kernel %i', async (conv_kernel) => {
    expect(await error({ conv_kernel })).toBeLessThan(1e-4);
  });

  it.each([1, 1.5, 3, 0.5])('expand %f', async (expand) => {
    expect(await error({ expand })).toBeLessThan(1e-4);
  });

  it.each([1, 5])('time_step_rank %i', async (time_step_rank) => {
    expect(await error({ time_step_rank })).toBeLessThan(1e-4);
  });

  it.each([1, 17, 31, 130])('hidden_size %i', async (hidden_size) => {
    expect(await error({ hidden_size })).toBeLessThan(1e-4);
  });

  it.each<[string, Record<string, unknown>]>([
    ['one layer', { num_hidden_layers: 1 }],
    ['a vocabulary of one', { vocab_size: 1 }],
    ['biases', { use_bias: true }],
    ['no convolution bias', { use_conv_bias: false }],
    ['a head of its own', { tie_word_embeddings: false }],
    ['constant Δ weights', { time_step_init_scheme: 'constant' }],
    ['a large epsilon', { layer_norm_epsilon: 0.5 }],
    [
      'everything at its smallest',
      { hidden_size: 1, expand: 1, state_size: 1, conv_kernel: 1, time_step_rank: 1 },
    ],
    [
      'everything at once',
      { expand: 1.5, state_size: 64, conv_kernel: 5, use_bias: true, tie_word_embeddings: false },
    ],
  ])('%s', async (_, change) => {
    expect(await error(change)).toBeLessThan(1e-4);
  });

  // Activations are f32 on the CPU; on a GPU they take the matrices' dtype, 2⁻⁸ or 2⁻¹¹ apart.
  it.each(['bf16', 'f16'] as const)('matrices in %s', async (dtype) => {
    const onCpu = await error({ hidden_size: 33 }, { dtype, device: 'cpu' });
    expect(onCpu).toBeLessThan(1e-4);
    expect(await error({ hidden_size: 32 }, { dtype })).toBeLessThan(dtype === 'bf16' ? 0.05 : 0.01);
  });
});
