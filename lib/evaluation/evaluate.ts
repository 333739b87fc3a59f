import { checkNames, kindOf } from '../arguments';
import { DeviceError } from '../errors';
import { ByteTokenizer } from '../io/bytes';
import { checkUnicode, type Codec } from '../io/codec';
import type { Model } from '../models/model';
import { chunkTokens } from '../models/pieces';
import { score, type Scored } from './score';
import { pieceBytes, tokensOf } from './tokens';

/** A model with its tokens' codec: a `CausalLM`. */
export type Evaluated = Model & { readonly tokenizer: Codec | undefined };

export interface EvaluateOptions {
  /** Tokens that a prediction may rest on, at most; by default all that came before, in one state. */
  readonly context?: number;
  /** With `context`: each window begins so many tokens after the one before. Default half of `context`. */
  readonly stride?: number;
  /** What comes before the text, so that its first token is predicted too. Default: the tokenizer's own; null for nothing. */
  readonly bosTokenId?: number | null;
  /** Stops the work; the promise then rejects with the signal's reason. */
  readonly signal?: AbortSignal;
  /** Called with the bytes done so far. */
  readonly onProgress?: (bytes: number) => void;
}

/** How well a model predicts a text. */
export interface Evaluation {
  /** Of the text. */
  readonly bytes: number;
  readonly tokens: number;
  /** Tokens that were predicted: all, or all but the first where nothing comes before it. */
  readonly predicted: number;
  /** Bytes of those. */
  readonly predictedBytes: number;
  /** -log p of all that was predicted, summed. */
  readonly nats: number;
  /** nats / ln 2 / predictedBytes: what makes models of different tokens comparable. */
  readonly bitsPerByte: number;
  /** exp(nats / predicted): of this model's own tokens. */
  readonly perplexity: number;
}

const names: readonly (keyof EvaluateOptions)[] = ['context', 'stride', 'bosTokenId', 'signal', 'onProgress'];

/**
 * Bits per byte of a text, or of bytes for a model of bytes. The text is read and scored as it comes, so
 * that a file of any size takes the same memory. Windows (`context`) begin afresh; each token is
 * predicted once, from `context` tokens or from all where there are fewer, and by at least `context - stride`.
 * @throws TypeError, RangeError for bad arguments and for a text with nothing to predict, before any work;
 * DeviceError once logits are not finite.
 */
export async function evaluate(
  model: Evaluated,
  source: string | Uint8Array | AsyncIterable<Uint8Array>,
  options: EvaluateOptions = {},
): Promise<Evaluation> {
  if (typeof (model as Evaluated | undefined | null)?.check !== 'function')
    throw new TypeError(`evaluate: model is ${kindOf(model)}, expected a model`);
  model.check('evaluate');
  checkNames('evaluate', options, names, 'options');
  const { tokenizer: codec } = model;
  if (!codec)
    throw new TypeError('evaluate: model has no tokenizer, so nothing says what a text is in tokens');
  const { context, stride } = windowOf(options);
  const bos = bosOf(options, codec, model.config.vocabSize);
  const counts = { bytes: 0, tokens: 0 };
  const first: number[] = []; // the text's first token
  async function* ids(): AsyncGenerator<Int32Array, void, undefined> {
    if (bos !== undefined) yield Int32Array.of(bos);
    for await (const piece of tokensOf(codec!, chunksOf(source))) {
      if (first.length === 0) first.push(...piece.ids.subarray(0, 1));
      counts.bytes += piece.bytes;
      counts.tokens += piece.ids.length;
      const wrong = piece.ids.find((id) => id >= model.config.vocabSize);
      if (wrong !== undefined)
        throw new RangeError(
          `evaluate: text has token ${wrong}, expected ids below ${model.config.vocabSize}`,
        );
      yield piece.ids;
      options.onProgress?.(counts.bytes);
    }
  }
  const stream = ids();
  const { nats, predicted } = await (
    context === undefined
      ? whole(model, stream, options.signal)
      : windows(model, stream, context, stride, options.signal)
  ).finally(() => stream.return()); // closes the source
  if (predicted === 0) {
    const one = `one ${codec instanceof ByteTokenizer ? 'byte' : 'token'} with nothing before it`;
    throw new RangeError(
      `evaluate: text is ${counts.tokens === 0 ? 'empty' : one}, expected something to predict`,
    );
  }
  const unpredicted = bos === undefined ? Buffer.byteLength(codec.decode(first)) : 0;
  const predictedBytes =
    counts.bytes - (codec instanceof ByteTokenizer ? Math.sign(unpredicted) : unpredicted);
  return {
    ...counts,
    predicted,
    predictedBytes,
    nats,
    bitsPerByte: nats / Math.LN2 / predictedBytes,
    perplexity: Math.exp(nats / predicted),
  };
}

function windowOf({ context, stride }: EvaluateOptions): { context: number | undefined; stride: number } {
  const whole = (name: string, value: number, most: number, wanted: string) => {
    if (typeof value !== 'number')
      throw new TypeError(`evaluate: ${name} is ${kindOf(value)}, expected a whole number`);
    if (!Number.isInteger(value) || value < 1 || value > most)
      throw new RangeError(`evaluate: ${name} is ${value}, expected ${wanted}`);
  };
  if (context === undefined) {
    if (stride !== undefined) throw new TypeError('evaluate: stride needs context, which is missing');
    return { context, stride: 0 };
  }
  whole('context', context, 2 ** 31 - 1, 'a whole number, 1 or more');
  const step = stride ?? Math.max(1, context >> 1);
  whole('stride', step, context, `a whole number from 1 to context, which is ${context}`);
  return { context, stride: step };
}

function bosOf({ bosTokenId: id }: EvaluateOptions, codec: Codec, vocabSize: number): number | undefined {
  if (id === undefined) return codec.bosId;
  if (id === null) return undefined;
  if (!Number.isInteger(id) || id < 0 || id >= vocabSize)
    throw new RangeError(`evaluate: bosTokenId is ${id}, expected a token id from 0 to ${vocabSize - 1}`);
  return id;
}

async function* chunksOf(
  source: string | Uint8Array | AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void, undefined> {
  if (typeof source === 'string') checkUnicode('evaluate', source);
  const bytes = typeof source === 'string' ? Buffer.from(source) : source;
  if (bytes instanceof Uint8Array) {
    for (let at = 0; at < bytes.length; at += pieceBytes) yield bytes.subarray(at, at + pieceBytes);
    return;
  }
  if (typeof (bytes as Partial<typeof bytes> | undefined)?.[Symbol.asyncIterator] !== 'function') {
    throw new TypeError(
      `evaluate: source is ${kindOf(bytes)}, expected text, bytes or an async iterable of bytes`,
    );
  }
  for await (const chunk of bytes) {
    if (!(chunk instanceof Uint8Array))
      throw new TypeError(`evaluate: source gave ${kindOf(chunk)}, expected Uint8Array`);
    yield chunk;
  }
}

interface Sum {
  readonly nats: number;
  readonly predicted: number;
}

/** As `score`. @throws DeviceError where logits are NaN or infinite, so that no sum of theirs means anything. */
async function finiteScore(...args: Parameters<typeof score>): Promise<number> {
  const nats = await score(...args);
  if (Number.isFinite(nats)) return nats;
  throw new DeviceError(
    "evaluate: the model's logits are not finite; selective-scan inspect --check names weights that are not",
  );
}

/** All of it in one state. */
async function whole(model: Model, pieces: AsyncIterable<Int32Array>, signal?: AbortSignal): Promise<Sum> {
  const state = model.createState();
  let [nats, predicted] = [0, 0];
  const buffer = new Buffered(pieces);
  const most = chunkTokens(model.device.id);
  try {
    while (await buffer.holds(2)) {
      await buffer.holds(most + 1);
      const ids = buffer.first(most + 1);
      const rows = [{ inputs: ids.subarray(0, -1), labels: ids.subarray(1) }];
      nats += await finiteScore(model, state, rows, signal);
      predicted += ids.length - 1;
      buffer.drop(ids.length - 1);
    }
    return { nats, predicted };
  } finally {
    state.dispose();
  }
}

/** Windows of `context` tokens, as many beside each other as fill the device. */
async function windows(
  model: Model,
  pieces: AsyncIterable<Int32Array>,
  context: number,
  stride: number,
  signal?: AbortSignal,
): Promise<Sum> {
  let [nats, predicted] = [0, 0];
  const buffer = new Buffered(pieces);
  const most = Math.max(1, Math.min(64, Math.floor(chunkTokens(model.device.id) / context)));
  let seen = 0; // labels of the next window that were predicted before
  for (let more = await buffer.holds(2); more;) {
    const rows: Scored[] = [];
    while (more && rows.length < most) {
      more = await buffer.holds(context + 2); // whether another window follows
      const ids = buffer.first(context + 1);
      const labels = ids.slice(1);
      labels.fill(-100, 0, seen);
      predicted += labels.length - seen;
      rows.push({ inputs: ids.subarray(0, -1), labels });
      buffer.drop(stride);
      seen = context - stride;
    }
    const state = model.createState(rows.length);
    try {
      nats += await finiteScore(model, state, rows, signal);
    } finally {
      state.dispose();
    }
  }
  return { nats, predicted };
}

function joined(parts: readonly Int32Array[]): Int32Array<ArrayBuffer> {
  const all = new Int32Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** The ids that come next, from pieces of any lengths. */
class Buffered {
  readonly #pieces: AsyncIterator<Int32Array>;
  #ids: Int32Array = new Int32Array();

  constructor(pieces: AsyncIterable<Int32Array>) {
    this.#pieces = pieces[Symbol.asyncIterator]();
  }

  /** Whether there are `count` more. */
  async holds(count: number): Promise<boolean> {
    const parts: Int32Array[] = [this.#ids];
    for (let held = this.#ids.length; held < count;) {
      const next = await this.#pieces.next();
      if (next.done) break;
      parts.push(next.value);
      held += next.value.length;
    }
    if (parts.length > 1) this.#ids = joined(parts);
    return this.#ids.length >= count;
  }

  first(count: number): Int32Array {
    return this.#ids.slice(0, count);
  }

  drop(count: number): void {
    this.#ids = this.#ids.subarray(count);
  }
}
