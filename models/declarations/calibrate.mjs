/**
 * Sets how sure of itself a model is by the files it was chosen by (temperature scaling, Guo et al. 2017): the
 * weights of the last norm times whatever gives the fewest bits per byte.
 *   node models/declarations/calibrate.mjs <folder of corpus.mjs> <model> <to>
 * Training on little data for long makes models too sure: what they learnt by heart, they were right about.
 */
import { Buffer } from 'node:buffer';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { AutoModelForCausalLM, evaluate } from '../../index.mjs';

const [data, from, to] = process.argv.slice(2);
if (to === undefined) throw new Error('give the folder of corpus.mjs, a model, and a folder for the new one');

const folder = join(data, 'validation');
const names = readdirSync(folder).sort();
const bytes = Buffer.concat(names.map((name) => readFileSync(join(folder, name))));
const model = await AutoModelForCausalLM.fromPretrained(from, { dtype: 'bf16' });
const norm = model.parameters.get('backbone.norm_f.weight');
const weights = await norm.data();
const scaled = (scale) => weights.map((weight) => weight * scale);

let best = { scale: 1, bits: Infinity };
for (let scale = 1; scale > 0.6; scale = Number((scale - 0.04).toFixed(2))) {
  norm.set(scaled(scale));
  const { bitsPerByte } = await evaluate(model, bytes);
  console.log(`times ${scale.toFixed(2)}: ${bitsPerByte.toFixed(4)} bits per byte of the validation files`);
  if (bitsPerByte > best.bits) break; // it only rises from here on
  best = { scale, bits: bitsPerByte };
}
norm.set(scaled(best.scale));
await model.savePretrained(to);
model.dispose();
