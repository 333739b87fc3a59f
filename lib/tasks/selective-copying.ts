import { draw, type Task } from './task';

const vocabSize = 16;
const remembered = 16;
const noise = 0;
/** Asks for the next of the remembered tokens. */
const marker = vocabSize - 1;

/**
 * Selective copying (Gu and Dao 2023, section 4.1.1): sixteen tokens at random places among noise; at the
 * end sixteen markers, at which the model is to say them in their order. As in the copying task that it
 * varies (Arjovsky et al. 2016), one token of the vocabulary is the noise and one the marker.
 */
export const selectiveCopying: Task = {
  name: 'selective-copying',
  title: 'Selective copying',
  vocabSize,
  length: 4096,
  testLengths: [4096],
  shortest: 2 * remembered,
  // Among little noise the order is learnt soon, and then carried over to more of it: from the first step on
  // at 4096 tokens nothing was learnt in 6,500 steps of 8 sequences.
  recipe: {
    ...{ steps: 32_000, rows: 64, mostTokens: 1 << 16, learningRate: 1e-3, schedule: 'cosine' },
    ...{ beta2: 0.999, eps: 1e-8, seed: 0 },
    curriculum: [
      { length: 64, until: 0.65 },
      { length: 128, until: 0.68 },
      { length: 256, until: 0.71 },
      { length: 512, until: 0.74 },
      { length: 1024, until: 0.78 },
      { length: 2048, until: 0.83 },
    ],
  },
  paper: {
    source: 'Gu and Dao 2023, table 1',
    recipe: '400,000 steps of 64 sequences, constant learning rate 1e-4',
    rows: [
      { model: 'Mamba', accuracy: [99.8] },
      { model: 'Mamba with S4 layers', accuracy: [56.4] },
      { model: 'H3', accuracy: [57.0] },
      { model: 'Hyena', accuracy: [30.1] },
      { model: 'S4', accuracy: [18.3] },
    ],
  },
  example(length, random) {
    const ids = new Int32Array(length).fill(noise);
    const answers = Int32Array.from({ length: remembered }, () => 1 + draw(random, marker - 1));
    const places = choose(length - remembered, remembered, random);
    places.forEach((place, i) => (ids[place] = answers[i]!));
    ids.fill(marker, length - remembered);
    return { ids, answers };
  },
};

/** `count` different numbers below `below`, in order, every set as likely (Floyd's algorithm). */
function choose(below: number, count: number, random: () => number): number[] {
  const chosen = new Set<number>();
  for (let top = below - count; top < below; top++) {
    const place = draw(random, top + 1);
    chosen.add(chosen.has(place) ? top : place);
  }
  return [...chosen].sort((a, b) => a - b);
}
