/** One op for a layer's step, and one launch for several: what the ops that it stands for give. */
import { capture } from '../../lib/capture';
import { matmul } from '../../lib/ops/matmul';
import { normMatmul } from '../../lib/ops/norm';
import { mambaLayerStep, mambaStep } from '../../lib/ops/scan';
import { Tensor } from '../../lib/tensor';
import { bits } from '../../lib/verify/cases';
import { relativeError } from '../../lib/verify/measure';
import { onEach } from '../devices';
import { bounds, layersOn, numbers, type Half, type MambaArgs } from './layers';

const outputs = ['sum', 'normed', 'xz', 'u', 'dbc', 'gated', 'y'] as const;
describe.each(onEach)('on %s', (_, device) => {
  const { random, ints, mamba: layer, copyOf } = layersOn(device);

  const oneByOne = (x: Tensor | undefined, residual: Tensor, args: MambaArgs) => {
    const { normWeight, inProj, outProj, ...mixer } = args;
    const dtype = args.convState.dtype;
    const { y: xz, sum, normed } = normMatmul({ x, residual, normWeight, weight: inProj, dtype });
    const { y: gated, u, dbc } = mambaStep({ xz, ...mixer });
    return { sum, normed, xz, u, dbc, gated, y: matmul({ x: gated, weight: outProj }) };
  };

  const compare = async (x: Tensor | undefined, residual: Tensor, args: MambaArgs) => {
    const other = copyOf(args);
    const bound = bounds[args.convState.dtype as Half];
    const got = mambaLayerStep({ x, residual, ...args });
    const wanted = oneByOne(x, residual, other);
    const errors = await Promise.all(
      outputs.map(async (name) => relativeError(await numbers(got[name]), await numbers(wanted[name]))),
    );
    for (const [i, name] of outputs.entries())
      if (!(errors[i]! <= (device.id === 'cpu' ? 0 : bound))) throw new Error(`${name}: ${errors[i]}`);
    for (const name of ['convState', 'scanState'] as const)
      expect(relativeError(await numbers(args[name]), await numbers(other[name]))).toBeLessThanOrEqual(bound);
  };

  it.each([
    [768, 'bf16', 1, 1],
    [768, 'f16', 2, 1],
    [768, 'bf16', 2, -1],
    [1024, 'bf16', 1, 2],
    [1536, 'f16', 1, 0],
    [2048, 'bf16', 2, 1],
    [2560, 'bf16', 1, 1],
    [1152, 'bf16', 1, 1],
    [1152, 'f16', 2, -1],
    [1472, 'bf16', 1, 1],
    [640, 'bf16', 1, 1],
  ] as const)('gives what the ops give, m %p, %s, seed %p, slot %p', async (m, dtype, seed, slot) => {
    const residual = random([1, m], 90, 1);
    const x = seed === 1 ? random([1, m], 91, 1, dtype) : undefined;
    await compare(x, residual, layer(m, dtype, seed, ints(slot)));
  });

  /** Sequences whose states lie in the opposite order; the third has none. */
  const several = (b: number) =>
    [
      ints(...Array.from({ length: b }, (_, i) => (i === 2 ? -1 : b - i))),
      ints(...Array.from({ length: b + 1 }, (_, i) => i)),
    ] as const;

  const compareSeveral = async (m: number, dtype: Half, states: 'f32' | Half, b: number) => {
    const seed = b % 2 ? 1 : 2;
    const x = seed === 1 ? random([b, m], 91, 1, dtype) : undefined;
    const args = layer(m, dtype, seed, ...several(b), { pool: b + 2, states });
    await compare(x, random([b, m], 90, 1), args);
  };

  // Up to 168 sequences of 768 columns are one kernel on CUDA.
  it.each([
    [768, 'bf16', 'f32', 2],
    [768, 'bf16', 'bf16', 3],
    [768, 'f16', 'f32', 5],
    [768, 'bf16', 'bf16', 37],
    [768, 'f16', 'f16', 64],
    [768, 'bf16', 'f32', 100],
    [768, 'bf16', 'bf16', 168],
    [768, 'bf16', 'bf16', 169],
    [768, 'f16', 'bf16', 4],
    [1024, 'bf16', 'f32', 3],
  ] as const)('gives what the ops give, m %p, %s, states in %s, %p sequences', (m, dtype, states, b) =>
    compareSeveral(m, dtype, states, b),
  );

  // Where on CUDA a layer is one kernel (up to 32 sequences of 2048 and 2560 columns), or its out_proj is one, whose
  // blocks have 16 to 48 rows. On the CPU a few sequences go the same way.
  it.each([
    [2048, 'bf16', 'bf16', 2],
    [2048, 'f16', 'f16', 31],
    [2560, 'bf16', 'f32', 9],
    [768, 'bf16', 'bf16', 250],
    [1024, 'f16', 'bf16', 17],
    [1024, 'bf16', 'bf16', 100],
    [1536, 'bf16', 'f32', 41],
    [1536, 'f16', 'f16', 66],
    [2048, 'bf16', 'bf16', 64],
    [2048, 'bf16', 'f32', 17],
    [2048, 'bf16', 'f32', 131],
    [2560, 'f16', 'bf16', 33],
    [2560, 'bf16', 'bf16', 64],
  ] as const)(
    'gives what the ops give, many sequences, m %p, %s, states in %s, %p on a GPU',
    (m, dtype, states, b) => compareSeveral(m, dtype, states, device.id === 'cpu' ? 3 + (b % 2) : b),
  );

  it.each([
    [768, 200],
    [1024, 17],
    [2048, 40],
  ])('gives the same bits each time, m %p, %p sequences', async (m, b) => {
    const args = layer(m, 'bf16', 1, ...several(b), { pool: b + 2, states: 'bf16' });
    const residual = random([b, m], 90, 1);
    const once = () => bits(mambaLayerStep({ residual, ...copyOf(args) }).y);
    const first = await once();
    for (let i = 0; i < 10; i++) expect((await once()).equals(first)).toBe(true);
  });

  describe.each([
    [768, 'bf16', 'f32', 1],
    [768, 'f16', 'f32', 1],
    [768, 'bf16', 'bf16', 2],
    [768, 'bf16', 'f32', 9],
    [768, 'bf16', 'bf16', 100],
    [2048, 'bf16', 'bf16', device.id === 'cpu' ? 3 : 23],
  ] as const)('several layers, m %p, %s, states in %s, %p sequences', (m, dtype, states, b) => {
    const [slots, offsets] = b === 1 ? [ints(1), ints(0, 1)] : several(b);
    const layers = [1, 20, 40].map((seed) => layer(m, dtype, seed, slots, offsets, { pool: b + 2, states }));
    const residual = random([b, m], 90, 1);

    /** All outputs and states, of the layers one after the other. */
    const run = (args: readonly MambaArgs[], early: boolean) => {
      let x: Tensor | undefined;
      let sum = residual;
      const kept: Tensor[] = [];
      for (const each of args) {
        const { y, ...rest } = mambaLayerStep({ x, residual: sum, ...each });
        if (early) {
          x?.dispose();
          for (const tensor of [rest.normed, rest.xz, rest.u, rest.dbc, rest.gated]) tensor.dispose();
        } else kept.push(y, ...Object.values(rest));
        x = y;
        sum = rest.sum;
      }
      return early ? [x!, sum] : kept;
    };
    const bitsOf = async (tensors: readonly Tensor[], args: readonly MambaArgs[]) => {
      const all = [...tensors, ...args.flatMap(({ convState, scanState }) => [convState, scanState])];
      return Promise.all(all.map(bits));
    };

    it.each([
      ['kept', false],
      ['disposed on the way', true],
    ])('replay to the bits of direct calls, with what they give %s', async (_, early) => {
      const [direct, recorded] = [layers.map(copyOf), layers.map(copyOf)];
      let made: Tensor[] = [];
      const graph = capture(device, () => {
        made = run(recorded, early);
      });
      for (let step = 0; step < 3; step++) {
        const wanted = await bitsOf(run(direct, early), direct);
        graph.replay();
        const got = await bitsOf(made, recorded);
        expect(got.map((each, i) => each.equals(wanted[i]!))).toEqual(got.map(() => true));
      }
      graph.dispose();
    });
  });

  // A race shows in some of many runs, where tiles of sequences are partly filled.
  it.each([
    [768, 'bf16', 'f32', 19],
    [768, 'bf16', 'bf16', device.id === 'cpu' ? 3 : 100],
    [768, 'f16', 'f16', device.id === 'cpu' ? 5 : 131],
    [2048, 'bf16', 'bf16', device.id === 'cpu' ? 3 : 17],
  ] as const)(
    'gives the same bits ten times, m %p, %s, states in %s, %p sequences',
    async (m, dtype, states, b) => {
      const [slots, offsets] = several(b);
      const layers = [1, 20, 40].map((seed) =>
        layer(m, dtype, seed, slots, offsets, { pool: b + 2, states }),
      );
      const own = layers.map(copyOf);
      const residual = random([b, m], 90, 1);
      const made: Tensor[] = [];
      const graph = capture(device, () => {
        let x: Tensor | undefined;
        let sum = residual;
        for (const args of own) {
          const { y, ...rest } = mambaLayerStep({ x, residual: sum, ...args });
          made.push(y, ...Object.values(rest));
          [x, sum] = [y, rest.sum];
        }
      });
      const stateOf = (args: MambaArgs) => [args.convState, args.scanState];
      const start = await Promise.all(layers.flatMap(stateOf).map(bits));
      const results = [...made, ...own.flatMap(stateOf)];
      const first: Buffer[] = [];
      for (let run = 0; run < 10; run++) {
        await Promise.all(own.flatMap(stateOf).map((state, i) => state.write(start[i]!)));
        graph.replay();
        const got = await Promise.all(results.map(bits));
        if (run === 0) first.push(...got);
        expect(got.map((each, i) => each.equals(first[i]!))).toEqual(got.map(() => true));
      }
      graph.dispose();
    },
  );

  it.each([
    ['offsets', [0, 2], 'offsets[1] is 2, expected 1'],
    ['slots', [3], 'slots[0] is 3, expected less than 3'],
  ] as const)('refuses %s %p when it is read, and works on', async (name, wrong, message) => {
    const args = layer(768, 'bf16', 1);
    const residual = random([1, 768], 90, 1);
    const { y } = mambaLayerStep({ residual, ...args, [name]: ints(...wrong) });
    await expect(y.data()).rejects.toThrow(message);
    await expect(mambaLayerStep({ residual, ...args }).y.data()).resolves.toBeDefined();
  });

  it('refuses sizes that do not belong together', () => {
    const args = layer(768, 'bf16', 1);
    const residual = random([1, 768], 90, 1);
    const inProj = Tensor.empty([1536, 768], 'bf16', device);
    expect(() => mambaLayerStep({ residual, ...args, inProj })).toThrow(
      'inProj has 1536 rows, expected 2 d = 3072',
    );
  });
});
