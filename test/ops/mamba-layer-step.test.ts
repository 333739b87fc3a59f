/** One op for a layer's step, and one launch for several: what the ops that it stands for give. */
import { capture } from '../../lib/capture';
import { cast } from '../../lib/ops/elementwise';
import { matmul } from '../../lib/ops/matmul';
import { normMatmul } from '../../lib/ops/norm';
import { mambaLayerStep, mambaStep } from '../../lib/ops/scan';
import { Tensor, type DType } from '../../lib/tensor';
import { bits, decode, randomFrom } from '../../lib/verify/cases';
import { relativeError } from '../../lib/verify/measure';
import { onEach } from '../devices';

type Half = 'bf16' | 'f16';
type Layer = Omit<Parameters<typeof mambaLayerStep>[0], 'x' | 'residual'>;

const outputs = ['sum', 'normed', 'xz', 'u', 'dbc', 'gated', 'y'] as const;
/** Sums in another order: some results round the other way, and what is made of them moves along. */
const bounds = { bf16: 2 ** -6, f16: 2 ** -9 } as const;

describe.each(onEach)('on %s', (_, device) => {
  /** Evenly from -scale to scale, about `middle`. */
  const random = (
    shape: readonly number[],
    seed: number,
    scale: number,
    dtype: DType = 'f32',
    middle = 0,
  ) => {
    const numbers = new Float32Array(shape.reduce((a, b) => a * b, 1));
    const some = Math.min(numbers.length, 65537); // no row is as long, nor a multiple of it
    const next = randomFrom(seed);
    for (let i = 0; i < some; i++) numbers[i] = middle + scale * (2 * next() - 1);
    for (let i = some; i < numbers.length; i *= 2) numbers.copyWithin(i, 0, Math.min(i, numbers.length - i));
    const x = Tensor.from(numbers, shape, { device });
    return dtype === 'f32' ? x : as(x, dtype);
  };
  const as = (x: Tensor, dtype: DType) =>
    cast({ x: x.reshape([x.shape[0]!, x.shape.slice(1).reduce((a, b) => a * b, 1)]), dtype }).reshape(
      x.shape,
    );
  const ints = (...values: number[]) => Tensor.from(Int32Array.from(values), [values.length], { device });

  const layer = (m: number, dtype: Half, seed: number, slots = ints(1)): Layer => {
    const [d, r] = [2 * m, m / 16];
    return {
      normWeight: random([m], seed, 0.3, 'f32', 1),
      inProj: random([2 * d, m], seed + 1, 1.7 / Math.sqrt(m), dtype),
      convWeight: random([d, 4], seed + 2, 0.8),
      convBias: seed % 2 ? random([d], seed + 3, 0.3) : undefined,
      convState: random([3, d, 3], seed + 4, 1, dtype),
      xProj: random([r + 32, d], seed + 5, 3 / Math.sqrt(d), dtype),
      dtWeight: random([d, r], seed + 6, 1 / Math.sqrt(r), dtype),
      dtBias: random([d], seed + 7, 2, 'f32', -3),
      A: random([d, 16], seed + 8, 7, 'f32', -8),
      D: random([d], seed + 9, 0.5, 'f32', 1),
      scanState: random([3, d, 16], seed + 10, 1),
      outProj: random([m, d], seed + 11, 1.7 / Math.sqrt(d), dtype),
      offsets: ints(0, 1),
      slots,
    };
  };
  const copyOf = (args: Layer): Layer => ({
    ...args,
    convState: as(args.convState, args.convState.dtype),
    scanState: as(args.scanState, 'f32'),
  });

  const oneByOne = (x: Tensor | undefined, residual: Tensor, args: Layer) => {
    const { normWeight, inProj, outProj, ...mixer } = args;
    const dtype = args.convState.dtype;
    const { y: xz, sum, normed } = normMatmul({ x, residual, normWeight, weight: inProj, dtype });
    const { y: gated, u, dbc } = mambaStep({ xz, ...mixer });
    return { sum, normed, xz, u, dbc, gated, y: matmul({ x: gated, weight: outProj }) };
  };
  const numbers = async (x: Tensor) => decode(await x.data(), x.dtype);

  it.each([
    [768, 'bf16', 1, 1],
    [768, 'f16', 2, 1],
    [768, 'bf16', 2, -1],
    [1024, 'bf16', 1, 2],
    [1536, 'f16', 1, 0],
    [2048, 'bf16', 2, 1],
    [2560, 'bf16', 1, 1],
    [512, 'bf16', 1, 1],
  ] as const)('gives what the ops give, m %p, %s, seed %p, slot %p', async (m, dtype, seed, slot) => {
    const args = layer(m, dtype, seed, ints(slot));
    const other = copyOf(args);
    const residual = random([1, m], 90, 1);
    const x = seed === 1 ? random([1, m], 91, 1, dtype) : undefined;
    const got = mambaLayerStep({ x, residual, ...args });
    const wanted = oneByOne(x, residual, other);
    const errors = await Promise.all(
      outputs.map(async (name) => relativeError(await numbers(got[name]), await numbers(wanted[name]))),
    );
    for (const [i, name] of outputs.entries())
      if (!(errors[i]! <= (device.id === 'cpu' ? 0 : bounds[dtype])))
        throw new Error(`${name}: ${errors[i]}`);
    for (const name of ['convState', 'scanState'] as const)
      expect(relativeError(await numbers(args[name]), await numbers(other[name]))).toBeLessThanOrEqual(
        bounds[dtype],
      );
  });

  describe.each(['bf16', 'f16'] as const)('several layers, %s', (dtype) => {
    const m = 768;
    const layers = [1, 20, 40].map((seed) => layer(m, dtype, seed));
    const residual = random([1, m], 90, 1);

    /** All outputs and states, of the layers one after the other. */
    const run = (args: readonly Layer[], early: boolean) => {
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
    const bitsOf = async (tensors: readonly Tensor[], args: readonly Layer[]) => {
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
