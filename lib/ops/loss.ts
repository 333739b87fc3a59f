import type { InputGradients } from '../autograd/tape';
import { op } from '../op';
import type { Tensor } from '../tensor';

/** The gradient of `crossEntropy`: `dloss · (softmax(logits) - 1 at the label)`; 0 where it is -100. */
export const crossEntropyBackward = op('cross_entropy_backward', {
  in: { logits: 'f32[t,v]', labels: 'i32[t]', dloss: 'f32[t]' },
  out: { dlogits: 'f32[t,v]' },
});

/** `logsumexp(logits) - logits[label]` for each row, in f32; 0 where the label is -100. */
export const crossEntropy = op('cross_entropy', {
  in: { logits: 'f32[t,v]', labels: 'i32[t]' },
  out: { loss: 'f32[t]' },
  saves: ['logits', 'labels'],
  vjp: ({ args, grad }): InputGradients => ({
    logits: crossEntropyBackward({
      logits: args['logits'] as Tensor,
      labels: args['labels'] as Tensor,
      dloss: grad['loss']!,
    }),
  }),
});

/**
 * Loss and gradient at once: returns what `crossEntropy` does, and leaves in place of the logits the
 * gradient of `scale` times the sum of it.
 */
export const crossEntropyGradient = op('cross_entropy_gradient', {
  in: { logits: 'T[t,v]!', labels: 'i32[t]', scale: 'f32[1]' },
  out: { loss: 'f32[t]' },
});
