import { AutoModelForCausalLM, type CausalLM, type Codec } from '../../lib';

export const size = {
  model_type: 'mamba',
  vocab_size: 300,
  hidden_size: 32,
  num_hidden_layers: 2,
  initializer_range: 0.4,
  eos_token_id: 299,
} as const;

/** A fresh model of seed 1, whose embeddings are `noise` away from it: 0 is the same model, 10 another one. */
export async function noisy(
  noise: number,
  config: object = size,
  options: { tokenizer?: Codec; device?: string } = {},
): Promise<CausalLM> {
  const model = await AutoModelForCausalLM.fromConfig({ ...config }, { seed: 1, ...options });
  const tensor = model.parameters.get('backbone.embeddings.weight')!;
  const values = (await tensor.data()) as Float32Array;
  let x = 99;
  const random = () => (x = (Math.imul(x, 1664525) + 1013904223) >>> 0) / 2 ** 32 - 0.5;
  tensor.set(values.map((value) => value + noise * random()));
  return model;
}
