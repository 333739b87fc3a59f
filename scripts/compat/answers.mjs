// What this package answers about a model's folder, as JSON, for loads.py beside it:
//   node scripts/compat/answers.mjs <folder> <text> <new tokens>
// A model without a tokenizer is given some token ids instead of the text.
import { AutoModelForCausalLM } from '../../index.mjs';

const [folder, text, count] = process.argv.slice(2);
const model = await AutoModelForCausalLM.fromPretrained(folder, { device: 'cpu', dtype: 'f32' });
const { tokenizer, config } = model;
const ids = tokenizer
  ? [...tokenizer.encode(text)]
  : Array.from({ length: 12 }, (_, i) => (i * 37 + 5) % config.vocabSize);
const { logits } = await model.forward({ inputIds: [ids] });
const options = { maxNewTokens: Number(count), doSample: false };
const [{ tokens }] = await model.generate([ids], options).completions();
const decoded = tokenizer?.decode(ids);
console.log(
  JSON.stringify({ ids, decoded, shape: logits.shape, logits: [...(await logits.data())], tokens }),
);
model.dispose();
