/**
 * Trains the model of this folder on the files that corpus.mjs wrote:
 *   node models/declarations/train.mjs <folder of corpus.mjs> <folder for the training>
 * The training's folder gets a checkpoint, log.jsonl, curves.html and `best`: averages of the parameters at
 * the step of the lowest validation loss. SELECTIVE_SCAN_DEVICE says where it runs.
 */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { Corpus, train, Trainer, Windows } from '../../index.mjs';

const [data, folder] = process.argv.slice(2);
if (folder === undefined) throw new Error('give the folder of corpus.mjs, and one for the training');

const config = {
  model_type: 'mambabyte',
  hidden_size: 192,
  num_hidden_layers: 7,
  initializer_range: 0.02,
};
const options = {
  steps: 3600,
  learningRate: 4e-3,
  minimumLearningRate: 2e-5,
  warmup: 200,
  weightDecay: 1.5,
  average: 0.995,
  precision: 'bf16',
  seed: 1,
};
const filesOf = (kind) =>
  readdirSync(join(data, kind))
    .sort()
    .map((name) => join(data, kind, name));

const windows = { length: 2048, rows: 8 };
const source = new Windows(await Corpus.open(filesOf('training')), { ...windows, seed: 1 });
const held = await Corpus.open(filesOf('validation'));
const trainer = await Trainer.fromConfig(config, options);
const best = join(folder, 'best');
const result = await train(trainer, {
  source,
  folder,
  best,
  title: 'Declarations',
  logEvery: 20,
  saveEvery: options.steps,
  keep: 1,
  validation: () => new Windows(held, { ...windows, shuffle: false }),
  onEvaluation: ({ step, validation }) =>
    console.log(`step ${step}: ${(validation / Math.LN2).toFixed(4)} bits per byte`),
});
trainer.dispose();
console.log(`the best is of step ${result.best.step}`);
