// Speculative decoding: a small model proposes, the large one verifies a block in one scan. The text is that of the
// large one. Arguments: the model and its drafter, of the same tokens, or a model of words that drafts for one of
// bytes; without arguments two small models of random weights, of which one is a rough copy of the other.
import { AutoModelForCausalLM, type CausalLM, type GenerateOptions } from '../lib'; // elsewhere: from 'selective-scan'

async function rough(seed: number, noise: number): Promise<CausalLM> {
  const config = { model_type: 'mambabyte', hidden_size: 64, num_hidden_layers: 2, initializer_range: 0.4 };
  const model = await AutoModelForCausalLM.fromConfig(config, { seed });
  const embeddings = model.parameters.get('backbone.embeddings.weight')!;
  const values = (await embeddings.data()) as Float32Array;
  embeddings.set(values.map((value, i) => value + noise * Math.sin(i)));
  return model;
}

async function main(name?: string, drafterName?: string): Promise<void> {
  const load = (name: string) => AutoModelForCausalLM.fromPretrained(name);
  const model = name ? await load(name) : await rough(1, 0);
  const drafter = drafterName ? await load(drafterName) : await rough(1, 0.2);
  const run = async (options: GenerateOptions) => {
    const [completion] = await model
      .generate('Once upon a time', { maxNewTokens: 64, ...options })
      .completions();
    const { drafted, accepted, calls } = completion!.speculation ?? { drafted: 0, accepted: 0, calls: 64 };
    console.log(`${calls} calls of the model, ${accepted} of ${drafted} drafted tokens accepted`);
    return completion!.tokens.join();
  };

  const plain = await run({});
  const exact = await run({ drafter, draftTokens: 4 });
  console.log(`the same tokens: ${exact === plain}`);
  // Faster still, where the text may be a little the drafter's: whatever is among the three likeliest.
  await run({ drafter, draftTokens: 4, beta: 3 });

  drafter.dispose();
  model.dispose();
}

const [name, drafterName] = process.argv.slice(2);
void main(name, drafterName);
