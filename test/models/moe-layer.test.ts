/** The layer against plain loops in f64: every router, activation and bias, in training and not. */
import { grad } from '../../lib/autograd/grad';
import { MoE, capacityOf, type MoEConfig, type Routing } from '../../lib/nn/moe';
import { Weights } from '../../lib/nn/weights';
import { capture, Tensor } from '../../lib';
import { normal, randomFrom, read } from '../../lib/verify/cases';
import { onEach } from '../devices';
import { activations, balance, limit, philox, moeReferences } from '../../lib/verify/moe-reference';
import type { Values } from '../../lib/verify/reference';

const base: MoEConfig = {
  dModel: 12,
  dExpert: 9,
  activation: 'relu',
  bias: false,
  experts: 4,
  topK: 1,
  router: 'softmax',
  routerBias: false,
  normalize: false,
  capacityFactor: 1,
  jitter: 0,
  classicalSinkhorn: false,
  names: { experts: 'experts', up: 'up_proj', down: 'down_proj' },
};
const variants: readonly (readonly [string, Partial<MoEConfig>])[] = [
  ['Switch', { jitter: 0.05 }],
  ['top-2, SwiGLU', { topK: 2, activation: 'swiglu', normalize: true, capacityFactor: 0.75 }],
  ['sigmoid, GELU', { router: 'sigmoid', activation: 'gelu', bias: true, routerBias: true }],
  ['Sinkhorn, GeGLU', { router: 'sinkhorn', activation: 'geglu', bias: true, capacityFactor: undefined }],
  ['expert choice, SiLU', { router: 'expert-choice', activation: 'silu', capacityFactor: 1.25 }],
];
const seedWords = [7, -3] as const;

type Parameters = ReadonlyMap<string, Float64Array>;

/** `W x + b` */
const linear = (p: Parameters, name: string, x: readonly number[]) =>
  Array.from({ length: p.get(`${name}.weight`)!.length / x.length }, (_, i) =>
    x.reduce(
      (sum, v, j) => sum + v * p.get(`${name}.weight`)![i * x.length + j]!,
      p.get(`${name}.bias`)?.[i] ?? 0,
    ),
  );

function expert(
  p: Parameters,
  name: string,
  { activation, dExpert }: MoEConfig,
  x: readonly number[],
): number[] {
  const up = linear(p, `${name}.up_proj`, x);
  const f = activations[{ relu: 0, gelu: 1, geglu: 1, silu: 2, swiglu: 2 }[activation]]!;
  const gated = activation.endsWith('glu');
  const middle = up.slice(0, dExpert).map((v, i) => f(v) * (gated ? up[dExpert + i]! : 1));
  return linear(p, `${name}.down_proj`, middle);
}

/** The layer's output and the experts that each token has, in f64; with the given ones where all are tied. */
function plain(
  p: Parameters,
  config: MoEConfig,
  x: readonly (readonly number[])[],
  training: boolean,
  chosen?: Float64Array,
) {
  const { experts: e, topK, router } = config;
  const noisy = x.map((row, i) =>
    row.map((v, j) =>
      training && config.jitter > 0
        ? v * (1 + config.jitter * (2 * philox([...seedWords], i * row.length + j) - 1))
        : v,
    ),
  );
  const data = Float64Array.from(noisy.flatMap((row) => linear(p, 'router', row)));
  const logits: Values = { shape: [x.length, e], data };
  const scores =
    training && router === 'sinkhorn'
      ? chosen
        ? { shape: [x.length, e], data: data.map((_, i) => Number(chosen[Math.floor(i / e)] === i % e)) }
        : balance({ logits }, { classical: false, tolerance: 1e-4, epsilon: 1e-8, most: 1000 })['balanced']!
      : undefined;
  const choice = router === 'expert-choice';
  const attrs = {
    k: choice ? 1 : topK,
    sigmoid: !choice && router !== 'softmax',
    normalize: config.normalize,
  };
  const routed = moeReferences['route_experts']!({ logits, ...(scores && { scores }) }, attrs);
  const capacity = capacityOf(config, x.length);
  let kept = routed['experts']!;
  let weights = routed['weights']!;
  if (choice) {
    weights = routed['probs']!;
    kept = limit({ scores: weights }, { e, capacity })['kept']!;
  } else if (training && config.capacityFactor !== undefined) {
    kept = limit({ scores: weights, experts: kept }, { e, capacity })['kept']!;
  }
  const k = kept.shape[1]!;
  const y = x.map((row, i) => {
    const sum = row.map(() => 0);
    for (let j = i * k; j < (i + 1) * k; j++)
      if (kept.data[j]! >= 0)
        expert(p, `experts.${kept.data[j]}`, config, row).forEach(
          (v, c) => (sum[c]! += weights.data[j]! * v),
        );
    return sum;
  });
  return { y: y.flat(), kept: [...kept.data] };
}

describe.each(onEach)('on %s', (_, device) => {
  describe.each(variants)('%s', (_name, change) => {
    const config = { ...base, ...change };
    const weights = new Weights({ device, dtype: 'f32', seed: 11 });
    const moe = new MoE(weights, config);
    let p: Parameters;
    beforeAll(async () => {
      await weights.load();
      p = new Map(
        await Promise.all([...weights.parameters].map(async ([k, v]) => [k, await read(v)] as const)),
      );
    });
    afterAll(() => weights.dispose());
    const seed = Tensor.from(Int32Array.from(seedWords), [2], { device });
    const input = (t: number, same = false) => {
      const random = randomFrom(t);
      const first = Array.from({ length: 12 }, () => Math.fround(normal(random)));
      const rows = Array.from({ length: t }, () =>
        same ? first : first.map(() => Math.fround(normal(random))),
      );
      return { rows, x: Tensor.from(Float32Array.from(rows.flat()), [t, 12], { device }) };
    };

    it.each([
      [1, false, false],
      [1, false, true],
      [2, true, true],
      [41, false, false],
      [41, false, true],
      [41, true, false],
      [41, true, true],
    ])('%i tokens, all alike: %p, training: %p', async (t, same, training) => {
      const { rows, x } = input(t, same);
      let routing: Routing | undefined;
      const visit = (seen: Routing) => (routing = seen);
      const y = await read(moe.forward(x, { ...(training && { seed }), visit }));
      const kept = await read(routing!.experts);
      // Balanced, tokens that are all alike like every expert as well as any other.
      const tied = config.router === 'sinkhorn' && (same || t === 1);
      const want = plain(p, config, rows, training, tied ? kept : undefined);
      expect([...kept]).toEqual(want.kept);
      y.forEach((v, i) => expect(Math.abs(v - want.y[i]!)).toBeLessThan(1e-5));
      const load = await read(routing!.load);
      expect([...load]).toEqual([...load.keys()].map((e) => want.kept.filter((to) => to === e).length));
      for (const tensor of Object.values(routing!) as Tensor[]) tensor.dispose();
    });

    it('has the gradients of its formula in training', async () => {
      const { rows, x } = input(13);
      const random = randomFrom(5);
      const given = Float32Array.from({ length: 13 * 12 }, () => normal(random));
      const { experts, router, routerBias } = moe;
      const all = { x, router, routerBias, up: experts.up, upBias: experts.upBias };
      const used = Object.entries({ ...all, down: experts.down, downBias: experts.downBias }).filter(
        (entry): entry is [string, Tensor] => entry[1] !== undefined,
      );
      let chosen: Float64Array | undefined;
      const dy = Tensor.from(given, [13, 12], { device });
      const { value, gradients } = grad(
        () => moe.forward(x, { seed }),
        used.map(([, tensor]) => tensor),
        { seed: dy },
      );
      // Differences must not change what is chosen: Sinkhorn's choice is kept as it is here.
      if (config.router === 'sinkhorn') chosen = Float64Array.from(plain(p, config, rows, true).kept);
      const loss = () => plain(p, config, rows, true, chosen).y.reduce((sum, v, i) => sum + v * given[i]!, 0);
      /** The parameter's part of the plain layer, and where in it element i is. */
      const place = (name: string, i: number): [Float64Array | number[], number] => {
        if (name === 'x') return [rows[Math.floor(i / 12)]!, i % 12];
        if (name.startsWith('router')) return [p.get(`router.${name === 'router' ? 'weight' : 'bias'}`)!, i];
        const kind = `${name.startsWith('up') ? 'up' : 'down'}_proj.${name.endsWith('Bias') ? 'bias' : 'weight'}`;
        const size = p.get(`experts.0.${kind}`)!.length;
        return [p.get(`experts.${Math.floor(i / size)}.${kind}`)!, i % size];
      };
      for (const [k, [name, tensor]] of used.entries()) {
        const got = await read(gradients[k]!);
        const largest = got.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
        expect([name, largest > 1e-3]).toEqual([name, true]);
        for (let i = 0; i < tensor.size; i += 1 + Math.floor(tensor.size / 20)) {
          const [values, at] = place(name, i);
          const before = values[at]!;
          const [above, below] = [1e-5, -1e-5].map((step) => {
            values[at] = before + step;
            return loss();
          });
          values[at] = before;
          const wanted = (above! - below!) / 2e-5;
          expect([name, i, Math.abs(got[i]! - wanted) < 2e-5 * Math.max(largest, 1)]).toEqual([
            name,
            i,
            true,
          ]);
        }
      }
      for (const tensor of [value, dy, ...gradients]) tensor.dispose();
    });

    it('is captured, and replayed on other tokens', async () => {
      const { rows, x } = input(5);
      const held = input(5, true).x;
      let y: Tensor | undefined;
      const graph = capture(device, () => {
        y = moe.forward(held);
      });
      held.set(Float32Array.from(rows.flat()));
      graph.replay();
      const direct = await read(moe.forward(x));
      (await read(y!)).forEach((v, i) => expect(v).toBe(direct[i]));
      graph.dispose();
    });
  });
});
