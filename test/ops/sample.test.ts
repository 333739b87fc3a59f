import { DeviceError } from '../../lib/errors';
import { sample } from '../../lib/ops/sample';
import { Tensor } from '../../lib/tensor';
import { normal, randomFrom, read } from '../../lib/verify/cases';
import { onEach } from '../devices';
import { distribution, logSumExp, type Filters } from '../../lib/verify/reference';

interface Row extends Partial<Filters> {
  readonly logits: readonly number[];
  readonly penalty?: number;
  readonly seed?: readonly [number, number];
  readonly position?: number;
  readonly quiet?: number;
  /** Ids that the row has seen. */
  readonly seen?: readonly number[];
}

const logitsOf = (v: number, seed: number, scale = 2) => {
  const random = randomFrom(seed);
  return Array.from({ length: v }, () => Math.fround(scale * normal(random)));
};

describe.each(onEach)('on %s', (_, device) => {
  const f32 = (data: readonly number[], shape = [data.length]) =>
    Tensor.from(Float32Array.from(data), shape, { device });
  const i32 = (data: readonly number[], shape = [data.length]) =>
    Tensor.from(Int32Array.from(data), shape, { device });

  /** Draws once for each row. */
  async function draw(rows: readonly Row[], stop?: readonly number[]) {
    const v = rows[0]!.logits.length;
    const words = Math.ceil(v / 32);
    const marks = rows.flatMap(({ seen = [] }) => {
      const bits = Array<number>(words).fill(0);
      for (const id of seen) bits[id >> 5]! |= 1 << (id & 31);
      return bits;
    });
    const args = {
      logits: f32(
        rows.flatMap(({ logits }) => logits),
        [rows.length, v],
      ),
      temperature: f32(rows.map(({ temperature = 1 }) => temperature)),
      topK: i32(rows.map(({ topK = 0 }) => topK)),
      topP: f32(rows.map(({ topP = 1 }) => topP)),
      minP: f32(rows.map(({ minP = 0 }) => minP)),
      penalty: f32(rows.map(({ penalty = 1 }) => penalty)),
      seed: i32(
        rows.flatMap(({ seed = [1, 2] }) => seed),
        [rows.length, 2],
      ),
      stop: stop && i32(stop),
      quiet: stop && i32(rows.map(({ quiet = 0 }) => quiet)),
      seen: i32(marks, [rows.length, words]),
      position: i32(rows.map(({ position = 0 }) => position)),
      token: i32(rows.map(() => -1)),
      logprob: f32(rows.map(() => NaN)),
    };
    sample(args);
    const { token, logprob, position, seen } = args;
    return {
      tokens: [...(await read(token))],
      logprobs: await read(logprob),
      positions: await read(position),
      seen: await read(seen),
    };
  }
  /** `count` draws from one distribution, each at its own position. */
  const many = async (row: Row, count: number) =>
    (await draw(Array.from({ length: count }, (_, position) => ({ ...row, position })))).tokens;

  it('is greedy at temperature 0, whatever the filters; of equal logits the first wins', async () => {
    const logits = logitsOf(1000, 1);
    const best = logits.indexOf(Math.max(...logits));
    const even = Array<number>(1000).fill(0.5);
    const { tokens, logprobs, positions } = await draw([
      { logits, temperature: 0 },
      { logits, temperature: 0, topK: 5, topP: 0.1, minP: 0.5, position: 7 },
      { logits: even, temperature: 0 },
    ]);
    expect(tokens).toEqual([best, best, 0]);
    expect([...positions]).toEqual([1, 8, 1]);
    expect(logprobs[0]).toBeCloseTo(logits[best]! - logSumExp(Float64Array.from(logits)), 5);
    expect(logprobs[2]).toBeCloseTo(-Math.log(1000), 5);
  });

  const filters: readonly Filters[] = [
    { temperature: 1 },
    { temperature: 0.6 },
    { temperature: 1.7, topK: 1 },
    { temperature: 1, topK: 7 },
    { temperature: 1, topK: 1000 },
    { temperature: 1.3, topP: 0.5 },
    { temperature: 1, topP: 0.93 },
    { temperature: 1, topP: 0 },
    { temperature: 1.5, minP: 0.1 },
    { temperature: 1, minP: 1 },
    { temperature: 1.2, topK: 12, topP: 0.8 },
    { temperature: 2, topK: 20, topP: 0.95, minP: 0.05 },
  ];

  it.each(filters)('draws what %p leaves, as often as it should', async (filter) => {
    const logits = logitsOf(40, 3);
    const wanted = distribution(logits, filter);
    const draws = 4000;
    const counts = Array<number>(logits.length).fill(0);
    for (const token of await many({ logits, ...filter }, draws)) counts[token]! += 1;
    expect(counts.filter((count, i) => count > 0 && wanted[i] === 0)).toEqual([]);
    // Every token that is not rare is drawn, and chi-square of all of them is within four deviations.
    const common = wanted.map((_, i) => i).filter((i) => wanted[i]! * draws >= 5);
    expect(common.filter((i) => counts[i] === 0)).toEqual([]);
    const chiSquare = common.reduce(
      (sum, i) => sum + (counts[i]! - draws * wanted[i]!) ** 2 / (draws * wanted[i]!),
      0,
    );
    const freedom = common.length - 1;
    expect(chiSquare).toBeLessThanOrEqual(freedom + 4 * Math.sqrt(2 * freedom));
  });

  it('gives a row the same token for its seed and position, wherever it stands', async () => {
    const rows = Array.from({ length: 20 }, (_, i): Row => ({
      logits: logitsOf(300, i),
      temperature: 1.5,
      topP: i % 2 ? 0.9 : 1,
      seed: [i * 1000, -i],
      position: i * 3,
    }));
    const { tokens } = await draw(rows);
    expect((await draw([...rows].reverse())).tokens.reverse()).toEqual(tokens);
    // A GPU has other teams of blocks for so many.
    expect((await draw(rows.slice(0, 12))).tokens).toEqual(tokens.slice(0, 12));
    const alone = await Promise.all(rows.map((row) => draw([row])));
    expect(alone.map(({ tokens: [token] }) => token)).toEqual(tokens);
  });

  it('draws anew for every position and for either half of the seed', async () => {
    const row: Row = { logits: Array<number>(5000).fill(0) };
    const seeds = [
      [1, 2],
      [2, 2],
      [1, 3],
    ] as const;
    const drawn = await Promise.all(seeds.map((seed) => many({ ...row, seed }, 50)));
    // 150 draws of 5,000 tokens: two of them meet, on average.
    expect(new Set(drawn.flat()).size).toBeGreaterThan(140);
  });

  it('penalises what was seen, once, and notes what it drew', async () => {
    const logits = [2, 1.5, -1, -1.2, 0];
    const one = async (row: Omit<Row, 'logits'>) => await draw([{ logits, temperature: 0, ...row }]);
    expect((await one({ penalty: 2 })).tokens).toEqual([0]);
    const second = await one({ penalty: 2, seen: [0] });
    expect(second.tokens).toEqual([1]);
    expect([...second.seen]).toEqual([0b11]);
    expect((await one({ penalty: 2, seen: [0, 1] })).tokens).toEqual([0]);
    expect((await one({ penalty: 0.5, seen: [2] })).tokens).toEqual([0]);
    // What is reported is the model's own probability, without penalty.
    expect(second.logprobs[0]).toBeCloseTo(1.5 - logSumExp(Float64Array.from(logits)), 5);
  });

  it('draws from what a penalty leaves', async () => {
    const logits = [2, 1.5, -1, -1.2, 0];
    // A negative logit is multiplied, a positive one divided.
    const softened = distribution([1, 0.75, -2, -1.2, 0], { temperature: 1 });
    const tokens = await many({ logits, penalty: 2, seen: [0, 1, 2] }, 4000);
    for (let i = 0; i < 5; i++)
      expect(tokens.filter((t) => t === i).length / 4000).toBeCloseTo(softened[i]!, 1);
  });

  it('keeps quiet about stop ids before a position', async () => {
    const logits = [5, 4, 3, 2];
    const at = async (position: number, stop: readonly number[]) =>
      (await draw([{ logits, temperature: 0, position, quiet: 3 }], stop)).tokens[0];
    expect(await at(0, [0])).toBe(1);
    expect(await at(2, [0, 1])).toBe(2);
    expect(await at(3, [0, 1])).toBe(0);
    expect(await at(0, [-1, 99])).toBe(0); // ids that are none
  });

  it('has no other choice with one token', async () => {
    expect(await many({ logits: [3], topP: 0.5 }, 3)).toEqual([0, 0, 0]);
  });

  it('takes logits of minus infinity for impossible', async () => {
    const logits = [-Infinity, 1, -Infinity, 1];
    expect(new Set(await many({ logits }, 100))).toEqual(new Set([1, 3]));
    expect(new Set(await many({ logits, topK: 4 }, 100))).toEqual(new Set([1, 3]));
  });

  it.each([[NaN], [Infinity]])('fails the read for %p among the logits, and names the row', async (wrong) => {
    for (const temperature of [0, 1])
      for (const place of [0, 17, 39]) {
        const logits = logitsOf(40, 5).map((x, i) => (i === place ? wrong : x));
        const failing = draw([{ logits: logitsOf(40, 6) }, { logits, temperature }]);
        await expect(failing).rejects.toThrow(DeviceError);
        await expect(failing).rejects.toThrow('sample: the logits of row 1 are not finite');
      }
    expect((await draw([{ logits: [0, 1], temperature: 0 }])).tokens).toEqual([1]);
  });

  it('fails the read where nothing is left to draw', async () => {
    await expect(draw([{ logits: [-Infinity, -Infinity] }])).rejects.toThrow(
      'sample: the logits of row 0 are not finite',
    );
    await expect(draw([{ logits: [1, 2], quiet: 1 }], [0, 1])).rejects.toThrow(DeviceError);
  });
});
