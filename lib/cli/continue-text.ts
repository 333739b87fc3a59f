import { performance } from 'node:perf_hooks';
import type { CausalLM, PretrainedOptions } from '../generation/causal-lm';
import type { FinishReason, GeneratedToken } from '../generation/generate';
import type { GenerateOptions } from '../generation/options';
import type { Speculation } from '../generation/speculation';
import { ByteTokenizer } from '../io/bytes';
import { writeAtomically, writeFully } from '../io/atomic';
import type { Ids } from '../models/inputs';
import type { HubOptions } from './arguments';
import { Interrupted, UsageError } from './exit';
import { parseIds } from './prompt';
import { note, print, printBytes } from './terminal';

/** The flags of `generate`, as commander names them. */
export interface Flags
  extends
    HubOptions,
    Omit<GenerateOptions, 'doSample' | 'eosTokenId' | 'signal' | 'state' | 'drafter' | 'drafterState'> {
  readonly drafter?: string;
  readonly file?: string;
  readonly bytes?: boolean;
  readonly raw?: boolean;
  readonly ids?: boolean;
  readonly echo?: boolean;
  readonly json?: boolean;
  readonly stats?: boolean;
  readonly sample?: boolean;
  readonly greedy?: boolean;
  readonly eos?: readonly number[];
  readonly ignoreEos?: boolean;
  readonly loadState?: string;
  readonly saveState?: string;
  readonly device?: string;
  readonly dtype?: PretrainedOptions['dtype'];
  readonly stateDtype?: PretrainedOptions['stateDtype'];
  readonly threads?: number;
}

/** A prompt that continues a state is the middle of a text: it gets no begin-of-text token. */
function encode(
  model: CausalLM,
  prompt: string | Uint8Array,
  isFirst: boolean,
  ids: boolean | undefined,
): Ids {
  if (typeof prompt !== 'string') return prompt;
  if (ids) return parseIds(prompt);
  if (prompt === '') return [];
  if (!model.tokenizer)
    throw new UsageError('prompt is text, but the model has no tokenizer; give token ids with --ids');
  return model.tokenizer.encode(prompt, { addSpecialTokens: isFirst });
}

/** Continues `prompt`, and the state in `saved` where there is one; writes what the flags ask for. */
export async function continueText(
  model: CausalLM,
  prompt: string | Uint8Array,
  saved: Uint8Array | undefined,
  options: GenerateOptions,
  flags: Flags,
): Promise<void> {
  if (flags.raw && !(model.tokenizer instanceof ByteTokenizer))
    throw new UsageError('--raw is for models of bytes; if this is one that does not say so, add --bytes');
  const ids = encode(model, prompt, saved === undefined, flags.ids);
  const needsState = saved !== undefined || flags.saveState !== undefined;
  const state = saved ? model.restoreState(saved) : needsState ? model.createState() : undefined;
  const output = new Output(flags);
  const course = new Course(ids.length);
  const save = async () => {
    if (!state || flags.saveState === undefined) return;
    const bytes = await state.snapshot();
    await writeAtomically(flags.saveState, (file) => writeFully(file, bytes));
  };
  try {
    if (flags.echo) await output.start(flags.ids ? ids.join(' ') : prompt);
    // The ids of a text are no padding, whichever they are.
    const padTokenId = flags.ids ? undefined : null;
    for await (const event of model.generate(ids, { ...options, padTokenId, state })) {
      course.note(event);
      await output.token(event);
    }
  } catch (error) {
    // After a token the state is whole: it has seen all that was written. Amid a prompt or a draft it is not.
    if (error instanceof Interrupted && course.newTokens > 0 && flags.drafter === undefined) await save();
    throw error;
  } finally {
    await output.end();
  }
  const summary = course.end();
  await save();
  if (flags.json) await print(`${JSON.stringify({ done: true, ...summary })}\n`);
  if (flags.stats) note(inWords(summary));
}

/** Writes to stdout, and ends the last line of a text however it ends. */
class Output {
  readonly #flags: Flags;
  #last = '';

  constructor(flags: Flags) {
    this.#flags = flags;
  }

  async token(event: GeneratedToken): Promise<void> {
    const { bytes } = event;
    if (this.#flags.json)
      await print(`${JSON.stringify({ ...event, ...(bytes && { bytes: [...bytes] }) })}\n`);
    else if (this.#flags.raw) await printBytes(bytes!);
    else if (this.#flags.ids) await this.text(`${this.#last === '' ? '' : ' '}${event.token}`);
    else await this.text(event.text);
  }

  /** The prompt. */
  async start(prompt: string | Uint8Array): Promise<void> {
    await (this.#flags.raw ? printBytes(Buffer.from(prompt as Uint8Array)) : this.text(prompt as string));
  }

  async text(text: string): Promise<void> {
    if (text === '') return;
    this.#last = text;
    await print(text);
  }

  async end(): Promise<void> {
    // That the reader is gone was noticed by the write before.
    if (this.#last !== '' && !this.#last.endsWith('\n')) await print('\n').catch(() => undefined);
  }
}

interface Summary {
  readonly finishReason: FinishReason | undefined;
  readonly promptTokens: number;
  readonly newTokens: number;
  readonly seconds: number;
  readonly firstTokenSeconds: number;
  /** After the first token, whose time is the prompt's. */
  readonly tokensPerSecond: number;
  readonly speculation?: Speculation;
}

/** Takes the times of a generation. */
class Course {
  readonly #promptTokens: number;
  readonly #begin = performance.now();
  #first = 0;
  #newTokens = 0;
  #finishReason: FinishReason | undefined;
  #speculation: Speculation | undefined;

  constructor(promptTokens: number) {
    this.#promptTokens = promptTokens;
  }

  get newTokens(): number {
    return this.#newTokens;
  }

  note({ finishReason, speculation }: GeneratedToken): void {
    if (this.#newTokens++ === 0) this.#first = performance.now();
    this.#finishReason = finishReason;
    this.#speculation = speculation;
  }

  end(): Summary {
    const now = performance.now();
    const seconds = (now - this.#begin) / 1000;
    const rate = this.#newTokens > 1 ? ((this.#newTokens - 1) / (now - this.#first)) * 1000 : 1 / seconds;
    return {
      finishReason: this.#finishReason,
      promptTokens: this.#promptTokens,
      newTokens: this.#newTokens,
      seconds: Number(seconds.toFixed(6)),
      firstTokenSeconds: Number(((this.#first - this.#begin) / 1000).toFixed(6)),
      tokensPerSecond: Number(rate.toFixed(2)),
      ...(this.#speculation && { speculation: this.#speculation }),
    };
  }
}

function inWords({
  finishReason,
  promptTokens,
  newTokens,
  seconds,
  firstTokenSeconds,
  tokensPerSecond,
  speculation,
}: Summary): string {
  const tokens = (n: number, kind: string) => `${n} ${kind} token${n === 1 ? '' : 's'}`;
  const first = `${tokens(promptTokens, 'prompt')}, first new token after ${firstTokenSeconds.toFixed(3)} s`;
  const all = `${tokens(newTokens, 'new')} in ${seconds.toFixed(3)} s (${finishReason})`;
  const drafts = speculation
    ? `; ${speculation.accepted} of ${speculation.drafted} drafted tokens accepted, ${speculation.calls} calls`
    : '';
  return `${first}; ${all}; ${tokensPerSecond.toFixed(1)} tokens/s${drafts}`;
}
