import { checkFlag, checkNames } from '../arguments';
import type { Codec } from '../io/codec';
import type { Model } from '../models/model';
import type { State } from '../models/state';

/** One value for all prompts, or one for each. */
export type PerPrompt<T> = T | readonly T[];

export interface GenerateOptions {
  /** At most so many tokens a prompt. Default 128. */
  readonly maxNewTokens?: PerPrompt<number>;
  /** No end-of-sequence token before so many. Default 0. */
  readonly minNewTokens?: PerPrompt<number>;
  /** Draws at random; otherwise the likeliest token is taken. Default: true if any sampling option is given. */
  readonly doSample?: PerPrompt<boolean>;
  /** Divides the logits. Above 0. Default 1. */
  readonly temperature?: PerPrompt<number>;
  /** Draws from the so many likeliest tokens only; 0 is off, the default. */
  readonly topK?: PerPrompt<number>;
  /** Draws from the smallest set of tokens with this much probability together; 1 is off, the default. */
  readonly topP?: PerPrompt<number>;
  /** Draws no token less likely than this fraction of the likeliest one; 0 is off, the default. */
  readonly minP?: PerPrompt<number>;
  /** Divides positive logits of tokens that were there before, multiplies negative ones; 1 is off, the default. */
  readonly repetitionPenalty?: PerPrompt<number>;
  /** The same seed gives the same tokens, whatever the batch around it. Default: drawn at random. */
  readonly seed?: PerPrompt<number | bigint>;
  /** Ends a text before any of these strings, or bytes of a model of bytes; needs a tokenizer. */
  readonly stop?: string | Uint8Array | readonly (string | Uint8Array)[];
  /** Tokens that end a sequence. Default: the model's own; `[]` for none. */
  readonly eosTokenId?: number | readonly number[];
  /** The id that is padding on the left of prompts of ids. Default: the model's own, unless it also ends sequences; null for none. */
  readonly padTokenId?: number | null;
  /** Stops at once; the iteration then throws the signal's reason. */
  readonly signal?: AbortSignal;
  /** Continues these sequences and leaves in it what they have become. */
  readonly state?: State;
  /**
   * A smaller model that proposes tokens, which this one verifies a block at a time (speculative decoding).
   * It has the same tokens, or, for a model of bytes, a tokenizer.
   */
  readonly drafter?: Drafter;
  /** Tokens of the drafter in a block. Default 4. */
  readonly draftTokens?: number;
  /**
   * What is accepted of a block. `match`, the default: what this model draws itself, so that the tokens
   * are those without a drafter. `rejection`: speculative sampling, which accepts more of what is drawn
   * at random; tokens are distributed as without a drafter, but are not the same ones.
   */
  readonly acceptance?: 'match' | 'rejection';
  /** Accepts instead what is among this model's `beta` likeliest tokens (MambaByte): faster, and not its own text. */
  readonly beta?: number;
  /** What the drafter remembers of the sequences in `state`; updated. */
  readonly drafterState?: State;
  /** Runs each step as one recorded graph. Default true; the tokens are the same either way. */
  readonly capture?: boolean;
}

/** A model that can draft: a `CausalLM`. */
export type Drafter = Model & { readonly tokenizer: Codec | undefined };

/** The options of one prompt, checked and complete. */
export interface RowOptions {
  readonly maxNewTokens: number;
  readonly minNewTokens: number;
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly seed: bigint;
}

interface Range {
  readonly fallback: number;
  readonly least: number;
  readonly most: number;
  readonly above?: boolean;
  readonly whole?: boolean;
}
export const int32 = 2 ** 31 - 1;
/** A seed as `sample` takes it: the lower and the upper half. */
export const seedWords = (seed: bigint): readonly [number, number] => [
  Number(BigInt.asIntN(32, seed)),
  Number(BigInt.asIntN(32, seed >> 32n)),
];
const ranges: Readonly<Record<Exclude<keyof RowOptions, 'seed'>, Range>> = {
  maxNewTokens: { fallback: 128, least: 1, most: int32, whole: true },
  minNewTokens: { fallback: 0, least: 0, most: int32, whole: true },
  temperature: { fallback: 1, least: 0, most: Infinity, above: true },
  topK: { fallback: 0, least: 0, most: int32, whole: true },
  topP: { fallback: 1, least: 0, most: 1, above: true },
  minP: { fallback: 0, least: 0, most: 1 },
  // A logit may be 1e30: beyond these bounds what is left of it in f32 is no number, or no logit.
  repetitionPenalty: { fallback: 1, least: 1e-6, most: 1e6 },
};
const speculative = ['draftTokens', 'acceptance', 'beta', 'drafterState'] as const;
const known: readonly string[] = [
  ...Object.keys(ranges),
  ...['doSample', 'seed', 'stop', 'eosTokenId', 'padTokenId', 'signal', 'state', 'capture'],
  'drafter',
  ...speculative,
];

function inRange(name: string, value: unknown, { least, most, above, whole }: Range): number {
  const fits =
    typeof value === 'number' &&
    Number.isFinite(value) &&
    (above ? value > least : value >= least) &&
    value <= most &&
    (!whole || Number.isInteger(value));
  if (fits) return value;
  const kind = whole ? 'a whole number' : 'a number';
  const upper = most === Infinity ? '' : `, at most ${most}`;
  const error = typeof value === 'number' ? RangeError : TypeError;
  throw new error(
    `generate: ${name} is ${String(value)}, expected ${kind} ${above ? 'above' : 'from'} ${least}${upper}`,
  );
}

/** A whole number, 1 or more. */
export const positive = (name: string, value: unknown): number =>
  inRange(name, value, { fallback: 1, least: 1, most: int32, whole: true });

function seedOf(value: unknown): bigint {
  if (typeof value === 'bigint' || Number.isSafeInteger(value)) {
    const seed = BigInt(value as number);
    if (seed >= -(2n ** 63n) && seed < 2n ** 64n) return BigInt.asUintN(64, seed);
    throw new RangeError(`generate: seed is ${seed}, expected a whole number of at most 64 bits`);
  }
  throw new TypeError(`generate: seed is ${String(value)}, expected a whole number`);
}

const randomSeed = () =>
  BigInt(Math.floor(Math.random() * 2 ** 32)) * 2n ** 21n + BigInt(Date.now() % 2 ** 21);

/** The options of each of `rows` prompts. @throws RangeError, TypeError that name the option. */
export function rowOptions(options: GenerateOptions, rows: number): RowOptions[] {
  checkNames('generate', options, known);
  checkFlag('generate', 'capture', options.capture);
  const { signal } = options;
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new TypeError(`generate: signal is ${typeof signal}, expected an AbortSignal`);
  }
  const needsDrafter = speculative.find((name) => options[name] !== undefined);
  if (options.drafter === undefined && needsDrafter)
    throw new TypeError(`generate: ${needsDrafter} needs a drafter, which is missing`);
  for (const name of ['draftTokens', 'beta'] as const)
    if (options[name] !== undefined) positive(name, options[name]);
  const of = (name: keyof GenerateOptions, row: number): unknown => {
    const value = options[name];
    if (!Array.isArray(value)) return value;
    if (value.length !== rows) {
      throw new RangeError(
        `generate: ${name} has ${value.length} values, expected one for each of ${rows} prompts`,
      );
    }
    return value[row];
  };
  return Array.from({ length: rows }, (_, row) => {
    const number = (name: keyof typeof ranges) =>
      inRange(name, of(name, row) ?? ranges[name].fallback, ranges[name]);
    const samples = (['temperature', 'topK', 'topP', 'minP', 'seed'] as const).some(
      (name) => options[name] !== undefined,
    );
    const doSample = of('doSample', row) ?? samples;
    if (typeof doSample !== 'boolean') {
      throw new TypeError(`generate: doSample is ${typeof doSample}, expected true or false`);
    }
    const temperature = number('temperature');
    const seed = of('seed', row);
    const maxNewTokens = number('maxNewTokens');
    const minNewTokens = number('minNewTokens');
    if (minNewTokens > maxNewTokens)
      throw new RangeError(
        `generate: minNewTokens is ${minNewTokens}, expected at most maxNewTokens, which is ${maxNewTokens}`,
      );
    return {
      maxNewTokens,
      minNewTokens,
      // Within these bounds it and its reciprocal are finite in f32; what lies beyond is no different.
      temperature: doSample ? Math.min(Math.max(temperature, 1e-30), 1e30) : 0,
      topK: number('topK'),
      topP: number('topP'),
      minP: number('minP'),
      repetitionPenalty: number('repetitionPenalty'),
      seed: seed === undefined ? randomSeed() : seedOf(seed),
    };
  });
}

/** The strings, or bytes, in `stop`. */
export function stopStrings(stop: unknown): readonly (string | Uint8Array)[] {
  const list: readonly unknown[] = stop === undefined ? [] : Array.isArray(stop) ? stop : [stop];
  for (const text of list) {
    if (!(typeof text === 'string' || text instanceof Uint8Array) || text.length === 0) {
      throw new TypeError(
        `generate: stop holds ${JSON.stringify(text)}, expected strings that are not empty`,
      );
    }
  }
  return list as readonly (string | Uint8Array)[];
}

/** The ids in `eosTokenId`, each below `vocabSize`. */
export function stopIds(ids: unknown, vocabSize: number, name = 'eosTokenId'): readonly number[] {
  const list: readonly unknown[] = ids === undefined ? [] : Array.isArray(ids) ? ids : [ids];
  for (const id of list) {
    if (!Number.isInteger(id) || (id as number) < 0 || (id as number) >= vocabSize) {
      throw new RangeError(
        `generate: ${name} holds ${String(id)}, expected token ids from 0 to ${vocabSize - 1}`,
      );
    }
  }
  return list as readonly number[];
}
