/** How far an answer is from the right one, and how far it may be. */
import type { Op } from '../op';
import type { DType } from '../tensor';
import { roundTo } from './cases';
import type { Round } from './values';

/**
 * Largest difference to f64 that arithmetic in f32 may make, as a share of the largest magnitude, where that is
 * not `usual`. At most twice what the same maths loses that is done plainly in f32, one operation after the
 * other: the most of all cases of `verify` with 16 seeds. Less where the kernels lose less.
 */
const tolerances: Readonly<Record<string, number>> = {
  matmul: 2e-6, // sums of up to 1,025 products, as most of these
  matmul_add: 2e-6,
  norm_matmul: 2e-6,
  matmul_weight_gradient: 2.8e-6,
  expert_matmul: 2e-6,
  expert_up: 2e-6,
  expert_weight_gradient: 1.3e-6,
  causal_conv1d: 2.8e-6,
  causal_conv1d_backward: 2.8e-6,
  conv_project_backward: 4e-6,
  conv_matmul: 3.5e-6,
  fft_conv_backward: 2.6e-6,
  rms_norm_backward: 2.2e-6,
  add_rms_norm_backward: 2.2e-6,
  layer_norm_backward: 4.8e-6, // of three columns: what is left of them without two directions
  selective_scan: 2e-6, // the bound that the fixtures are held to as well
  selective_scan_backward: 6.8e-6, // dA by h - dt B u, which is rounding where a sequence has one token
  s4d_scan: 3.8e-6,
  s4d_scan_backward: 7e-6, // dE of one channel: what few sequences of two tokens give
  s4d_kernel: 1.3e-6,
  s4d_kernel_backward: 2e-6,
  router_statistics_backward: 6.4e-6,
  norm_route: 7e-6, // softmax of logits up to 16, which have errors of their own
  norm_route_up: 7e-6,
  expert_layer_step: 9e-6, // the same, and one more
  mamba_step: 8.4e-6, // of a convolution, two products and a scan, one after the other
  mamba_layer_step: 1.2e-5, // the same with two more
};
const usual = 1e-6;

/** What is made of a value that was rounded to a dtype on the way, and the letter of that dtype. */
const roundedOnTheWay: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  norm_matmul: { y: 'T' },
};

/** What is rounded to its dtype at random, to either neighbour, where that is not f32. */
const drawn: Readonly<Record<string, string>> = {
  selective_scan: 'state',
  mamba_step: 'scanState',
  mamba_layer_step: 'scanState',
};

/** The distance of two neighbours, as a share of the larger: at most. */
const unit: Readonly<Partial<Record<DType, number>>> = { bf16: 2 ** -7, f16: 2 ** -10 };

const largest = (x: ArrayLike<number>) => {
  let most = 0;
  for (let i = 0; i < x.length; i++) most = Math.max(most, Math.abs(x[i]!));
  return most;
};

/** The largest difference, relative to the largest magnitude in `wanted`. What is not a number is infinitely far. */
export function relativeError(got: ArrayLike<number>, wanted: ArrayLike<number>): number {
  if (got.length !== wanted.length) throw new Error(`${got.length} values, expected ${wanted.length}`);
  let difference = 0;
  for (let i = 0; i < wanted.length; i++) {
    if (got[i] === wanted[i]) continue; // infinities, too
    const each = Math.abs(got[i]! - wanted[i]!);
    difference = Number.isNaN(each) ? Infinity : Math.max(difference, each);
  }
  return difference / (largest(wanted) || 1);
}

/** So few values may all lie near numbers of a dtype; what rounding loses is then luck. */
const fewValues = 256;

/**
 * Rounding to a dtype. Of few values the same with other numbers of as many digits beside it, so that the most
 * that any of them loses is what rounding loses, not what it happens to lose.
 */
export function roundingsTo(dtype: DType, count: number): readonly Round[] {
  const once: Round = (data) => roundTo(data, dtype);
  if (count >= fewValues) return [once];
  const scaled = [1.19, 1.41, 1.68].map(
    (by): Round =>
      (data) =>
        roundTo(
          data.map((v) => v * by),
          dtype,
        ).map((v) => v / by),
  );
  return [once, ...scaled];
}

const lostTo = (dtype: DType, values: Float64Array): number =>
  dtype === 'f32'
    ? 0
    : Math.max(...roundingsTo(dtype, values.length).map((round) => relativeError(round(values), values)));

/**
 * What an answer in `dtype` may be off. In half precision twice what the same maths loses that is done plainly
 * in it: from the same rounded inputs, in f32, rounded once at the end, and once `within` where one value is
 * made of another.
 */
export function boundOf(op: Op, wanted: Float64Array, dtype: DType, within: DType = 'f32'): number {
  if (dtype === 'i32') return 0;
  return (tolerances[op.opName] ?? usual) + 2 * (lostTo(dtype, wanted) + lostTo(within, wanted));
}

/** The bound of one result of a call, whose letters stand for `dtypes`. */
export function boundOfResult(
  op: Op,
  result: string,
  wanted: Float64Array,
  dtype: DType,
  dtypes: Readonly<Record<string, DType>>,
): number {
  const within = dtypes[roundedOnTheWay[op.opName]?.[result] ?? ''];
  const either = drawn[op.opName] === result ? (unit[dtype] ?? 0) : 0;
  return boundOf(op, wanted, dtype, within) + either;
}
