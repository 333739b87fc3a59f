import type { Scanned } from './branches';
import { distribution, logProbability, randomAt } from './distribution';
import type { Draft } from './draft-model';
import type { RowOptions } from './options';

/** What is taken of one row's draft. */
export interface Verdict {
  /** The accepted tokens, and the verifier's own one after them, unless there is none to give. */
  readonly tokens: readonly number[];
  readonly logprobs: readonly number[];
  /** Tokens of the draft among them. */
  readonly accepted: number;
}

/** One row's draft and what the verifier makes of it. */
export interface Trial {
  readonly row: number;
  readonly draft: Draft;
  readonly options: RowOptions;
  /** The position of the first token of the draft. */
  readonly position: number;
  /** Whether the verifier adds a token of its own to a draft that is accepted whole. */
  readonly bonus: boolean;
  /** Ids that the verifier may not give at position `at`. */
  held(at: number): readonly number[];
  /** Whether the repetition penalty falls on `id` after so many tokens of the draft. */
  seen(id: number, after: number): boolean;
}

/** Decides over a draft. `logits` has a row for each place of the trial; undefined where the rule needs none. */
export interface Rule {
  readonly needsLogits: boolean;
  readonly needsDraftLogits: boolean;
  judge(trial: Trial, scanned: Scanned, logits: (place: number) => Float32Array): Verdict;
}

/** `count` accepted tokens and the one that the verifier has drawn after them. */
function withOwn(trial: Trial, scanned: Scanned, accepted: number, logprob: (i: number) => number): Verdict {
  const { tokens: draft } = trial.draft;
  const tokens = draft.slice(0, accepted);
  const logprobs = tokens.map((_, i) => logprob(i));
  if (accepted === draft.length && !trial.bonus && accepted > 0) return { tokens, logprobs, accepted };
  const at = scanned.first(trial.row) + accepted;
  return {
    tokens: [...tokens, scanned.tokens[at]!],
    logprobs: [...logprobs, scanned.logprobs[at]!],
    accepted,
  };
}

/**
 * Accepts what the verifier has drawn itself, with its own random numbers: the tokens are those that it
 * gives without a drafter, greedy or not.
 */
export const match: Rule = {
  needsLogits: false,
  needsDraftLogits: false,
  judge(trial, scanned) {
    const first = scanned.first(trial.row);
    const { tokens } = trial.draft;
    const wrong = tokens.findIndex((token, i) => token !== scanned.tokens[first + i]);
    const accepted = wrong < 0 ? tokens.length : wrong;
    return withOwn(trial, scanned, accepted, (i) => scanned.logprobs[first + i]!);
  },
};

/**
 * MambaByte's rule (Wang et al. 2024): accepts what is among the verifier's `beta` likeliest tokens. With
 * `beta` 1 these are its greedy tokens; with more the text is somewhere between its own and the drafter's.
 */
export const among = (beta: number): Rule => ({
  needsLogits: true,
  needsDraftLogits: false,
  judge(trial, scanned, logits) {
    const { tokens } = trial.draft;
    const wrong = tokens.findIndex((token, i) => {
      if (trial.held(trial.position + i).includes(token)) return true;
      return rank(logits(i), token) >= beta;
    });
    const accepted = wrong < 0 ? tokens.length : wrong;
    return withOwn(trial, scanned, accepted, (i) => logProbability(logits(i), tokens[i]!));
  },
});

/** How many tokens are likelier; of equal ones the smaller id is. */
function rank(logits: Float32Array, token: number): number {
  const own = logits[token]!;
  let before = 0;
  for (let id = 0; id < logits.length; id++)
    if (logits[id]! > own || (logits[id] === own && id < token)) before++;
  return before;
}

/** Streams of random numbers that `sample` does not use. */
const acceptStream = 1;
const residualStream = 2;

/**
 * Speculative sampling (Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2): accepts a token
 * with probability min(1, p/q), and draws another from max(0, p - q), normalised, after the first that is
 * not. What comes is distributed as the verifier's own, p, after its filters; q is the drafter's after the same.
 */
export const rejection: Rule = {
  needsLogits: true,
  needsDraftLogits: true,
  judge(trial, scanned, logits) {
    const { draft, options, position } = trial;
    for (const [i, token] of draft.tokens.entries()) {
      const at = position + i;
      const marks = { seen: (id: number) => trial.seen(id, i), held: trial.held(at) };
      const p = distribution(logits(i), options, marks);
      const q = distribution(draft.logits![i]!, { ...options, repetitionPenalty: 1 });
      if (randomAt(options.seed, at, acceptStream) * q[token]! < p[token]!) continue;
      const left = p.map((value, id) => Math.max(0, value - q[id]!));
      const own = drawFrom(left, randomAt(options.seed, at, residualStream)) ?? best(p);
      const tokens = [...draft.tokens.slice(0, i), own];
      return { tokens, logprobs: tokens.map((id, j) => logProbability(logits(j), id)), accepted: i };
    }
    return withOwn(trial, scanned, draft.tokens.length, (i) => logProbability(logits(i), draft.tokens[i]!));
  },
};

/** An id with a probability in proportion to its weight; undefined where all are 0, which rounding alone can leave. */
function drawFrom(weights: Float64Array, random: number): number | undefined {
  let point = random * weights.reduce((a, b) => a + b, 0);
  let last: number | undefined;
  for (const [id, weight] of weights.entries()) {
    if (weight === 0) continue;
    last = id;
    if ((point -= weight) < 0) break;
  }
  return last;
}

const best = (p: Float64Array) => p.reduce((best, value, id) => (value > p[best]! ? id : best), 0);
