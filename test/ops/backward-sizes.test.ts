/** Gradients at the sizes that models have, which their kernels take apart from all others. */
import '../../lib/index';
import { ops, type Op } from '../../lib/op';
import { bits, type Case } from '../../lib/verify/cases';
import { argumentsOf, call, measure } from '../../lib/verify/measure';
import { onEach } from '../devices';

const norms = ['rms_norm_backward', 'add_rms_norm_backward', 'layer_norm_backward'];
const causalConv1dBackward = ops.get('causal_conv1d_backward')!;
const convProjectBackward = ops.get('conv_project_backward')!;
const selectiveScanBackward = ops.get('selective_scan_backward')!;
const crossEntropyGradient = ops.get('cross_entropy_gradient')!;

describe.each(onEach)('on %s', (_, device) => {
  const check = async (op: Op, each: Case) => {
    for (const { result, error, bound } of await measure(op, device, each))
      expect(`${result} ${error <= bound ? 'is near' : `is ${error} off, more than ${bound}`}`).toBe(
        `${result} is near`,
      );
  };
  const repeats = async (op: Op, each: Case) => {
    const [first, second] = [0, 1].map(() => call(op, argumentsOf(op, each, device)));
    for (const result of Object.keys(first!))
      expect((await bits(second![result]!)).equals(await bits(first![result]!))).toBe(true);
  };

  // Rows of one, two and four warps, and of none; hundreds are more than take a row each at once.
  it.each(
    norms.flatMap((name) =>
      [
        [3, 260],
        [7, 768],
        [2, 1024],
        [5, 1536],
        [9, 2560],
        [1, 4096],
        [2, 4100],
        [2200, 64],
        ...(name === 'add_rms_norm_backward' ? [[900, 1028]] : []),
      ].map(([t, d]) => [name, t!, d!] as const),
    ),
  )('%s of %d rows of %d', async (name, t, d) => {
    const op = ops.get(name)!;
    const sizes = { t, d };
    await check(op, { sizes, dtypes: { X: 'f32', T: 'bf16' }, seed: d });
    if (t < 100) {
      await check(op, { sizes, dtypes: { X: 'f32', T: 'f32' }, seed: t });
      await check(op, { sizes, dtypes: { X: 'bf16', T: 'f16' }, without: ['dsum'], seed: t });
    }
    await repeats(op, { sizes, dtypes: { X: 'f32', T: 'bf16' } });
  });

  // Tiles of 256 tokens, 64 to a warp; sequences that end within them.
  it.each([
    [700, 64, 1, 4],
    [700, 72, 5, 4],
    [1025, 130, 3, 4],
    [515, 33, 2, 3],
    [515, 66, 4, 2],
    [300, 66, 3, 1],
    [260, 3, 2, 6],
  ])('causal_conv1d_backward of %d tokens of %d in %d sequences, %d taps', async (t, d, s, w) => {
    const sizes = { t, d, s, w };
    for (const T of ['f32', 'bf16', 'f16'] as const)
      await check(causalConv1dBackward, { sizes, dtypes: { T }, attrs: { silu: T !== 'f16' }, seed: t });
    await check(causalConv1dBackward, { sizes, attrs: { silu: false }, without: ['bias'] });
    await repeats(causalConv1dBackward, { sizes, dtypes: { T: 'bf16' } });
  });

  // Products of so many columns that CUDA makes on the way, in whole blocks of channels, and others.
  it.each([
    [700, 64, 1, 4, 96],
    [1025, 128, 5, 4, 80],
    [259, 192, 2, 4, 128],
    [300, 64, 2, 4, 48],
    [300, 72, 3, 4, 96],
    [300, 64, 2, 3, 96],
  ])(
    'conv_project_backward of %d tokens of %d in %d sequences, %d taps, %d columns',
    async (t, d, s, w, k) => {
      const sizes = { t, d, s, w, k };
      for (const T of ['f32', 'bf16', 'f16'] as const)
        await check(convProjectBackward, { sizes, dtypes: { T, W: T }, attrs: { silu: true }, seed: t });
      await check(convProjectBackward, {
        sizes,
        dtypes: { T: 'bf16', W: 'bf16' },
        attrs: { silu: true },
        without: ['bias'],
      });
      await repeats(convProjectBackward, { sizes, dtypes: { T: 'bf16', W: 'bf16' }, attrs: { silu: true } });
    },
  );

  // Channels and states by fours; a warp's and a block's, and fewer.
  it.each([
    [70, 32, 2],
    [257, 128, 3],
    [33, 196, 1],
  ])('selective_scan_backward of %d tokens of %d in %d sequences', async (t, d, s) => {
    const sizes = { t, d, s, n: 16, g: 1 };
    for (const T of ['f32', 'bf16'] as const) {
      await check(selectiveScanBackward, { sizes, dtypes: { T }, attrs: { deltaSoftplus: true }, seed: t });
      await check(selectiveScanBackward, { sizes, dtypes: { T }, without: ['z'], seed: t });
    }
    await repeats(selectiveScanBackward, { sizes, dtypes: { T: 'bf16' } });
  });

  it.each([
    [5, 4096],
    [2, 50280],
    [2, 70000],
  ])('cross_entropy_gradient of %d rows of %d', async (t, v) => {
    for (const T of v < 5000 ? (['bf16', 'f16', 'f32'] as const) : (['bf16'] as const))
      await check(crossEntropyGradient, { sizes: { t, v }, dtypes: { T }, seed: v });
  });
});
