/** What the gradients of the ops of experts are made of. */
import { op } from '../op';
import { kindOfActivation } from './activations';
import { placesOfRows, rowOfEachWeight } from './expert-checks';

/** The gradients of `activate`: `dx = dy·factor·f'(x)` and `dfactor = dy·f(x)`. */
export const activateBackward = op('activate_backward', {
  in: { x: 'T[t,d]', factor: 'T[t,d]?', dy: 'T[t,d]' },
  attrs: { kind: 0 },
  out: { dx: 'T[t,d]', dfactor: '=factor' },
  strided: ['dx', 'dfactor'],
  check: (size) => kindOfActivation(size('kind')!),
});

/** Each expert's matrix, turned: what `expertMatmul` takes a gradient back through. */
export const turnExperts = op('turn_experts', {
  in: { weight: 'W[e,n,d]' },
  out: { turned: 'W[e,d,n]' },
});

/** `dweight[i] = Σ dy[p]ᵀ · x[row]` over the places p of expert i, row as in `expertMatmul`; in their order, in f32. */
export const expertWeightGradient = op('expert_weight_gradient', {
  in: { dy: 'T[a,n]', x: 'X[t,d]', order: 'i32[a]', offsets: 'i32[e+1]' },
  attrs: { k: 0 },
  out: { dweight: 'Y[e,n,d]' },
  check: placesOfRows,
});

/** The sum of dy over the places of each expert, in their order: the gradient of a bias. */
export const expertColumnSums = op('expert_column_sums', {
  in: { dy: 'T[a,n]', offsets: 'i32[e+1]' },
  out: { sum: 'f32[e,n]' },
});

/** `dx[i] = Σ dx'[p]` over the places p of the assignments of token i, of which there are a / t, in their order. */
export const expertGatherBackward = op('expert_gather_backward', {
  in: { dx: 'T[a,d]', order: 'i32[a]' },
  attrs: { t: 1 },
  out: { sum: 'Y[t,d]' },
  check: (size) =>
    size('t') === 0
      ? size('a') === 0
        ? undefined
        : 't is 0, expected a divisor of the places'
      : size('a')! % size('t')! === 0 && size('t')! > 0
        ? undefined
        : `t is ${size('t')}, expected a divisor of ${size('a')}, the places`,
});

/** The gradients of `expertCombine`: `dx[place] = weight · dy` of the token, `dweights = dy · x[place]`, 0 where it is -1. */
export const expertCombineBackward = op('expert_combine_backward', {
  in: { x: 'T[a,d]', place: 'i32[a]', weights: 'f32[t,k]', dy: 'T[t,d]' },
  out: { dx: 'T[a,d]', dweights: 'f32[t,k]' },
  check: rowOfEachWeight('x'),
});
