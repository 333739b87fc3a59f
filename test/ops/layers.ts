/** Layers of a decode step with random weights, for the tests of the ops that do whole layers. */
import type { Device } from '../../lib/device';
import { cast } from '../../lib/ops/elementwise';
import type { expertLayerStep } from '../../lib/ops/experts';
import type { mambaLayerStep } from '../../lib/ops/scan';
import { Tensor, type DType } from '../../lib/tensor';
import { decode, randomFrom } from '../../lib/verify/cases';

export type Half = 'bf16' | 'f16';
export type MambaArgs = Omit<Parameters<typeof mambaLayerStep>[0], 'x' | 'residual'>;
export type ExpertArgs = Omit<Parameters<typeof expertLayerStep>[0], 'x' | 'residual'>;

/** Sums in another order: some results round the other way, and what is made of them moves along. */
export const bounds = { bf16: 2 ** -6, f16: 2 ** -9 } as const;

export const numbers = async (x: Tensor) => decode(await x.data(), x.dtype);

const sizeOf = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);

export function layersOn(device: Device) {
  const as = (x: Tensor, dtype: DType) =>
    cast({ x: x.reshape([x.shape[0]!, sizeOf(x.shape.slice(1))]), dtype }).reshape(x.shape);

  /** Evenly from -scale to scale, about `middle`. */
  const random = (
    shape: readonly number[],
    seed: number,
    scale: number,
    dtype: DType = 'f32',
    middle = 0,
  ) => {
    const values = new Float32Array(sizeOf(shape));
    const some = Math.min(values.length, 65537); // no row is as long, nor a multiple of it
    const next = randomFrom(seed);
    for (let i = 0; i < some; i++) values[i] = middle + scale * (2 * next() - 1);
    for (let i = some; i < values.length; i *= 2) values.copyWithin(i, 0, Math.min(i, values.length - i));
    const x = Tensor.from(values, shape, { device });
    return dtype === 'f32' ? x : as(x, dtype);
  };
  const ints = (...values: number[]) => Tensor.from(Int32Array.from(values), [values.length], { device });

  const mamba = (
    m: number,
    dtype: Half,
    seed: number,
    slots = ints(1),
    offsets = ints(0, 1),
    { pool = 3, states = 'f32' }: { readonly pool?: number; readonly states?: DType } = {},
  ): MambaArgs => {
    const [d, r] = [2 * m, Math.ceil(m / 256) * 16];
    return {
      normWeight: random([m], seed, 0.3, 'f32', 1),
      inProj: random([2 * d, m], seed + 1, 1.7 / Math.sqrt(m), dtype),
      convWeight: random([d, 4], seed + 2, 0.8),
      convBias: seed % 2 ? random([d], seed + 3, 0.3) : undefined,
      convState: random([pool, d, 3], seed + 4, 1, dtype),
      xProj: random([r + 32, d], seed + 5, 3 / Math.sqrt(d), dtype),
      dtWeight: random([d, r], seed + 6, 1 / Math.sqrt(r), dtype),
      dtBias: random([d], seed + 7, 2, 'f32', -3),
      A: random([d, 16], seed + 8, 7, 'f32', -8),
      D: random([d], seed + 9, 0.5, 'f32', 1),
      scanState: random([pool, d, 16], seed + 10, 1, states),
      outProj: random([m, d], seed + 11, 1.7 / Math.sqrt(d), dtype),
      offsets,
      slots,
    };
  };

  const experts = (
    [m, h]: readonly [number, number],
    dtype: Half,
    seed: number,
    { e = 3, gated = true, bias = false, ...attrs }: ExpertOptions = {},
  ): ExpertArgs => {
    const n = gated ? 2 * h : h;
    return {
      normWeight: random([m], seed, 0.3, 'f32', 1),
      router: random([e, m], seed + 1, 1.7 / Math.sqrt(m)),
      routerBias: bias ? random([e], seed + 2, 0.1) : undefined,
      up: random([e, n, m], seed + 3, 1.7 / Math.sqrt(m), dtype),
      upBias: bias ? random([e, n], seed + 4, 0.3) : undefined,
      down: random([e, m, h], seed + 5, 1.7 / Math.sqrt(h), dtype),
      downBias: bias ? random([e, m], seed + 6, 0.3) : undefined,
      ...attrs,
    };
  };

  /** With states of its own. */
  const copyOf = <A extends MambaArgs>(args: A): A => ({
    ...args,
    convState: as(args.convState, args.convState.dtype),
    scanState: as(args.scanState, args.scanState.dtype),
  });

  return { random, ints, mamba, experts, copyOf };
}

export type ExpertOptions = {
  readonly e?: number;
  readonly gated?: boolean;
  readonly bias?: boolean;
} & Pick<ExpertArgs, 'k' | 'kind' | 'sigmoid' | 'normalize'>;
