/** The gradients of routing, in f32: what is chosen counts as constant, and the weights of the choice do not. */
import { op } from '../op';

/** The gradient of `routeExperts` with respect to its logits. */
export const routeExpertsBackward = op('route_experts_backward', {
  in: {
    experts: 'i32[t,k]',
    probs: 'f32[t,e]',
    dweights: 'f32[t,k]?',
    dprobs: 'f32[t,e]?',
  },
  attrs: { sigmoid: false, normalize: false },
  out: { dlogits: 'f32[t,e]' },
});

/**
 * The gradient of `routerStatistics`' two losses with respect to the logits: of balance, whose shares of
 * the choices are constant, `dbalance · e/t · p_j · (f_j - Σ f·p)`, and of z `dz · 2/t · logsumexp · p_j`.
 */
export const routerStatisticsBackward = op('router_statistics_backward', {
  in: { logits: 'f32[t,e]', experts: 'i32[t,k]', dbalance: 'f32[1]?', dz: 'f32[1]?' },
  out: { dlogits: 'f32[t,e]' },
});
