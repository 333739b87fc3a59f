// MoE-Mamba (Pióro et al. 2024): makes a small model of Mamba and Switch layers in turn, lets it write, and
// shows which experts its tokens went to. With "25M" or "100M" as argument one of the paper's sizes.
import { AutoModelForCausalLM, moeMambaPresets, type RouterOutput } from '../lib'; // elsewhere: from 'selective-scan'

const small = {
  model_type: 'moe_mamba',
  vocab_size: 256,
  hidden_size: 64,
  num_hidden_layers: 4,
  num_experts: 8,
};

async function main(size: string): Promise<void> {
  const config = { small, ...moeMambaPresets }[size];
  if (!config) throw new RangeError(`size is ${size}, expected small, 25M or 100M`);
  const model = await AutoModelForCausalLM.fromConfig(config, { seed: 1 }); // untrained: what it writes is noise
  console.log(`${model.numParameters} parameters`);

  const prompt = [10, 20, 30, 40, 50, 60, 70, 80];
  const [completion] = await model.generate(prompt, { maxNewTokens: 8 }).completions();
  console.log(`tokens: ${completion!.tokens.join(' ')}`);

  const { router } = await model.forward({ inputIds: [prompt], outputRouter: true });
  for (const [i, { load, entropy }] of (router as readonly RouterOutput[]).entries()) {
    const [nats] = await entropy.data();
    console.log(`router ${i}: ${[...(await load.data())].join(' ')}, entropy ${nats!.toFixed(2)}`);
  }
  model.dispose();
}

void main(process.argv[2] ?? 'small');
