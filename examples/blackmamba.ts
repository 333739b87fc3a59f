// BlackMamba as Zyphra released it: a folder with config.json and a pickled pytorch_model.bin, read without
// running anything in it. The released files have no tokenizer: BlackMamba was trained with that of GPT-NeoX.
// Arguments: the folder or hub id, where to save it as safetensors, and token ids.
import { AutoModelForCausalLM } from '../lib'; // elsewhere: from 'selective-scan'

async function main(source: string, target: string | undefined, prompt: readonly number[]): Promise<void> {
  const model = await AutoModelForCausalLM.fromPretrained(source, { dtype: 'auto' });
  console.log(`${model.config.modelType}, ${model.numParameters} parameters`);

  const [completion] = await model.generate(prompt, { maxNewTokens: 16 }).completions();
  console.log(`tokens: ${completion!.tokens.join(' ')}`);

  // Which experts the prompt's tokens went to, layer by layer.
  const { router } = await model.forward({ inputIds: [prompt], outputRouter: true });
  for (const [i, { experts, load }] of router!.entries()) {
    console.log(
      `router ${i}: experts ${[...(await experts.data())].join(' ')}; load ${[...(await load.data())].join(' ')}`,
    );
  }
  if (target !== undefined) await model.savePretrained(target);
  model.dispose();
}

const [source = 'Zyphra/BlackMamba-1.5B', target, ids = '1,2,3,4'] = process.argv.slice(2);
void main(source, target, ids.split(',').map(Number));
