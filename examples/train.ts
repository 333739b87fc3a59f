// Trains a small model of bytes and lets it write. Arguments: a folder for it, steps, files; by default 60 steps on
// some pages of this repository. Ctrl-C ends it with a checkpoint, from which the same command goes on.
import { existsSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AutoModelForCausalLM, Corpus, train, Trainer, Windows } from '../lib'; // elsewhere: from 'selective-scan'

async function main(folder: string, steps: number, given: readonly string[]): Promise<void> {
  const docs = join(__dirname, '..', 'docs', 'decisions');
  const files = given.length > 0 ? given : readdirSync(docs).map((name) => join(docs, name));
  const { training, validation } = (await Corpus.open(files)).split({ share: 0.1 });
  const held = new Windows(validation, { length: 128, rows: 8, shuffle: false });

  const config = { model_type: 'mambabyte', hidden_size: 64, num_hidden_layers: 2, initializer_range: 0.02 };
  const trainer = await Trainer.fromConfig(config, { steps, learningRate: 5e-3, seed: 1 });
  console.log(`${trainer.model.numParameters} parameters, ${training.length} bytes to learn from`);

  const controller = new AbortController();
  process.once('SIGINT', () => controller.abort());
  const { best, stopped } = await train(trainer, {
    source: new Windows(training, { length: 128, rows: 8, seed: 1 }),
    validation: () => held,
    folder,
    resume: existsSync(join(folder, 'curves.html')),
    signal: controller.signal,
    onEvaluation: ({ step, validation }) =>
      console.log(`step ${step}: ${(validation / Math.LN2).toFixed(3)} bits per byte of held-out files`),
  });
  console.log(`curves: ${join(folder, 'curves.html')}`);
  if (best && !stopped) {
    await trainer.save(join(folder, 'model'));
    const model = await AutoModelForCausalLM.fromPretrained(join(folder, 'model'));
    console.log(await model.generate('The ', { maxNewTokens: 80, temperature: 0.8, seed: 1 }).text());
    model.dispose();
  }
  trainer.dispose();
}

const [folder = join(tmpdir(), 'selective-scan-train'), steps = '60', ...files] = process.argv.slice(2);
void main(folder, Number(steps), files);
