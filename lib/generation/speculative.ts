import { kindOf } from '../arguments';
import { ByteTokenizer } from '../io/bytes';
import type { Codec } from '../io/codec';
import { Model } from '../models/model';
import type { State } from '../models/state';
import { among, match, rejection, type Rule, type Trial } from './acceptance';
import { assign, Branches } from './branches';
import { DraftModel, type Draft } from './draft-model';
import { prepare, Row, type Defaults, type GeneratedToken, type Prepared } from './generate';
import { positive, type GenerateOptions, type RowOptions } from './options';
import type { Prompt } from './prompts';
import { TokenProposer, type Proposer } from './proposer';
import { summary } from './speculation';
import { SubwordProposer } from './subword-proposer';

const defaultDraft = 4;

/** Which rule the options ask for. @throws TypeError, RangeError */
function ruleOf({ acceptance = 'match', beta }: GenerateOptions): Rule {
  if (beta !== undefined) {
    if (acceptance !== 'match')
      throw new TypeError(
        `generate: beta is a rule of its own, and does not go with acceptance ${acceptance}`,
      );
    return among(positive('beta', beta));
  }
  if (acceptance === 'match') return match;
  if (acceptance === 'rejection') return rejection;
  throw new TypeError(`generate: acceptance is ${String(acceptance)}, expected match or rejection`);
}

/** Whether the drafter's tokens are the model's own, or words of its bytes. @throws TypeError that says why neither. */
function kindOfDraft(
  model: Model,
  codec: Codec | undefined,
  { drafter, acceptance }: GenerateOptions,
): 'same' | 'words' {
  if (!(drafter instanceof Model))
    throw new TypeError(`generate: drafter is ${kindOf(drafter)}, expected a model`);
  drafter.check('generate: drafter');
  const theirs = drafter.tokenizer;
  const bytes = codec instanceof ByteTokenizer;
  if (bytes && !(theirs instanceof ByteTokenizer)) {
    if (!theirs)
      throw new TypeError('generate: drafter has no tokenizer, so its tokens cannot be turned into bytes');
    if (acceptance === 'rejection')
      throw new TypeError(
        'generate: acceptance is rejection, which needs a drafter with the same tokens; for one of words it is match',
      );
    return 'words';
  }
  const [ours, other] = [model, drafter].map(({ config }) => config.vocabSize) as [number, number];
  if (!bytes && theirs instanceof ByteTokenizer)
    throw new TypeError(
      'generate: drafter is a model of bytes, expected one with the same tokens as the model',
    );
  if (ours !== other)
    throw new TypeError(`generate: drafter has a vocabulary of ${other}, expected the model's ${ours}`);
  if (codec && theirs && !sameTokens(codec, theirs))
    throw new TypeError('generate: drafter has another tokenizer, expected the same tokens');
  return 'same';
}

/** Some text that tokenizers cut in different ways. */
const probe = 'The naïve 1,024 “quotes”\n\tif (x_1 != 0) { return; } 日本語 😀';

function sameTokens(a: Codec, b: Codec): boolean {
  return a === b || (a.vocabSize === b.vocabSize && a.encode(probe).join() === b.encode(probe).join());
}

/** Everything of one generation that its loop needs. */
interface Course {
  readonly prepared: Prepared;
  readonly rule: Rule;
  readonly target: Branches;
  readonly proposer: Proposer;
  /** Positions before which the ids in `stop` are held back; 0 for never. */
  readonly quiet: readonly number[];
  /** What each row said that the first state of `target` has not consumed. */
  readonly said: number[][];
}

/**
 * Continues prompts as `generate`, with a drafter that proposes blocks of tokens, which the model
 * verifies in one scan each. Rows advance by as many tokens as are accepted; tokens come block by block.
 */
export async function* speculate(
  model: Model,
  codec: Codec | undefined,
  defaults: Defaults,
  prompts: Prompt | readonly Prompt[],
  options: GenerateOptions,
): AsyncGenerator<GeneratedToken, void, undefined> {
  const prepared = await prepare(model, codec, defaults, prompts, options);
  const { sequences, muted, rowsOptions, stop } = prepared;
  const rule = ruleOf(options);
  const kind = kindOfDraft(model, codec, options);
  const count = positive('draftTokens', options.draftTokens ?? defaultDraft);
  const drafter = options.drafter!;
  const n = sequences.length;
  const { state, drafterState } = options;
  if (drafterState) drafter.checkState('generate: drafterState', drafterState, n);
  options.signal?.throwIfAborted();

  const opened: { dispose(): void }[] = [];
  const releases: (() => void)[] = [];
  const own = <T extends { dispose(): void }>(thing: T): T => {
    opened.unshift(thing);
    return thing;
  };
  const twice = (made: Model, from: State | undefined) => {
    const rows = [...Array(n).keys(), ...Array(n).keys()];
    const branched = from ? from.fork(rows) : made.createState(2 * n);
    if (from) releases.push(from.acquire('generate'));
    return branched;
  };
  let course: Course | undefined;
  let failed = false;
  try {
    // On the CPU a block costs what its tokens do: padding to what was recorded would be for nothing.
    const useGraph = ({ device }: Model) => options.capture ?? device.id !== 'cpu';
    const branched = own(twice(model, state));
    const quiet = rowsOptions.map(({ minNewTokens }, i) =>
      minNewTokens > 0 ? branched.lengths[i]! + sequences[i]!.length + minNewTokens : 0,
    );
    const target = own(new Branches(model, branched, { rows: rowsOptions, stop, quiet }, useGraph(model)));
    const theirs = own(twice(drafter, drafterState));
    // Words are not drawn as bytes are: the likeliest ones are proposed.
    const drawn = kind === 'same' ? rowsOptions : rowsOptions.map((row) => ({ ...row, temperature: 0 }));
    const draftModel = own(new DraftModel(drafter, theirs, drawn, useGraph(drafter)));
    const first = kind === 'same' ? sequences : wordsOf(sequences, codec!, drafter.tokenizer!, !drafterState);
    const ends = [drafter.config.eosTokenId ?? drafter.tokenizer?.eosId ?? []].flat();
    const proposer =
      kind === 'same'
        ? new TokenProposer(draftModel, count, n)
        : new SubwordProposer(draftModel, drafter.tokenizer!, ends, count, n);
    const { signal } = options;
    const both = await Promise.allSettled([
      model.run(sequences, branched, { muted, signal }),
      drafter.run(first, theirs, { muted: kind === 'same' ? muted : [], signal }),
    ]);
    for (const result of both) if (result.status === 'rejected') throw result.reason;
    course = { prepared, rule, target, proposer, quiet, said: sequences.map(() => []) };
    yield* advance(course, options);
  } catch (error) {
    failed = true;
    throw error;
  } finally {
    try {
      // Whatever ended it, the states have consumed all that was given out.
      const settled = settle(course, model, options);
      await (failed ? settled.catch(() => {}) : settled);
    } finally {
      for (const thing of opened) thing.dispose();
      for (const release of releases) release();
    }
  }
}

async function settle(
  course: Course | undefined,
  model: Model,
  { state, drafter, drafterState }: GenerateOptions,
): Promise<void> {
  if (course && state && !model.disposed && !state.disposed) {
    await course.target.catchUp(course.said);
    assign(state, course.target.state);
  }
  if (course && drafterState && !drafter!.disposed && !drafterState.disposed)
    await course.proposer.finish(drafterState);
}

/** Prompts of bytes in a drafter's words. */
function wordsOf(prompts: readonly Int32Array[], codec: Codec, words: Codec, isFirst: boolean): Int32Array[] {
  return prompts.map((bytes) => {
    const text = codec.decode(bytes);
    return Int32Array.from(text === '' ? [] : words.encode(text, { addSpecialTokens: isFirst }));
  });
}

async function* advance(
  { prepared, rule, target, proposer, quiet, said }: Course,
  options: GenerateOptions,
): AsyncGenerator<GeneratedToken, void, undefined> {
  const { rowsOptions, stop, writers } = prepared;
  const ends = new Set(stop);
  const rows = rowsOptions.map((row, i) => new Row(row, ends, writers[i]!));
  const counts = rows.map(() => ({ drafted: 0, accepted: 0, calls: 0, blocks: 0 }));
  const taken = rows.map(() => 0);
  while (rows.some((row) => !row.done)) {
    options.signal?.throwIfAborted();
    const room = rows.map((row, i) => (row.done ? 0 : rowsOptions[i]!.maxNewTokens - taken[i]!));
    const drafts = await proposer.propose(room, rule.needsDraftLogits);
    options.signal?.throwIfAborted();
    const positions = rows.map((_, i) => target.length(i) + said[i]!.length);
    const certain = said.map((tokens) => [...tokens]);
    const scanned = await target.scan(
      rows.map((row, i) => (row.done ? undefined : { certain: certain[i]!, tried: drafts[i]!.tokens })),
    );
    const logits = rule.needsLogits ? ((await scanned.logits.data()) as Float32Array) : undefined;
    const v = target.model.config.vocabSize;
    const promoted: number[] = [];
    const verdicts = rows.map((row, i) => {
      if (row.done) return undefined;
      said[i]!.length = 0; // the first state has consumed it
      const trial = trialOf(
        i,
        drafts[i]!,
        rowsOptions[i]!,
        positions[i]!,
        proposer.bonus,
        stop,
        quiet[i]!,
        target,
      );
      const at = (place: number) =>
        logits!.subarray((scanned.first(i) + place) * v, (scanned.first(i) + place + 1) * v);
      return rule.judge(trial, scanned, at);
    });
    for (const [i, verdict] of verdicts.entries()) {
      if (!verdict) continue;
      const [row, count, draft] = [rows[i]!, counts[i]!, drafts[i]!];
      count.calls++;
      count.drafted += draft.tokens.length;
      if (draft.tokens.length > 0) count.blocks++;
      const used: number[] = [];
      try {
        for (const [j, token] of verdict.tokens.entries()) {
          if (j < verdict.accepted) count.accepted++;
          taken[i]!++;
          const event = row.take(i, token, verdict.logprobs[j]!);
          used.push(token);
          said[i]!.push(token);
          yield row.done ? { ...event, speculation: summary(count) } : event;
          if (row.done) break;
        }
      } finally {
        proposer.said(i, used, Math.min(verdict.accepted, used.length));
      }
      if (draft.tokens.length > 0 && !row.done && verdict.accepted === draft.tokens.length) promoted.push(i);
    }
    promote(promoted, drafts, target, said);
  }
}

/** Drafts that were accepted whole need not be scanned again. */
function promote(
  rows: readonly number[],
  drafts: readonly Draft[],
  target: Branches,
  said: number[][],
): void {
  target.promote(
    rows,
    rows.map((row) => drafts[row]!.tokens),
  );
  for (const row of rows) said[row]!.splice(0, drafts[row]!.tokens.length);
}

function trialOf(
  row: number,
  draft: Draft,
  options: RowOptions,
  position: number,
  bonus: boolean,
  stop: readonly number[],
  quiet: number,
  target: Branches,
): Trial {
  const marks = target.marks(row);
  return {
    ...{ row, draft, options, position, bonus },
    held: (at) => (at < quiet ? stop : []),
    seen: (id, after) =>
      ((marks[id >> 5]! >>> (id & 31)) & 1) === 1 || draft.tokens.slice(0, after).includes(id),
  };
}
