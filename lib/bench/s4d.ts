import type { Device } from '../device';
import { seeded } from '../nn/init';
import { chooseExecution } from '../nn/s4d-cost';
import { fftConv, s4dDiscretize, s4dKernel, s4dScan } from '../ops/s4d';
import { dtypeBytes, Tensor, type DType } from '../tensor';
import type { Result } from './result';
import { evenOffsets, randomRows, timeRotating } from './rotation';

/** Sizes of one S4D layer; sequences start from nothing and leave nothing. `state` is N, N/2 complex numbers. */
export interface S4DShape {
  readonly batch: number;
  readonly dim: number;
  readonly length: number;
  readonly state: number;
}

const lengths = [64, 256, 1024, 4096, 16384, 65536];
const each = (batch: number, dim: number, state: number) =>
  lengths.map((length) => ({ batch, dim, length, state }));

/** Each length of a layer of the paper's size, alone and in a batch, and of one with many states. */
export const s4dShapes: readonly S4DShape[] = [
  ...each(1, 512, 64),
  ...each(8, 512, 64),
  ...each(1, 512, 512),
];

/** S4D-Lin, zero-order hold, Δ log-uniform in [0.001, 0.1]. */
function systemOf(device: Device, dim: number, pairs: number) {
  const random = seeded(1);
  const make = (shape: readonly number[], value: (i: number) => number) =>
    Tensor.from(
      Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => value(i)),
      shape,
      { device },
    );
  return s4dDiscretize({
    logDt: make([dim], () => Math.log(1e-3) + Math.log(100) * random()),
    logAReal: make([dim, pairs], () => Math.log(0.5)),
    aImag: make([dim, pairs], (i) => Math.PI * (i % pairs)),
    C: make([dim, pairs, 2], () => 2 * random() - 1),
  });
}

/** Times both executions of one layer: the convolution with its kernel, which is also timed alone. */
export async function benchS4D(
  device: Device,
  shape: S4DShape,
  dtype: DType,
  runs: number,
): Promise<Result[]> {
  const { batch, dim, length, state } = shape;
  const pairs = state / 2;
  const bytes = 2 * dtypeBytes[dtype] * batch * length * dim;
  const make = () => ({
    u: randomRows(device, [batch * length, dim], dtype, [-1, 1], 0),
    ...systemOf(device, dim, pairs),
    offsets: evenOffsets(device, batch, length),
  });
  type Operands = ReturnType<typeof make>;
  const time = (run: (operands: Operands) => unknown) => timeRotating(device, bytes, { make, run }, runs);
  const recurrent = await time((operands) => s4dScan(operands));
  const kernel = await time(({ E, W }) => s4dKernel({ E, W, l: length }));
  const convolutional = await time(({ u, offsets, E, W }) => {
    const kernel = s4dKernel({ E, W, l: length });
    return [fftConv({ u, kernel, offsets }), kernel];
  });
  const sizes = { sequences: batch, tokens: batch * length, longest: length, d: dim, n: pairs };
  const chosen = chooseExecution('auto', device, sizes);
  const name = `${batch}×${dim}×${length}, N ${state}`;
  const common = { dtype, shape: { ...shape } };
  return [
    {
      ...common,
      bench: 's4d_recurrent',
      name: `${name}, recurrent`,
      ms: recurrent,
      figures: {
        tokensPerSecond: (1e3 * batch * length) / recurrent.median,
        chosen: Number(chosen === 'recurrent'),
      },
    },
    {
      ...common,
      bench: 's4d_convolutional',
      name: `${name}, convolutional`,
      ms: convolutional,
      figures: {
        tokensPerSecond: (1e3 * batch * length) / convolutional.median,
        kernelMs: kernel.median,
        toRecurrent: convolutional.median / recurrent.median,
        chosen: Number(chosen === 'convolutional'),
      },
    },
  ];
}
