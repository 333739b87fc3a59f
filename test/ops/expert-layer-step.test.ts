/** One op for a mixture of experts in a step, and one launch with the layers around it. */
import { capture } from '../../lib/capture';
import { expertLayerStep, expertSum, normRouteUp } from '../../lib/ops/experts';
import { mambaLayerStep } from '../../lib/ops/scan';
import { Tensor } from '../../lib/tensor';
import { bits } from '../../lib/verify/cases';
import { relativeError } from '../../lib/verify/measure';
import { onEach } from '../devices';
import { bounds, layersOn, numbers, type ExpertArgs, type ExpertOptions, type MambaArgs } from './layers';

const outputs = ['sum', 'normed', 'logits', 'experts', 'weights', 'hidden', 'y'] as const;

describe.each(onEach)('on %s', (_, device) => {
  const { random, ints, mamba, experts, copyOf } = layersOn(device);

  const oneByOne = (x: Tensor | undefined, residual: Tensor, args: ExpertArgs) => {
    const { down, downBias, ...into } = args;
    const dtype = args.up.dtype;
    const entered = normRouteUp({ x, residual, ...into, h: down.shape[2]!, dtype });
    const { hidden, experts, weights } = entered;
    return { ...entered, y: expertSum({ hidden, weight: down, bias: downBias, experts, weights }) };
  };
  const holds = async (x: Tensor | undefined, residual: Tensor, args: ExpertArgs) => {
    const dtype = args.up.dtype as keyof typeof bounds;
    const got = expertLayerStep({ x, residual, ...args, dtype });
    const wanted = oneByOne(x, residual, args);
    for (const name of outputs) {
      const error = relativeError(await numbers(got[name]), await numbers(wanted[name]));
      const bound = device.id === 'cpu' || name === 'experts' ? 0 : bounds[dtype];
      if (!(error <= bound)) throw new Error(`${name}: ${error}, at most ${bound}`);
    }
  };

  const blackmamba: ExpertOptions = { e: 2, kind: 1, sigmoid: true, bias: true };
  it.each([
    [[512, 1536], 'bf16', 1, { e: 42, gated: false }],
    [[512, 1536], 'f16', 2, { e: 8, kind: 2, normalize: true }],
    [[512, 1536], 'bf16', 2, { e: 64, gated: false, kind: 1, bias: true, sigmoid: true }],
    [[512, 1536], 'bf16', 1, { e: 1 }],
    [[768, 2304], 'bf16', 1, { e: 5, gated: false, bias: true }],
    [[1152, 3072], 'bf16', 1, blackmamba],
    [[1152, 3072], 'f16', 2, { ...blackmamba, bias: false }],
    [[1472, 3872], 'bf16', 1, blackmamba],
    // What goes through the ops.
    [[512, 1536], 'bf16', 1, { e: 8, k: 2 }],
    [[512, 1024], 'bf16', 2, { e: 65 }],
    [[200, 72], 'f16', 1, { e: 3, bias: true }],
  ] as const)('gives what the ops give, %p, %s, seed %p, %p', async (sizes, dtype, seed, options) => {
    const residual = random([1, sizes[0]], 90, 1);
    const x = seed === 1 ? random([1, sizes[0]], 91, 1, dtype) : undefined;
    await holds(x, residual, experts(sizes, dtype, seed, options));
  });

  it.each([
    ['the first of equal ones', [0.5, 1, 1, 0], 1],
    ['one after those that are no numbers', [NaN, NaN, -1, NaN], 2],
    ['the first where none is a number', [NaN, NaN, NaN, NaN], 0],
  ])('chooses %s', async (_, bias, wanted) => {
    const args = experts([512, 1536], 'bf16', 1, { e: 4, sigmoid: true });
    const routerBias = Tensor.from(Float32Array.from(bias), [4], { device });
    const router = Tensor.from(new Float32Array(4 * 512), [4, 512], { device });
    const residual = random([1, 512], 90, 1);
    const { experts: chosen } = expertLayerStep({ residual, ...args, router, routerBias, dtype: 'bf16' });
    expect([...(await chosen.data())]).toEqual([wanted]);
  });

  type Each = { readonly mamba: MambaArgs } | { readonly experts: ExpertArgs };
  /** All outputs and states, of the layers one after the other. */
  const run = (layers: readonly Each[], first: Tensor) => {
    let x: Tensor | undefined;
    let residual = first;
    const made: Tensor[] = [];
    for (const each of layers) {
      const dtype = 'bf16';
      const result =
        'mamba' in each
          ? mambaLayerStep({ x, residual, ...each.mamba })
          : expertLayerStep({ x, residual, ...each.experts, dtype });
      made.push(...Object.values(result));
      x = result.y;
      residual = result.sum;
    }
    return made;
  };
  const statesOf = (layers: readonly Each[]) =>
    layers.flatMap((each) => ('mamba' in each ? [each.mamba.convState, each.mamba.scanState] : []));

  it.each([
    ['r8r8r8r', [512, 1536], { gated: false }],
    ['8r88rr', [512, 1536], { bias: true, sigmoid: true, kind: 1 }],
    ['r8r8', [1152, 3072], blackmamba],
    ['rr8r', [1472, 3872], blackmamba],
    ['r8r8', [640, 1280], { e: 2 }],
    ['r8r8', [512, 1536], { e: 4, k: 2 }],
  ] as const)('%s of %p, %p: a replay gives the bits of direct calls', async (kinds, sizes, options) => {
    const [slots, offsets] = [ints(2), ints(0, 1)];
    const direct = [...kinds].map((kind, i): Each =>
      kind === 'r'
        ? { mamba: mamba(sizes[0], 'bf16', 20 * i + 1, slots, offsets) }
        : { experts: experts(sizes, 'bf16', 20 * i, options) },
    );
    const recorded = direct.map((each) => ('mamba' in each ? { mamba: copyOf(each.mamba) } : each));
    const residual = random([1, sizes[0]], 90, 1);
    const graph = capture(device, () => run(recorded, residual));
    for (let step = 0; step < 3; step++) {
      const wanted = await Promise.all([...run(direct, residual), ...statesOf(direct)].map(bits));
      graph.replay();
      const got = await Promise.all([...graph.result, ...statesOf(recorded)].map(bits));
      expect(got.map((each, i) => each.equals(wanted[i]!))).toEqual(got.map(() => true));
    }
    graph.dispose();
  });

  it('gives the bits of direct calls whether a choice was guessed rightly or wrongly', async () => {
    const [slots, offsets] = [ints(2), ints(0, 1)];
    const options = { e: 8, bias: true, sigmoid: true, kind: 1 };
    const pairs = Array.from({ length: 8 }, (_, i) => ({
      mamba: mamba(512, 'bf16', 40 * i + 1, slots, offsets),
      experts: experts([512, 1536], 'bf16', 40 * i + 20, options),
    }));
    const layersOf = (all: typeof pairs): Each[] =>
      all.flatMap((pair) => [{ mamba: pair.mamba }, { experts: pair.experts }]);
    const recorded = pairs.map((pair) => ({ ...pair, mamba: copyOf(pair.mamba) }));
    const residual = random([1, 512], 90, 1);
    const graph = capture(device, () => run(layersOf(recorded), residual));
    const direct = run(layersOf(pairs), residual);
    graph.replay();
    const bitsOf = (made: Tensor[], all: typeof pairs) =>
      Promise.all([...made, ...statesOf(layersOf(all))].map(bits));
    const [got, wanted] = [await bitsOf(graph.result, recorded), await bitsOf(direct, pairs)];
    expect(got.map((each, i) => each.equals(wanted[i]!))).toEqual(got.map(() => true));

    // A guess is what the router would choose for the residual that the Mamba layer before it begins with.
    const guessed: boolean[] = [];
    for (const [i, pair] of pairs.entries()) {
      const [, sum] = direct.slice(i * 14);
      const chosen = direct[i * 14 + 7 + 4]!;
      const guess = expertLayerStep({ residual: sum!, ...pair.experts, dtype: 'bf16' }).experts;
      guessed.push((await bits(guess)).equals(await bits(chosen)));
    }
    expect(guessed).toContain(true);
    expect(guessed).toContain(false);
    graph.dispose();
  });

  it('refuses sizes that do not belong together', () => {
    const args = experts([512, 1536], 'bf16', 1);
    const residual = random([1, 512], 90, 1);
    const wrong = (change: Partial<ExpertArgs>) => () =>
      expertLayerStep({ residual, ...args, ...change, dtype: 'bf16' });
    expect(wrong({ down: random([3, 512, 1024], 1, 1, 'bf16') })).toThrow('up has 3072 rows, expected 1024');
    expect(wrong({ k: 4 })).toThrow(/k is 4/);
    expect(wrong({ kind: 7 })).toThrow('kind is 7, expected 0, 1 or 2');
    expect(wrong({ up: random([3, 100, 512], 1, 1, 'bf16') })).toThrow('up has 100 rows');
  });
});
