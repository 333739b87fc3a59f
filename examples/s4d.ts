// S4D: one layer from sequences to sequences, computed two ways from the same weights. As a recurrence it
// takes a signal in pieces and remembers; as a convolution it takes a long one at once. Both say the same.
import { S4D } from '../lib'; // elsewhere: from 'selective-scan'

async function main(length: number): Promise<void> {
  const channels = 64;
  const layer = await S4D.create({ dModel: channels, dState: 64, init: 'lin', seed: 1 });
  const u = Float32Array.from({ length: length * channels }, (_, i) => Math.sin(0.01 * i) + Math.cos(i * i));

  const timed = async (mode: 'recurrent' | 'convolutional') => {
    const begin = performance.now();
    const { y } = await layer.run({ batch: 1, length, u, mode });
    console.log(`${mode}: ${(performance.now() - begin).toFixed(1)} ms`);
    return y;
  };
  const recurrent = await timed('recurrent');
  const convolutional = await timed('convolutional');
  const largest = recurrent.reduce((most, y) => Math.max(most, Math.abs(y)), 0);
  const apart = recurrent.reduce((most, y, i) => Math.max(most, Math.abs(y - convolutional[i]!)), 0);
  console.log(`apart by ${(apart / largest).toExponential(1)} of the largest value`);

  // As it comes in: each piece goes on where the last one ended.
  let initialState = new Float32Array(channels * 64);
  for (let begin = 0; begin < length; begin += 1000) {
    const end = Math.min(length, begin + 1000);
    const piece = { batch: 1, length: end - begin, u: u.subarray(begin * channels, end * channels) };
    const { y, lastState } = await layer.run({ ...piece, initialState });
    initialState = Float32Array.from(lastState!);
    if (begin === 0) console.log('first value', y[0], 'whole', recurrent[0]);
    else if (end === length) console.log('last value', y.at(-1), 'whole', recurrent.at(-1));
  }
  layer.dispose();
}

void main(Number(process.argv[2] ?? 4096));
