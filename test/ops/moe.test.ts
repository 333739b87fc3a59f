/** The routers against plain references in f64: ties, empty experts, one token, all tokens to one expert. */
import { Tensor, scope, type TensorLike } from '../../lib';
import {
  limitExperts,
  normRoute,
  routeExperts,
  routerStatistics,
  sinkhorn,
  sortExperts,
} from '../../lib/ops/routing';
import { expertDown, expertMatmul, expertSum, expertUp, normRouteUp } from '../../lib/ops/experts';
import { matmul } from '../../lib/ops/matmul';
import { bits, normal, randomFrom, read, type Case } from '../../lib/verify/cases';
import { measure } from '../../lib/verify/measure';
import type { Op } from '../../lib/op';
import { onEach } from '../devices';
import type { Attrs, Inputs, Values } from '../../lib/verify/reference';
import { balance, moeReferences } from '../../lib/verify/moe-reference';

type Kind = 'random' | 'all tied' | 'tied in pairs' | 'empty experts' | 'all to one expert';
const kinds: readonly Kind[] = ['random', 'all tied', 'tied in pairs', 'empty experts', 'all to one expert'];

function logitsOf(kind: Kind, t: number, e: number): Values {
  const random = randomFrom(t * 31 + e);
  const data = Float64Array.from({ length: t * e }, (_, i) => {
    const j = i % e;
    if (kind === 'all tied') return 0.25;
    if (kind === 'tied in pairs') return Math.fround(Math.sin(Math.floor(i / 2)));
    if (kind === 'empty experts') return j % 2 ? Math.fround(normal(random)) : -9;
    if (kind === 'all to one expert') return j === e - 2 ? 5 : Math.fround(0.1 * normal(random));
    return Math.fround(normal(random));
  });
  return { shape: [t, e], data };
}

describe.each(onEach)('on %s', (_, device) => {
  const floats = ({ shape, data }: Values) => Tensor.from(Float32Array.from(data), shape, { device });
  const ints = ({ shape, data }: Values) => Tensor.from(Int32Array.from(data), shape, { device });
  const holds = async (op: unknown, each: Case) => {
    for (const { result, error, bound } of await measure(op as Op, device, each))
      if (!(error <= bound))
        throw new Error(`${result}: ${error}, at most ${bound}; ${JSON.stringify(each)}`);
  };
  const expectSame = async (got: Readonly<Record<string, TensorLike>>, want: Inputs) => {
    for (const [name, tensor] of Object.entries(got)) {
      const values = await read(tensor as Tensor);
      if ((tensor as Tensor).dtype === 'i32') expect([name, ...values]).toEqual([name, ...want[name]!.data]);
      else values.forEach((v, i) => expect(Math.abs(v - want[name]!.data[i]!)).toBeLessThan(2e-6));
    }
  };

  describe.each(kinds)('logits %s', (kind) => {
    for (const [t, e] of [
      [1, 8],
      [33, 8],
      [257, 3],
    ] as const) {
      const logits = logitsOf(kind, t, e);

      it.each([
        ['softmax', 1, false],
        ['softmax', 2, false],
        ['sigmoid', 1, true],
        ['sigmoid', 3, true],
      ] as const)(`${t} tokens, ${e} experts, %s top-%i with capacity`, async (_router, k, sigmoid) => {
        const attrs = { k, sigmoid, normalize: k > 2 };
        const routed = routeExperts({ logits: floats(logits), ...attrs });
        const wanted = moeReferences['route_experts']!({ logits }, attrs);
        await expectSame(routed, wanted);
        // What comes after is held to the device's own weights: how rounding breaks ties is its own.
        const scores = { shape: [t, k], data: await read(routed.weights) };
        for (const capacity of [0, 1, Math.ceil((t * k) / e), t * k]) {
          const { kept: want } = moeReferences['limit_experts']!(
            { scores, experts: wanted['experts']! },
            { e, capacity },
          );
          const kept = limitExperts({ scores: routed.weights, experts: routed.experts, e, capacity });
          await expectSame({ kept }, { kept: want! });
          const flat = { shape: [t * k], data: want!.data };
          await expectSame(
            sortExperts({ experts: ints(flat), e }),
            moeReferences['sort_experts']!({ experts: flat }, { e }),
          );
          await expectSame(
            routerStatistics({ logits: floats(logits), experts: routed.experts, kept }),
            moeReferences['router_statistics']!({ logits, experts: wanted['experts']!, kept: want! }, {}),
          );
        }
      });

      it(`${t} tokens, ${e} experts, expert choice`, async () => {
        const { probs } = routeExperts({ logits: floats(logits) });
        const scores = { shape: [t, e], data: await read(probs) };
        for (const capacity of [1, Math.ceil(t / e), t])
          await expectSame(
            { kept: limitExperts({ scores: probs, capacity }) },
            moeReferences['limit_experts']!({ scores }, { e: 1, capacity }),
          );
      });

      it.each([false, true])(`${t} tokens, ${e} experts, Sinkhorn (classical: %p)`, async (classical) => {
        const attrs = { classical, tolerance: 1e-4, epsilon: 1e-8, most: 1000 };
        const got = sinkhorn({ logits: floats(logits), classical });
        await expectSame(got, balance({ logits }, attrs));
        const scores = { shape: [t, e], data: await read(got.balanced) };
        await expectSame(
          routeExperts({ logits: floats(logits), scores: got.balanced, sigmoid: true }),
          moeReferences['route_experts']!({ logits, scores }, { k: 1, sigmoid: true, normalize: false }),
        );
      });
    }
  });

  it('Sinkhorn balances, and needs fewer turns from where BlackMamba starts', async () => {
    const logits = floats(logitsOf('all to one expert', 512, 8));
    const [ours, classical] = [false, true].map((each) => sinkhorn({ logits, classical: each }));
    const matrix = await read(ours!.balanced);
    for (let j = 0; j < 8; j++) {
      const column = matrix.filter((_, i) => i % 8 === j).reduce((a, b) => a + b, 0);
      expect(Math.abs(column - 1 / 8)).toBeLessThan(1e-3);
    }
    const [few, many] = [await read(ours!.iterations), await read(classical!.iterations)];
    expect(few[0]!).toBeLessThan(many[0]!);
  });

  it('what is no number chooses experts all the same', async () => {
    const logits = Tensor.from([NaN, NaN, NaN, 1, NaN, 2], [2, 3], { device });
    const { experts } = routeExperts({ logits, k: 2 });
    expect([...(await read(experts))]).toEqual([0, 1, 2, 0]);
  });

  it('an expert gives the bits of a plain product', async () => {
    const random = randomFrom(5);
    const fill = (...shape: number[]) =>
      floats({
        shape,
        data: Float64Array.from({ length: shape.reduce((a, b) => a * b) }, () => normal(random)),
      });
    const weight = fill(3, 40, 70);
    for (const t of [1, 2, 7, 200]) {
      const x = fill(t, 70);
      const { order, offsets } = sortExperts({
        experts: ints({ shape: [t], data: new Float64Array(t).fill(1) }),
        e: 3,
      });
      const one = expertMatmul({ x, weight, order, offsets, k: 1 });
      const plain = matmul({ x, weight: scope(() => weight.rows(1, 2).reshape([40, 70])) });
      if (device.id === 'cpu') expect((await bits(one)).equals(await bits(plain))).toBe(true);
      const [a, b] = [await read(one), await read(plain)];
      a.forEach((v, i) => expect(Math.abs(v - b[i]!)).toBeLessThan(1e-4));
    }
  });

  // Sizes that a GPU takes with its tensor cores, for some, many and very many rows an expert.
  const halves = ['bf16', 'f16'] as const;
  const entries = [
    { d: 8, h: 8, e: 1, k: 1 },
    { d: 1152, h: 40, e: 8, k: 1 },
    { d: 1472, h: 24, e: 4, k: 2 },
    { d: 512, h: 72, e: 20, k: 1 },
    { d: 2048, h: 72, e: 3, k: 3 },
  ];
  it.each(halves)('one token in %s goes through its experts', async (T) => {
    const dtypes = { T, W: T };
    const kinds: readonly Attrs[] = [{}, { sigmoid: true, kind: 1 }, { normalize: true, kind: 2 }];
    for (const [i, sizes] of entries.entries()) {
      const attrs = kinds[i % 3]!;
      const without = ['x', 'routerBias', 'upBias'];
      await holds(normRouteUp, { sizes: { ...sizes, n: 17 }, dtypes, attrs });
      await holds(normRouteUp, { sizes: { ...sizes, n: 1 }, dtypes, attrs, without });
    }
    for (const [h, n] of [
      [8, 24],
      [2048, 16],
      [3872, 9],
      [5000, 8],
    ] as const)
      for (const t of [1, 3]) await holds(expertSum, { sizes: { h, n, e: 3, t, k: t }, dtypes });
    await holds(expertSum, { sizes: { h: 136, n: 40, e: 8, t: 1, k: 1 }, dtypes, without: ['bias'] });
  });
  it.each(halves)('tokens in %s are routed', async (T) => {
    for (const t of [1, 5])
      for (const { d, e, k } of entries)
        await holds(normRoute, { sizes: { t, d, e, k }, dtypes: { T }, attrs: { sigmoid: k > 1 } });
    await holds(normRoute, { sizes: { t: 530, d: 1100, e: 2, k: 2 }, dtypes: { T }, without: ['x', 'bias'] });
    await holds(normRoute, { sizes: { t: 530, d: 40, e: 33, k: 4 }, dtypes: { T } });
  });
  it.each(halves)('tokens in %s go through experts together', async (T) => {
    const dtypes = { T, W: T };
    for (const t of [5, 20, 60, 170]) {
      for (const [n, kind] of [
        [1, 0],
        [17, 1],
        [17, 2],
      ] as const) {
        const without = kind === 2 ? ['bias'] : [];
        await holds(expertUp, { sizes: { t, e: 2, d: 200, h: 72, n }, dtypes, attrs: { kind }, without });
      }
      await holds(expertDown, { sizes: { t: 2 * t, e: 2, d: 456, n: 72, k: 1 }, dtypes });
      await holds(expertDown, { sizes: { t, e: 2, d: 72, n: 40, k: 2 }, dtypes, without: ['bias'] });
    }
  });

  it('refuses what cannot be', () => {
    const logits = floats(logitsOf('random', 4, 3));
    expect(() => routeExperts({ logits, k: 4 })).toThrow(
      'route_experts: k is 4, expected 1 to e, the number of experts, which is 3',
    );
    expect(() => routeExperts({ logits, k: 0 })).toThrow('k is 0');
    expect(() => routeExperts({ logits, k: 1.5 })).toThrow('k is 1.5, expected a whole number');
    expect(() => limitExperts({ scores: logits, capacity: -1 })).toThrow('capacity is -1');
    expect(() => sortExperts({ experts: ints({ shape: [1], data: Float64Array.of(0) }), e: -1 })).toThrow(
      'e is -1',
    );
  });

  it('an expert that is not there fails the next read', async () => {
    const { place } = sortExperts({ experts: ints({ shape: [2], data: Float64Array.of(1, 7) }), e: 4 });
    await expect(place.data()).rejects.toThrow('sort_experts: experts[1] is 7, expected less than 4');
  });
});
