import { AutoModelForCausalLM, type CausalLM, type Codec } from '../../lib';

const vocabSize = 512;

/**
 * A model that says `sequence`, whatever the sampling options: after each of its tokens it is all but
 * certain of the next one. No token may occur twice. The mixer adds nothing, the head is a table.
 */
export async function chain(
  sequence: readonly number[],
  options: { tokenizer?: Codec; eos?: number | number[] } = {},
): Promise<CausalLM> {
  if (new Set(sequence).size !== sequence.length)
    throw new Error(`chain: a token of ${sequence.join()} occurs twice`);
  const model = await AutoModelForCausalLM.fromConfig(
    {
      model_type: 'mamba',
      vocab_size: vocabSize,
      hidden_size: vocabSize,
      num_hidden_layers: 1,
      expand: 1 / vocabSize,
      state_size: 1,
      tie_word_embeddings: false,
      eos_token_id: options.eos ?? null,
    },
    { tokenizer: options.tokenizer },
  );
  const set = (name: string, ones: Iterable<readonly [number, number]>) => {
    const tensor = model.parameters.get(name)!;
    const values = new Float32Array(tensor.size);
    for (const [row, column] of ones) values[row * vocabSize + column] = 2;
    tensor.set(values);
  };
  set('backbone.layers.0.mixer.out_proj.weight', []);
  set(
    'backbone.embeddings.weight',
    Array.from({ length: vocabSize }, (_, i) => [i, i]),
  );
  set(
    'lm_head.weight',
    sequence.slice(1).map((token, i) => [token, sequence[i]!]),
  );
  return model;
}
