/** What an optimizer's step is made of: ops over all parameters at once, and nothing that waits. */
import { op } from '../op';

/** `sum = sum + Σ x²`, added up in f64. */
export const addSquares = op('add_squares', { in: { x: 'f32[n]', sum: 'f32[1]!' }, out: {} });

/**
 * What a step does, from the squared norm of its gradients, `squares`, which starts anew from 0.
 * `scaler` holds the loss scale, the steps since it last changed, the steps taken, the steps skipped,
 * and, without the scale, the norm of the gradients and the loss, which starts anew as well. `control` is for `adamw`: whether to take the step
 * (1 or 0: where the norm or the loss is not finite), what to multiply gradients with, the learning rate, and
 * Adam's corrections of both moments. Gradients are clipped to the norm `maxNorm` (Pascanu et al.
 * 2013), 0 being any. With `interval` the scale is halved where a step is skipped and doubled after so
 * many that were not (Micikevicius et al. 2018). Without it a step that is not taken leaves NaN in
 * `squares`, so that none after it is taken either until somebody has looked.
 */
export const planStep = op('plan_step', {
  in: { squares: 'f32[1]!', loss: 'f32[1]!', learningRate: 'f32[1]', scaler: 'f32[6]!' },
  attrs: { maxNorm: 0, beta1: 0.9, beta2: 0.999, interval: 0 },
  out: { control: 'f32[5]' },
});

/**
 * AdamW (Loshchilov and Hutter 2019, algorithm 2) as `control` of `planStep` has it: moments `m` and
 * `v`, weight decay apart from the gradient. `copy` gets the parameters in its own dtype.
 */
export const adamw = op('adamw', {
  in: {
    parameter: 'f32[n]!',
    m: 'f32[n]!',
    v: 'f32[n]!',
    gradient: 'f32[n]',
    control: 'f32[5]',
    copy: 'T[n]?!',
  },
  attrs: { beta1: 0.9, beta2: 0.999, eps: 1e-8, decay: 0 },
  out: {},
});

/** `average = decay · average + (1 - decay) · x`: an exponential moving average of parameters. */
export const moveAverage = op('move_average', {
  in: { average: 'f32[n]!', x: 'f32[n]' },
  attrs: { decay: 0.999 },
  out: {},
});
