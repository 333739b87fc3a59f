import { checkRecord } from '../arguments';
import type { Codec } from '../io/codec';
import type { Dense } from '../models/inputs';
import type { Model } from '../models/model';
import type { State } from '../models/state';
import { Decoder, decoderKind, together, type Drawn } from './decoder';
import { rowOptions, stopIds, stopStrings, type GenerateOptions, type RowOptions } from './options';
import { PromptGraphs } from './prompt-graphs';
import { encoded, type Prompt } from './prompts';
import type { Pair, Spares } from './spares';
import type { Speculation } from './speculation';
import { writerOf, type Writer } from './writer';

/** Why a sequence ended: an end-of-sequence token, a stop string, or `maxNewTokens`. */
export type FinishReason = 'eos' | 'stop' | 'length';

/** One new token of one sequence. */
export interface GeneratedToken {
  /** Its id. */
  readonly token: number;
  /** What it adds to the text: whole characters, '' while one is incomplete. Without a tokenizer always ''. */
  readonly text: string;
  /** Of a model of bytes: what it adds, exactly; of the text's bytes none are missing or too many. */
  readonly bytes?: Uint8Array;
  /** Natural logarithm of the model's own probability for it, before temperature and filters. */
  readonly logprob: number;
  /** Which prompt it continues: 0 for the first. */
  readonly index: number;
  /** Set with the last token of a sequence. */
  readonly finishReason: FinishReason | undefined;
  /** With a drafter, and the last token of a sequence: what became of its drafts. */
  readonly speculation?: Speculation;
}

/** One sequence while it grows. */
export class Row {
  readonly #options: RowOptions;
  readonly #stop: ReadonlySet<number>;
  readonly #writer: Writer;
  #count = 0;
  done = false;

  constructor(options: RowOptions, stop: ReadonlySet<number>, writer: Writer) {
    this.#options = options;
    this.#stop = stop;
    this.#writer = writer;
  }

  /** How many tokens it may still get. */
  get left(): number {
    return this.done ? 0 : this.#options.maxNewTokens - this.#count;
  }

  take(index: number, token: number, logprob: number): GeneratedToken {
    this.#count++;
    const eos = this.#stop.has(token);
    const written = eos ? [] : [this.#writer.push(token)];
    let finishReason: FinishReason | undefined;
    if (eos) finishReason = 'eos';
    else if (this.#writer.stopped) finishReason = 'stop';
    else if (this.#count >= this.#options.maxNewTokens) finishReason = 'length';
    if (finishReason && !this.#writer.stopped) {
      written.push(this.#writer.flush());
      if (this.#writer.stopped) finishReason = 'stop';
    }
    this.done = finishReason !== undefined;
    const text = written.map((each) => each.text).join('');
    const bytes = this.#writer.bytes && Buffer.concat(written.map((each) => each.bytes!));
    return { token, text, ...(bytes && { bytes: new Uint8Array(bytes) }), logprob, index, finishReason };
  }
}

/** What the model's folder says of its tokens. */
export interface Defaults {
  readonly eos: readonly number[];
  readonly pad: number | undefined;
}

/** The id that is padding in prompts. As in transformers the model's own is not, if it also ends sequences. */
function padding(
  id: number | null | undefined,
  { eos, pad }: Defaults,
  vocabSize: number,
): number | undefined {
  if (id === undefined) return pad !== undefined && eos.includes(pad) ? undefined : pad;
  return id === null ? undefined : stopIds(id, vocabSize, 'padTokenId')[0];
}

/** Prompts and options of a call, checked. */
export interface Prepared extends Pick<Dense, 'sequences' | 'muted'> {
  readonly rowsOptions: readonly RowOptions[];
  /** Ids that end a sequence. */
  readonly stop: readonly number[];
  readonly writers: readonly Writer[];
  /** Whether every sequence gets all of its new tokens: nothing ends it before. */
  readonly fixed: boolean;
}

/** @throws TypeError, RangeError for what is wrong with the arguments of a call. */
export async function prepare(
  model: Model,
  tokenizer: Codec | undefined,
  defaults: Defaults,
  prompts: Prompt | readonly Prompt[],
  options: GenerateOptions,
): Promise<Prepared> {
  model.check('generate');
  const { vocabSize } = model.config;
  checkRecord('generate', options);
  const pad = padding(options.padTokenId, defaults, vocabSize);
  const { sequences, muted } = await encoded(prompts, { tokenizer, vocabSize, pad });
  const rowsOptions = rowOptions(options, sequences.length);
  const stop = stopIds(options.eosTokenId ?? defaults.eos, vocabSize);
  const stops = stopStrings(options.stop);
  const writers = rowsOptions.map(() => writerOf(tokenizer, stops));
  if (options.state) model.checkState('generate', options.state, sequences.length);
  sequences.forEach((ids, i) => {
    if (ids.length === 0 && !options.state?.lengths[i]) {
      throw new RangeError(
        `generate: prompt${sequences.length > 1 ? ` ${i}` : ''} is empty, expected at least one token`,
      );
    }
  });
  options.signal?.throwIfAborted();
  const fixed = stop.length === 0 && stops.length === 0;
  return { sequences, muted, rowsOptions, stop, writers, fixed };
}

/**
 * Continues `prompts`, token by token. All sequences advance together; tokens come in the order of
 * steps, then of prompts. Nothing is computed further than one step ahead of what is asked for, or, of long
 * generations that nothing can end early, than eight.
 */
export async function* generate(
  model: Model,
  spares: Spares,
  tokenizer: Codec | undefined,
  defaults: Defaults,
  prompts: Prompt | readonly Prompt[],
  options: GenerateOptions = {},
): AsyncGenerator<GeneratedToken, void, undefined> {
  const prepared = await prepare(model, tokenizer, defaults, prompts, options);
  const { sequences, muted, rowsOptions, stop, writers, fixed } = prepared;
  const kind = decoderKind(rowsOptions, stop, {
    capture: options.capture ?? true,
    outlived: options.state !== undefined,
  });
  const release = options.state?.acquire('generate');
  let pair: Pair | undefined;
  let prompted: Promise<void> | undefined;
  /** Of steps that are under way, one each. */
  const drawn: Promise<Drawn>[] = [];
  /** Reported where it is awaited; until then nobody listens. */
  const quietly = <T extends Promise<unknown>>(promise: T): T => {
    promise.catch(() => {});
    return promise;
  };
  try {
    const prompt = (state: State, graphs?: PromptGraphs) => {
      if (graphs && !muted.some((each) => each) && PromptGraphs.fits(model, sequences))
        return graphs.run(sequences);
      prompted = quietly(model.run(sequences, state, { muted, signal: options.signal, wait: false }));
    };
    // A step is recorded, where that is needed, while the device runs the prompts.
    if (options.state) {
      prompt(options.state);
      pair = { state: options.state, decoder: new Decoder(model, options.state, kind) };
    } else pair = spares.begin(model, kind, prompt);
    const { state, decoder } = pair;
    await prompted;
    const ends = new Set(stop);
    const rows = rowsOptions.map((row, i) => new Row(row, ends, writers[i]!));
    drawn.push(quietly(decoder.draw(rowsOptions, stop)));
    while (rows.some((row) => !row.done)) {
      options.signal?.throwIfAborted();
      const left = rows.filter((row) => !row.done).map((row) => row.left);
      // A state that outlives this call must have consumed all that was emitted; ours need not.
      const wanted = Math.max(...left) + (options.state ? 1 : 0);
      // Several at once only as far as every sequence goes: past its end a sequence may come to what fails.
      const shortest = Math.min(...left);
      for (;;) {
        if (fixed && decoder.takesSeveral && drawn.length <= together && drawn.length + together <= shortest)
          drawn.push(...decoder.several().map(quietly));
        else if (drawn.length <= 1 && drawn.length < wanted) drawn.push(quietly(decoder.next()));
        else break;
      }
      const { tokens, logprobs } = await drawn[0]!;
      void drawn.shift();
      // Not yield*, which takes three more turns of the promise queue for each token.
      for (const event of take(rows, tokens, logprobs, state, decoder)) yield event;
    }
    await Promise.all(drawn);
  } finally {
    // What is queued may still write to the state: it is nobody's until then.
    const ended = await Promise.allSettled([prompted, ...drawn]);
    if (pair && !options.state) {
      spares.end(
        pair,
        ended.every(({ status }) => status === 'fulfilled'),
      );
    } else if (pair) {
      pair.decoder.finish();
      pair.decoder.dispose();
    }
    release?.();
  }
}

/** What was drawn, as tokens of the rows that still grow. */
function take(
  rows: readonly Row[],
  tokens: Int32Array,
  logprobs: Float32Array,
  state: State,
  decoder: Decoder,
): GeneratedToken[] {
  const events: GeneratedToken[] = [];
  for (const [i, row] of rows.entries()) {
    if (row.done) continue;
    events.push(row.take(i, tokens[i]!, logprobs[i]!));
    state.consumed(i, [tokens[i]!]);
    if (row.done) decoder.end(i);
  }
  return events;
}
