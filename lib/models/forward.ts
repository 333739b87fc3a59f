import type { Tensor } from '../tensor';
import type { IdsBatch } from './inputs';
import type { RouterOutput } from './router';
import type { State } from './state';

export interface ForwardInput {
  /** Token ids: one sequence, several (of any lengths), or a tensor i32[batch, length]. */
  readonly inputIds: IdsBatch;
  /** 1 for tokens, 0 for padding, in the shape of `inputIds`; on the left, the right or in between. */
  readonly attentionMask?: IdsBatch;
  /** Class ids in the shape of `inputIds`; -100 is left out. Column j+1 is what column j should predict. */
  readonly labels?: IdsBatch;
  readonly outputHiddenStates?: boolean;
  /** What each mixture of experts did with the tokens. */
  readonly outputRouter?: boolean;
  /** Logits for the last so many columns only; 0, the default, for all. */
  readonly logitsToKeep?: number;
  /** Continues these sequences, and updates them. */
  readonly state?: State;
}

export interface ForwardOutput {
  /** f32[batch, length or logitsToKeep, vocabSize]; zero at padding. */
  readonly logits: Tensor;
  /** As transformers' Mamba: the output of each layer, then the last one normalised; f32[batch, length, hiddenSize]. */
  readonly hiddenStates?: readonly Tensor[];
  /** For each layer with experts, in order. */
  readonly router?: readonly RouterOutput[];
  /** Mean cross-entropy, in nats. */
  readonly loss?: number;
}

export const inputNames: readonly (keyof ForwardInput)[] = [
  ...(['inputIds', 'attentionMask', 'labels', 'state'] as const),
  ...(['outputHiddenStates', 'outputRouter', 'logitsToKeep'] as const),
];
