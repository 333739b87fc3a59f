// Loads a model of any format (original state-spaces checkpoints with a pickled pytorch_model.bin too), lets it
// write, and saves it as safetensors that transformers loads. Arguments: a folder or hub id, and a new folder.
import { AutoModelForCausalLM } from '../lib'; // elsewhere: from 'selective-scan'

async function main(source: string, target: string): Promise<void> {
  const model = await AutoModelForCausalLM.fromPretrained(source);
  console.log(`${model.config.modelType}, ${model.numParameters} parameters`);
  const prompt = model.tokenizer ? 'Once upon a time' : [1, 2, 3]; // original checkpoints have no tokenizer
  const [completion] = await model.generate(prompt, { maxNewTokens: 16 }).completions();
  console.log(model.tokenizer ? completion!.text : completion!.tokens.join(' '));
  await model.savePretrained(target);
  model.dispose();
}

const [source = 'state-spaces/mamba-130m', target = 'mamba-130m'] = process.argv.slice(2);
void main(source, target);
