import { draw, type Task } from './task';

const vocabSize = 16;
/** The token after which the one to be remembered stands. */
const trigger = vocabSize - 1;

/**
 * Induction heads (Gu and Dao 2023, section 4.1.2; Fu et al. 2023): tokens at random, among them once, at
 * any place, the trigger. At the end it comes again, and the model is to say what followed it.
 */
export const inductionHeads: Task = {
  name: 'induction-heads',
  title: 'Induction heads',
  vocabSize,
  length: 256,
  testLengths: Array.from({ length: 15 }, (_, i) => 2 ** (6 + i)),
  shortest: 3,
  // Once all is right, gradients are tiny; what they still say is what carries over to long sequences, and a
  // larger epsilon would drown it.
  recipe: {
    ...{ steps: 50_000, rows: 8, mostTokens: 1 << 16, learningRate: 1e-3, schedule: 'constant' },
    ...{ beta2: 0.999, eps: 1e-15, average: 0.999, seed: 4 },
    curriculum: [],
  },
  paper: {
    source: 'Gu and Dao 2023, table 11',
    recipe:
      '8 sequences a step, Adam, constant learning rate; Mamba 204,800 steps at 1e-3, ' +
      'the others, of D = 128, at 2e-4: attention 409,600, H3 and Hyena 81,920',
    // prettier-ignore
    rows: [
      { model: 'Mamba', accuracy: Array<number>(15).fill(100) },
      { model: 'H3', accuracy: [100, 100, 100, 80.9, 39.5, 23.8, 14.8, 8.2, 5.9, 6.6, 8.2, 4.7, 8.2, 6.3, 7.4] },
      { model: 'Hyena', accuracy: [97.7, 100, 100, 100, 44.1, 12.5, 6.6, 5.1, 7.0, 5.9, 6.6, 6.6, 5.9, 6.3, 9.8] },
      { model: 'attention, xPos', accuracy: [100, 100, 100, 99.6, 67.6, 25.4, 7.0, 9.0, 7.8] },
    ],
  },
  example(length, random) {
    const ids = Int32Array.from({ length }, () => draw(random, trigger));
    const at = draw(random, length - 2);
    ids[at] = trigger;
    ids[length - 1] = trigger;
    return { ids, answers: Int32Array.of(ids[at + 1]!) };
  },
};
