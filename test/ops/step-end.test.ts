/** The final norm and the head behind a step's layers: on a GPU a recorded graph has all of them in one launch. */
import { capture } from '../../lib/capture';
import { accumulate } from '../../lib/ops/elementwise';
import { expertLayerStep } from '../../lib/ops/experts';
import { matmul } from '../../lib/ops/matmul';
import { addRmsNorm, layerNorm } from '../../lib/ops/norm';
import { mambaLayerStep } from '../../lib/ops/scan';
import type { Tensor } from '../../lib/tensor';
import { bits } from '../../lib/verify/cases';
import { onEach } from '../devices';
import { layersOn, type ExpertArgs, type Half, type MambaArgs } from './layers';

type Each = { readonly mamba: MambaArgs } | { readonly experts: ExpertArgs };
interface End {
  readonly norm: Tensor;
  /** Of a LayerNorm; without it an RMSNorm. */
  readonly normBias?: Tensor | undefined;
  readonly head: Tensor;
  readonly headBias?: Tensor | undefined;
}

describe.each(onEach)('on %s', (_, device) => {
  const { random, ints, mamba, experts, copyOf } = layersOn(device);

  const step = (layers: readonly Each[], first: Tensor, dtype: Half, end: End) => {
    let x: Tensor | undefined;
    let residual = first;
    for (const each of layers) {
      const { y, sum } =
        'mamba' in each
          ? mambaLayerStep({ x, residual, ...each.mamba })
          : expertLayerStep({ x, residual, ...each.experts, dtype });
      [x, residual] = [y, sum];
    }
    const { norm: weight, normBias: bias, head, headBias } = end;
    const multiply = (y: Tensor) => matmul({ x: y, weight: head, bias: headBias, dtype: 'f32' });
    if (!bias) {
      const { y, sum } = addRmsNorm({ x: x!, residual, weight });
      return [sum, y, multiply(y)];
    }
    accumulate({ x: x!, sum: residual });
    const y = layerNorm({ x: residual, weight, bias, dtype });
    return [residual, y, multiply(y)];
  };
  const statesOf = (layers: readonly Each[]) =>
    layers.flatMap((each) => ('mamba' in each ? [each.mamba.convState, each.mamba.scanState] : []));

  it.each([
    ['r', [768], 'bf16', 5028, {}],
    ['rrr', [768], 'f16', 1003, { headBias: true }],
    ['rr', [1024], 'bf16', 5, {}],
    ['rr', [1536], 'bf16', 3000, { centred: true }],
    ['r', [2048], 'f16', 2049, {}],
    ['r', [2560], 'bf16', 1100, { headBias: true }],
    ['r8', [512, 1536], 'bf16', 1500, {}],
    ['88', [768, 2304], 'f16', 777, { centred: true, headBias: true }],
    ['r8r8', [1152, 3072], 'bf16', 2503, { centred: true }],
    ['r8', [1472, 3872], 'bf16', 2000, { centred: true }],
    ['rr', [1152], 'bf16', 100, {}],
    ['rr', [640], 'bf16', 1000, {}],
  ] as const)(
    '%s of %p, %s, %p rows of the head, %p: a replay gives the bits of direct calls',
    async (kinds, [m, h = 0], dtype, rows, options: { centred?: boolean; headBias?: boolean }) => {
      const [slots, offsets] = [ints(2), ints(0, 1)];
      const direct = [...kinds].map((kind, i): Each =>
        kind === 'r'
          ? { mamba: mamba(m, dtype, 20 * i + 1, slots, offsets) }
          : { experts: experts([m, h], dtype, 20 * i) },
      );
      const recorded = direct.map((each) => ('mamba' in each ? { mamba: copyOf(each.mamba) } : each));
      const residual = random([1, m], 90, 1);
      const end: End = {
        norm: random([m], 91, 0.3, 'f32', 1),
        normBias: options.centred ? random([m], 92, 0.5) : undefined,
        head: random([rows, m], 93, 1.7 / Math.sqrt(m), dtype),
        headBias: options.headBias ? random([rows], 94, 0.5) : undefined,
      };
      const graph = capture(device, () => step(recorded, residual, dtype, end));
      for (let turn = 0; turn < 3; turn++) {
        const wanted = await Promise.all(
          [...step(direct, residual, dtype, end), ...statesOf(direct)].map(bits),
        );
        graph.replay();
        const got = await Promise.all([...graph.result, ...statesOf(recorded)].map(bits));
        expect(got.map((each, i) => each.equals(wanted[i]!))).toEqual(got.map(() => true));
      }
      graph.dispose();
    },
  );
});
