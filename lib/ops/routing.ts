import type { InputGradients } from '../autograd/tape';
import { op } from '../op';
import type { Tensor } from '../tensor';
import { cast } from './elementwise';
import { routeExpertsBackward, routerStatisticsBackward } from './routing-backward';

/** What fits in a block's shared memory on a GPU; the same everywhere. */
const mostExperts = 1536;
const notTooMany = (e: number) =>
  e > mostExperts ? `logits has ${e} columns, expected at most ${mostExperts} experts` : undefined;

export const fewerThan = (k: number, e: number) =>
  k >= 1 && k <= e ? undefined : `k is ${k}, expected 1 to e, the number of experts, which is ${e}`;

/**
 * The k best experts of each token, best first; of equal ones the one with the smaller number.
 * `probs` is the softmax of `logits` over the experts, or their sigmoid (BlackMamba's router), and
 * `weights` are the chosen ones' (Switch: p_I · E_I(x)), divided by their sum with `normalize`.
 * With `scores` these choose the experts, and the logits only weigh them (Sinkhorn).
 */
export const routeExperts = op('route_experts', {
  in: { logits: 'f32[t,e]', scores: 'f32[t,e]?' },
  attrs: { k: 1, sigmoid: false, normalize: false },
  out: { experts: 'i32[t,k]', weights: 'f32[t,k]', probs: 'f32[t,e]' },
  check: (size) => fewerThan(size('k')!, size('e')!),
  saves: ['experts', 'probs'],
  vjp: ({ args, results, grad }): InputGradients => ({
    logits: routeExpertsBackward({
      experts: results['experts']!,
      probs: results['probs']!,
      dweights: grad['weights'],
      dprobs: grad['probs'],
      sigmoid: args['sigmoid'] as boolean | undefined,
      normalize: args['normalize'] as boolean | undefined,
    }),
  }),
});

/**
 * The start of a layer of experts in one call: `sum = residual + x` in f32, or `residual` itself
 * without `x`; `normed`, the RMS norm of `sum`; `logits = normed · weightᵀ + bias` in f32; and
 * what `routeExperts` chooses by them. `dtype` sets that of `normed` without `x`.
 */
export const normRoute = op('norm_route', {
  in: { x: 'T[t,d]?', residual: 'f32[t,d]', normWeight: 'f32[d]', weight: 'f32[e,d]', bias: 'f32[e]?' },
  attrs: { eps: 1e-5, k: 1, sigmoid: false, normalize: false },
  out: {
    sum: 'f32[t,d]',
    normed: 'T[t,d]',
    logits: 'f32[t,e]',
    experts: 'i32[t,k]',
    weights: 'f32[t,k]',
  },
  check: (size) => fewerThan(size('k')!, size('e')!),
});

/**
 * Sinkhorn's balancing of exp(2 · logits), so that the rows sum to 1/t and the columns to 1/e
 * (BlackMamba, section 4.2): d0 = 1 / (t · (Σ_e d1 · c + epsilon)), d1 = 1 / (e · (Σ_t d0 · c + epsilon))
 * in turn until the mean change of d1 is at most `tolerance`. It starts from
 * d1 = 1 / (e · Σ_t c), which needs about one turn; `classical` starts from 1. In f64.
 */
export const sinkhorn = op('sinkhorn', {
  in: { logits: 'f32[t,e]' },
  attrs: { classical: false, tolerance: 1e-4, epsilon: 1e-8, most: 1000 },
  out: { balanced: 'f32[t,e]', iterations: 'i32[1]' },
  check: (size) => notTooMany(size('e')!),
});

/**
 * What fits: each of `e` experts keeps at most `capacity` of the assignments [t, k] to it, those of
 * the highest scores, of equal ones the earliest; the others become -1. Without `experts` every
 * column is its own expert: then experts choose tokens (Zhou et al. 2022).
 */
export const limitExperts = op('limit_experts', {
  in: { scores: 'f32[t,k]', experts: 'i32[t,k]?' },
  attrs: { e: 1, capacity: 1 },
  out: { kept: 'i32[t,k]' },
  check: (size) =>
    size('capacity')! < 0 ? `capacity is ${size('capacity')}, expected 0 or more` : undefined,
});

/**
 * A stable counting sort of assignments by expert: expert i has places `offsets[i]` to
 * `offsets[i+1]`, `order` says which assignment is in each place (-1 after the last one), and
 * `place` where each assignment went (-1 for those that are dropped, which are negative).
 */
export const sortExperts = op('sort_experts', {
  in: { experts: 'i32[a]' },
  attrs: { e: 1 },
  out: { order: 'i32[a]', place: 'i32[a]', offsets: 'i32[e+1]' },
  check: (size) => (size('e')! < 0 ? `e is ${size('e')}, expected 0 or more experts` : undefined),
});

/**
 * What a router did with t tokens, from its logits, the experts that it chose [t, k] and those of
 * them that were kept. `balance` is e · Σ f_e · P_e (Fedus et al. 2021, eq. 4, without α): f_e is the
 * share of the choices, before any is dropped, and P_e the mean softmax. `z` is the mean squared
 * logsumexp of the logits (Zoph et al. 2022, eq. 5). `load` counts what each expert keeps, `entropy`
 * is that of f in nats, `dropped` counts choices that were not kept, `unserved` tokens without any.
 */
export const routerStatistics = op('router_statistics', {
  in: { logits: 'f32[t,e]', experts: 'i32[t,k]', kept: 'i32[t,k]' },
  out: {
    balance: 'f32[1]',
    z: 'f32[1]',
    load: 'i32[e]',
    entropy: 'f32[1]',
    dropped: 'i32[1]',
    unserved: 'i32[1]',
  },
  check: (size) => notTooMany(size('e')!),
  saves: ['logits', 'experts'],
  vjp: ({ args, grad }): InputGradients => {
    const [dbalance, dz] = [grad['balance'], grad['z']];
    if (!dbalance && !dz) return {}; // the entropy is of choices alone
    const of = { logits: args['logits'] as Tensor, experts: args['experts'] as Tensor };
    return { logits: routerStatisticsBackward({ ...of, dbalance, dz }) };
  },
});

/**
 * Adds what a router of so many `experts` did to `totals`: balance, z, the entropy as a share of the most
 * there could be, the choices that were dropped, and one for the router itself.
 */
export const addRouterTotals = op('add_router_totals', {
  in: { balance: 'f32[1]', z: 'f32[1]', entropy: 'f32[1]', dropped: 'i32[1]', totals: 'f32[5]!' },
  attrs: { experts: 2 },
  out: {},
});

/**
 * `x` times numbers that are uniform in [1 - epsilon, 1 + epsilon] (Fedus et al. 2021, section 2.4):
 * the noise of a router in training. Element i takes number i mod 2³² of Philox 4x32-10 with `seed`.
 */
export const jitter = op('jitter', {
  in: { x: 'T[t,d]', seed: 'i32[2]' },
  attrs: { epsilon: 0.01 },
  out: { y: 'f32[t,d]' },
  saves: ['seed'],
  vjp: ({ args, grad, inputs }): InputGradients => {
    const seed = args['seed'] as Tensor;
    const dx = jitter({ x: grad['y']!, seed, epsilon: args['epsilon'] as number | undefined });
    const { dtype } = inputs['x']!;
    return { x: dtype === 'f32' ? dx : cast({ x: dx, dtype }) };
  },
});
