// In processes of its own: `peak.ts <folder> write` makes a model of 200 MB, `peak.ts <folder> <dtype>` loads
// it and says how much memory that took.
import { readFileSync } from 'node:fs';
import { AutoModelForCausalLM, type ModelOptions } from '../../lib';

const [folder, what] = process.argv.slice(2) as [string, string];

async function write(): Promise<void> {
  const config = { model_type: 'mamba', vocab_size: 4096, hidden_size: 1536, num_hidden_layers: 3 };
  const model = await AutoModelForCausalLM.fromConfig(config);
  await model.savePretrained(folder);
}

async function load(dtype: ModelOptions['dtype']): Promise<void> {
  const model = await AutoModelForCausalLM.fromPretrained(folder, { dtype });
  const weights = [...model.parameters.values()].reduce(
    (sum, { size, dtype }) => sum + size * (dtype === 'f32' ? 4 : 2),
    0,
  );
  const peak = /VmHWM:\s*(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))![1];
  console.log(JSON.stringify({ weights, peak: Number(peak) * 1024 }));
}
void (what === 'write' ? write() : load(what as ModelOptions['dtype']));
