import { distribution, logProbability, randomAt } from '../../lib/generation/distribution';
import type { RowOptions } from '../../lib/generation/options';
import { sample } from '../../lib/ops/sample';
import { Tensor } from '../../lib/tensor';
import { normal, randomFrom } from '../../lib/verify/cases';
import { distribution as reference, logSumExp } from '../../lib/verify/reference';

const plain: RowOptions = {
  ...{ maxNewTokens: 1, minNewTokens: 0, temperature: 1, topK: 0, topP: 1, minP: 0 },
  ...{ repetitionPenalty: 1, seed: 0n },
};
const logitsOf = (v: number, scale = 2) => {
  const random = randomFrom(3);
  return Float32Array.from({ length: v }, () => scale * normal(random));
};

it.each([
  { temperature: 0.6 },
  { topK: 1 },
  { topK: 7, temperature: 1.7 },
  { topK: 100_000 },
  { topP: 0.5 },
  { topP: 0.999_999 },
  { topP: 1e-9 },
  { minP: 0.1 },
  { topK: 20, topP: 0.95, minP: 0.05, temperature: 2 },
  { temperature: 1e-30, topP: 0.9 },
])('is what a plain reference says of %p', (filters) => {
  for (const logits of [logitsOf(2), logitsOf(200), logitsOf(500, 20), new Float32Array(50)]) {
    const wanted = reference([...logits], { ...plain, ...filters });
    const got = distribution(logits, { ...plain, ...filters });
    expect(got.length).toBe(wanted.length);
    got.forEach((p, i) => expect(Math.abs(p - wanted[i]!)).toBeLessThan(1e-12));
  }
});

it('is greedy at temperature 0, penalises what was seen, and holds back what is held', () => {
  const logits = Float32Array.of(1, 3, -1, 3);
  expect([...distribution(logits, { ...plain, temperature: 0 })]).toEqual([0, 1, 0, 0]);
  expect([...distribution(logits, { ...plain, temperature: 0 }, { held: [1] })]).toEqual([0, 0, 0, 1]);
  const options = { ...plain, repetitionPenalty: 2 };
  const seen = (id: number) => id === 1 || id === 2;
  const wanted = reference([1, 1.5, -2, 3], { temperature: 1 });
  distribution(logits, options, { seen }).forEach((p, i) => expect(p).toBeCloseTo(wanted[i]!, 12));
  expect(logProbability(logits, 1)).toBeCloseTo(3 - logSumExp(Float64Array.from(logits)), 10);
});

it('has the random numbers of sample, and others in other streams', async () => {
  // Of a thousand equal logits the one that is drawn tells the number.
  const v = 1000;
  const positions = [0, 1, 2, 77, 2 ** 31 - 1];
  const b = positions.length;
  const seed = 0x1234_5678_9abc_def0n;
  const of = (data: readonly number[], shape = [data.length]) => Tensor.from(Int32Array.from(data), shape);
  const floats = (value: number) => Tensor.from(new Float32Array(b).fill(value));
  const token = of(positions);
  sample({
    ...{ logits: Tensor.from(new Float32Array(b * v), [b, v]), temperature: floats(1), topP: floats(1) },
    ...{
      minP: floats(0),
      penalty: floats(1),
      topK: of(positions.map(() => 0)),
      position: of(positions),
      token,
    },
    seed: of(
      positions.flatMap(() => [0x9abc_def0 | 0, 0x1234_5678]),
      [b, 2],
    ),
    logprob: floats(0),
  });
  expect([...(await token.data())]).toEqual(positions.map((at) => Math.floor(randomAt(seed, at, 0) * v)));
  const numbers = [0, 1, 2].flatMap((stream) => positions.map((at) => randomAt(seed, at, stream)));
  expect(new Set(numbers).size).toBe(numbers.length);
  expect(numbers.every((x) => x >= 0 && x < 1)).toBe(true);
});

it('takes a large vocabulary in its stride', () => {
  const logits = logitsOf(50_280);
  const got = distribution(logits, { ...plain, topP: 0.9, topK: 40 });
  expect(got.filter((p) => p > 0).length).toBeLessThanOrEqual(40);
  expect(got.reduce((a, b) => a + b)).toBeCloseTo(1, 10);
});
