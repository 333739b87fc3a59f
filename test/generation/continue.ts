// Continues a snapshot in a process of its own: `continue.ts <model folder> <snapshot> <options as JSON>`.
import { readFileSync } from 'node:fs';
import { AutoModelForCausalLM, type GenerateOptions } from '../../lib';

const [folder, snapshot, options] = process.argv.slice(2) as [string, string, string];

async function main(): Promise<void> {
  const model = await AutoModelForCausalLM.fromPretrained(folder);
  const state = model.restoreState(readFileSync(snapshot));
  const prompts = state.lengths.map(() => []);
  const rows = await model
    .generate(prompts, { ...(JSON.parse(options) as GenerateOptions), state })
    .completions();
  console.log(JSON.stringify(rows.map(({ tokens, logprobs }) => ({ tokens, logprobs }))));
}
void main();
