// FalconMamba: loads a checkpoint, writes, and keeps the conversation as a few MiB however long it is. Argument: a
// folder or hub id; without one, a small model of random weights.
import { AutoModelForCausalLM, type CausalLM } from '../lib'; // elsewhere: from 'selective-scan'

/** The configuration of tiiuae/falcon-mamba-7b, made small. */
const small = {
  model_type: 'falcon_mamba',
  hidden_size: 64,
  num_hidden_layers: 2,
  vocab_size: 300,
  mixer_rms_eps: 1e-6,
};

async function say(model: CausalLM, prompt: string, ids: number[], state = model.createState()) {
  const [completion] = await model
    .generate(model.tokenizer ? prompt : ids, { maxNewTokens: 16, state })
    .completions();
  console.log(model.tokenizer ? prompt + completion!.text : completion!.tokens.join(' '));
  return state;
}

async function main(name?: string): Promise<void> {
  const model = name
    ? await AutoModelForCausalLM.fromPretrained(name, { dtype: 'bf16' })
    : await AutoModelForCausalLM.fromConfig(small, { seed: 1 });
  console.log(`${model.config.modelType}, ${model.numParameters} parameters`);

  const state = await say(model, 'The capital of France is', [5, 6, 7]);
  const kept = await state.snapshot(); // to a file, a database, another process
  console.log(`${kept.byteLength} bytes remember ${state.lengths[0]} tokens`);
  const later = await say(model, ' And that of Spain is', [8, 9], model.restoreState(kept));

  state.dispose();
  later.dispose();
  model.dispose();
}

void main(process.argv[2]);
