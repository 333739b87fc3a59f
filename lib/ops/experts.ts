import type { Call, InputGradients } from '../autograd/tape';
import { op } from '../op';
import { Tensor } from '../tensor';
import { kindOfActivation, kindOfExpert } from './activations';
import { placesOfRows, rowOfEachWeight } from './expert-checks';
import {
  activateBackward,
  expertColumnSums,
  expertCombineBackward,
  expertGatherBackward,
  expertWeightGradient,
  turnExperts,
} from './experts-backward';
import { fewerThan } from './routing';

/**
 * Rows of `x`, each times the weight of its expert: `y[p] = x[row] · weight[i]ᵀ + bias[i]` for the
 * places `offsets[i]` to `offsets[i+1]`, and 0 for those after the last. `row` is `order[p] / k`, the
 * token of an assignment, or p itself where k is 0: then x is in the experts' order already. Only
 * experts that have rows are read. Sums are f32; on the CPU the bits are those of `matmul`.
 */
export const expertMatmul = op('expert_matmul', {
  in: { x: 'T[t,d]', weight: 'W[e,n,d]', bias: 'f32[e,n]?', order: 'i32[a]', offsets: 'i32[e+1]' },
  attrs: { k: 0 },
  out: { y: 'Y[a,n]' },
  check: placesOfRows,
  saves: ['x', 'weight', 'order', 'offsets'],
  vjp: (call): InputGradients => productGradients(call, call.grad['y']!),
});

/** Of `expertMatmul` with these arguments, from the gradient of what it gives. */
function productGradients({ args, inputs, room }: Call, dy: Tensor): InputGradients {
  const [order, offsets] = [args['order'] as Tensor, args['offsets'] as Tensor];
  const [x, k, dtype] = [args['x'] as Tensor, args['k'] as number | undefined, inputs['weight']?.dtype];
  return {
    x: inputs['x'] && inputGradient(args, dy, inputs['x']),
    weight:
      inputs['weight'] &&
      expertWeightGradient({ dy, x, order, offsets, k, dtype, out: { dweight: room('weight') } }),
    bias: inputs['bias'] && expertColumnSums({ dy, offsets, out: { sum: room('bias') } }),
  };
}

/** The same product with turned matrices, and from the places back to the rows that they are of. */
function inputGradient(args: Call['args'], dy: Tensor, { dtype, shape }: Call['inputs'][string]): Tensor {
  const [order, offsets] = [args['order'] as Tensor, args['offsets'] as Tensor];
  const k = (args['k'] as number | undefined) ?? 0;
  const weight = turnExperts({ weight: args['weight'] as Tensor });
  const dx = expertMatmul({ x: dy, weight, order, offsets, dtype: k > 1 ? 'f32' : dtype });
  return k === 0 ? dx : expertGatherBackward({ dx, order, t: shape[0]!, dtype });
}

/** `y[i] = Σ_j weights[i,j] · x[place[i · k + j]]` in the order of j, without those whose place is -1. */
export const expertCombine = op('expert_combine', {
  in: { x: 'T[a,d]', place: 'i32[a]', weights: 'f32[t,k]' },
  out: { y: 'T[t,d]' },
  check: rowOfEachWeight('x'),
  saves: ['x', 'place', 'weights'],
  vjp: ({ args, grad }): InputGradients => {
    const { dx, dweights } = expertCombineBackward({
      x: args['x'] as Tensor,
      place: args['place'] as Tensor,
      weights: args['weights'] as Tensor,
      dy: grad['y']!,
    });
    return { x: dx, weights: dweights };
  },
});

const upTo = (n: number, h: number, has = 'weight has') =>
  n === h || n === 2 * h ? undefined : `${has} ${n} rows, expected ${h} or twice as many: h is ${h}`;

const intoExperts = (size: (name: string) => number | undefined) =>
  fewerThan(size('k')!, size('e')!) ?? upTo(size('n')!, size('h')!, 'up has') ?? kindOfExpert(size('kind')!);

/**
 * Into the experts: `y = f(expertMatmul(x))` with `activate`'s f, or `f(gate) · up` where the
 * weight has two halves of `h` rows, the gate first. Rows and places as in `expertMatmul`.
 */
export const expertUp = op('expert_up', {
  in: { x: 'T[t,d]', weight: 'W[e,n,d]', bias: 'f32[e,n]?', order: 'i32[a]', offsets: 'i32[e+1]' },
  attrs: { k: 1, kind: 0, h: 1 },
  out: { y: 'T[a,h]' },
  check: (size) =>
    upTo(size('n')!, size('h')!) ??
    kindOfExpert(size('kind')!) ??
    (size('k')! > 0 && size('t')! * size('k')! === size('a')
      ? undefined
      : `order has ${size('a')} places, expected ${size('t')! * size('k')!}: k, which is ${size('k')}, for each row of x`),
  saves: ['x', 'weight', 'bias', 'order', 'offsets'],
  vjp: (call): InputGradients => {
    const { args, grad } = call;
    const { kind, h } = args as Readonly<Record<string, number>>;
    const up = expertMatmul(productOf(args)); // once more: it was not kept
    const dup = Tensor.empty(up.shape, up.dtype, up.device);
    const halves = (all: Tensor) => [all.columns(0, h!), all.columns(h!, 2 * h!)] as const;
    const [[x, factor], [dx, dfactor]] = up.shape[1] === h ? [[up], [dup]] : [halves(up), halves(dup)];
    activateBackward({ x, factor, dy: grad['y']!, kind, out: { dx, dfactor } });
    return productGradients(call, dup);
  },
});

/** The arguments of an op's product that were saved. */
const productOf = (args: Call['args']) => ({
  x: args['x'] as Tensor,
  weight: args['weight'] as Tensor,
  bias: args['bias'] as Tensor | undefined,
  order: args['order'] as Tensor,
  offsets: args['offsets'] as Tensor,
  k: args['k'] as number | undefined,
});

/**
 * Out of the experts, and back to the tokens: `expertCombine` of `expertMatmul`, in the places that
 * `sortExperts` gave.
 */
export const expertDown = op('expert_down', {
  in: {
    x: 'T[a,d]',
    weight: 'W[e,n,d]',
    bias: 'f32[e,n]?',
    order: 'i32[a]',
    place: 'i32[a]',
    offsets: 'i32[e+1]',
    weights: 'f32[t,k]',
  },
  out: { y: 'T[t,n]' },
  check: rowOfEachWeight('x'),
  saves: ['x', 'weight', 'bias', 'order', 'place', 'offsets', 'weights'],
  vjp: (call): InputGradients => {
    const { args, grad } = call;
    const x = expertMatmul(productOf(args)); // once more: it was not kept
    const [place, weights] = [args['place'] as Tensor, args['weights'] as Tensor];
    const { dx, dweights } = expertCombineBackward({ x, place, weights, dy: grad['y']! });
    return { ...productGradients(call, dx), weights: dweights };
  },
});

/**
 * One token into its experts: `normRoute`, then `expertUp` of the chosen ones, best first. Only their
 * weights are read.
 */
export const normRouteUp = op('norm_route_up', {
  in: {
    x: 'T[1,d]?',
    residual: 'f32[1,d]',
    normWeight: 'f32[d]',
    router: 'f32[e,d]',
    routerBias: 'f32[e]?',
    up: 'W[e,n,d]',
    upBias: 'f32[e,n]?',
  },
  attrs: { eps: 1e-5, k: 1, sigmoid: false, normalize: false, kind: 0, h: 1 },
  out: {
    sum: 'f32[1,d]',
    normed: 'T[1,d]',
    logits: 'f32[1,e]',
    experts: 'i32[1,k]',
    weights: 'f32[1,k]',
    hidden: 'T[k,h]',
  },
  check: intoExperts,
});

/** `y[i] = Σ_j weights[i,j] · (hidden[i · k + j] · weight[experts[i,j]]ᵀ + bias[experts[i,j]])`. */
export const expertSum = op('expert_sum', {
  in: { hidden: 'T[a,h]', weight: 'W[e,n,h]', bias: 'f32[e,n]?', experts: 'i32[t,k]', weights: 'f32[t,k]' },
  out: { y: 'T[t,n]' },
  check: rowOfEachWeight('hidden'),
});

/**
 * A mixture of experts in a decode step, for one token: `normRouteUp`, and `y` is `expertSum` of what that
 * gives. On the CPU the bits are those of the two. On CUDA, for one expert of a token, halves of one type and
 * the sizes of a published model, one kernel; in a captured graph one for all layers that follow one another,
 * `mambaLayerStep`'s too, as long as none of their outputs was disposed before the last was called.
 */
export const expertLayerStep = op('expert_layer_step', {
  in: {
    x: 'T[1,d]?',
    residual: 'f32[1,d]',
    normWeight: 'f32[d]',
    router: 'f32[e,d]',
    routerBias: 'f32[e]?',
    up: 'W[e,n,d]',
    upBias: 'f32[e,n]?',
    down: 'W[e,d,h]',
    downBias: 'f32[e,d]?',
  },
  attrs: { eps: 1e-5, k: 1, sigmoid: false, normalize: false, kind: 0 },
  out: {
    y: 'T[1,d]',
    sum: 'f32[1,d]',
    normed: 'T[1,d]',
    logits: 'f32[1,e]',
    experts: 'i32[1,k]',
    weights: 'f32[1,k]',
    hidden: 'T[k,h]',
  },
  check: intoExperts,
});

/** `f(x) · factor`; `kind` says which f, one of `activations`. */
export const activate = op('activate', {
  in: { x: 'T[t,d]', factor: 'T[t,d]?' },
  attrs: { kind: 0 },
  out: { y: 'T[t,d]' },
  check: (size) => kindOfActivation(size('kind')!),
  saves: ['x', 'factor'],
  vjp: ({ args, grad, room }): InputGradients => {
    const factor = args['factor'] as Tensor | undefined;
    const { dx, dfactor } = activateBackward({
      x: args['x'] as Tensor,
      factor,
      dy: grad['y']!,
      kind: args['kind'] as number | undefined,
      out: { dx: room('x', 'apart'), ...(factor && { dfactor: room('factor', 'apart') }) },
    });
    return { x: dx, factor: dfactor };
  },
});
