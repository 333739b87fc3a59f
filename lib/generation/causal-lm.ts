import { checkNames, kindOf } from '../arguments';
import type { Device } from '../device';
import { device as openDevice } from '../device';
import { openCheckpoint } from '../io/checkpoint';
import type { FloatFormat } from '../io/convert';
import { resolveModel, type ResolveOptions } from '../io/hub';
import type { JsonObject } from '../io/json';
import { ByteTokenizer } from '../io/bytes';
import type { Codec } from '../io/codec';
import { loadTokenizer, Tokenizer } from '../io/tokenizer';
import { familyOf } from '../models';
import type { CommonConfig } from '../models/family';
import { Fields } from '../models/fields';
import { Model } from '../models/model';
import { savePretrained, type Extras } from '../models/save';
import { Weights, type LoadOptions } from '../nn/weights';
import { generate, type Defaults, type GeneratedToken } from './generate';
import { readModelFolder } from './model-folder';
import type { GenerateOptions } from './options';
import type { Prompt } from './prompts';
import { Spares } from './spares';
import type { Speculation } from './speculation';
import { speculate } from './speculative';

export interface ModelOptions {
  /** `cpu`, `cuda`, `cuda:1` or an open device. Default: SELECTIVE_SCAN_DEVICE, or the CPU. */
  readonly device?: string | Device;
  /** Of the matrices: `auto`, the default, keeps what the checkpoint has (f32 for a fresh model). */
  readonly dtype?: 'auto' | FloatFormat;
  /**
   * Of the scan's states, between calls. f32, the default, or 16 bits: half the memory, and on a GPU a
   * faster step of many sequences. They are then rounded at random, the same way on every run.
   */
  readonly stateDtype?: FloatFormat;
}

export interface PretrainedOptions
  extends
    ModelOptions,
    LoadOptions,
    Pick<ResolveOptions, 'revision' | 'cacheDir' | 'offline' | 'token' | 'endpoint'> {
  /** The tokens of this Mamba are bytes: it becomes a `mambabyte`. For checkpoints whose config.json does not say so. */
  readonly bytes?: boolean;
  /** Called while files are downloaded from the hub. */
  readonly onDownload?: ResolveOptions['onProgress'];
}

/** A generated text with all that is known of it. */
export interface Completion {
  readonly text: string;
  /** Of a model of bytes: those of the text, exactly. */
  readonly bytes?: Uint8Array;
  readonly tokens: readonly number[];
  readonly logprobs: readonly number[];
  readonly finishReason: GeneratedToken['finishReason'];
  /** With a drafter: what became of its drafts. */
  readonly speculation?: Speculation;
}

/** Tokens as they come, or, with `completions`, whole texts. Can be consumed once. */
export class Generation implements AsyncIterable<GeneratedToken> {
  readonly #tokens: AsyncGenerator<GeneratedToken, void, undefined>;
  #taken = false;

  constructor(tokens: AsyncGenerator<GeneratedToken, void, undefined>) {
    this.#tokens = tokens;
  }

  [Symbol.asyncIterator](): AsyncGenerator<GeneratedToken, void, undefined> {
    if (this.#taken) throw new Error('generate: these tokens were taken before; call generate again');
    this.#taken = true;
    return this.#tokens;
  }

  /** Runs to the end: one completion for each prompt. */
  async completions(): Promise<Completion[]> {
    const rows: {
      text: string;
      bytes?: Uint8Array;
      tokens: number[];
      logprobs: number[];
      finishReason: Completion['finishReason'];
      speculation?: Speculation;
    }[] = [];
    const bytes: Uint8Array[][] = [];
    for await (const { index, text, bytes: some, token, logprob, finishReason, speculation } of this) {
      const row = (rows[index] ??= { text: '', tokens: [], logprobs: [], finishReason: undefined });
      row.text += text;
      if (some) (bytes[index] ??= []).push(some);
      row.tokens.push(token);
      row.logprobs.push(logprob);
      row.finishReason = finishReason;
      if (speculation) row.speculation = speculation;
    }
    bytes.forEach((parts, i) => (rows[i]!.bytes = new Uint8Array(Buffer.concat(parts))));
    return rows;
  }

  /** Runs to the end: the text of the first prompt's continuation. */
  async text(): Promise<string> {
    return (await this.completions())[0]!.text;
  }
}

/** generation_config.json goes before config.json, and that before the tokenizer. */
function defaultsOf(config: CommonConfig, extras: Extras, tokenizer: Codec | undefined): Defaults {
  const { vocabSize } = config;
  const own = new Fields(extras.generationConfig ?? {}, 'generation_config.json');
  const said = own.ids('eos_token_id', vocabSize) ?? config.eosTokenId;
  // A tokenizer may have more tokens than the model.
  const eos = asList(said ?? tokenizer?.eosId).filter((id) => id < vocabSize);
  return { eos, pad: own.id('pad_token_id', vocabSize) ?? config.padTokenId };
}

const asList = (ids: number | readonly number[] | undefined) =>
  ids === undefined ? [] : typeof ids === 'number' ? [ids] : ids;

/** A language model that generates: what `AutoModelForCausalLM` makes. */
export class CausalLM extends Model {
  /** Of the model's folder, or a `ByteTokenizer` for a model of bytes; undefined where there is none. */
  readonly tokenizer: Codec | undefined;
  readonly #extras: Extras;
  readonly #defaults: Defaults;
  readonly #spares: Spares;

  constructor(
    config: CommonConfig,
    options: {
      device: Device;
      dtype: FloatFormat;
      stateDtype?: FloatFormat;
      weights: Weights;
      tokenizer?: Codec;
      extras?: Extras;
    },
  ) {
    const { family } = familyOf(config.json);
    // CPU kernels compute in f32; a GPU's are fastest in the matrices' own dtype.
    const activations = options.device.id === 'cpu' ? 'f32' : options.dtype;
    const { device, weights, stateDtype: states = 'f32' } = options;
    super(config, device, family.build(config, weights, { activations, states }), weights);
    this.tokenizer = family.codec === 'bytes' ? new ByteTokenizer() : options.tokenizer;
    this.#extras = options.extras ?? {};
    this.#defaults = defaultsOf(config, this.#extras, this.tokenizer);
    this.#spares = new Spares(options.device);
  }

  /** Fills the parameters; called once. */
  async load(options: LoadOptions = {}): Promise<void> {
    await this.weights.load(options);
    this.refresh();
  }

  /**
   * Continues one prompt or several (of any lengths), as text or token ids. An async iterable of
   * tokens; leaving the loop stops the work.
   * @throws TypeError, RangeError, from the iteration's first step, before any work.
   */
  generate(prompts: Prompt | readonly Prompt[], options: GenerateOptions = {}): Generation {
    if (options?.drafter !== undefined)
      return new Generation(speculate(this, this.tokenizer, this.#defaults, prompts, options));
    return new Generation(generate(this, this.#spares, this.tokenizer, this.#defaults, prompts, options));
  }

  /**
   * Writes config.json, model.safetensors and the tokenizer's files into `folder`, as transformers
   * reads them. Each file is replaced whole or not at all.
   */
  async savePretrained(folder: string): Promise<void> {
    this.check('savePretrained');
    await savePretrained(folder, this.config, this.parameters, this.#extras);
  }

  override dispose(): void {
    super.dispose();
    this.#spares.dispose();
  }
}

const modelOptions: readonly (keyof ModelOptions)[] = ['device', 'dtype', 'stateDtype'];
const pretrainedOptions: readonly (keyof PretrainedOptions)[] = [
  ...modelOptions,
  ...(['bytes', 'revision', 'cacheDir', 'offline', 'token', 'endpoint', 'onDownload'] as const),
  ...(['onProgress', 'signal', 'checkFinite', 'onWarning'] as const),
];

/** Loads or starts language models of every family. */
export const AutoModelForCausalLM = {
  /**
   * Loads a model from a folder, or from the hub by its id (`owner/name`).
   * @throws FormatError that names the file, field or parameter that is wrong.
   */
  async fromPretrained(pathOrId: string, options: PretrainedOptions = {}): Promise<CausalLM> {
    checkNames('fromPretrained', options, pretrainedOptions, 'options');
    if (options.bytes !== undefined && typeof options.bytes !== 'boolean')
      throw new TypeError(`fromPretrained: bytes is ${kindOf(options.bytes)}, expected true or false`);
    const stateDtype = chosenDtype('fromPretrained', 'stateDtype', options.stateDtype);
    const device = openDevice(options.device);
    const folder = await resolveModel(pathOrId, { ...options, onProgress: options.onDownload });
    const { stored, config, generationConfig, isOfBytes } = await readModelFolder(folder, options.bytes);
    const tokenizer = isOfBytes ? undefined : await loadTokenizer(folder);
    const checkpoint = await openCheckpoint(folder, stored.rename);
    try {
      const dtype = chosenDtype('fromPretrained', 'dtype', options.dtype, () => storedDtype(checkpoint));
      const extras = { generationConfig, tokenizerFolder: tokenizer && folder };
      const weights = new Weights({ device, dtype, checkpoint });
      return await filled(
        weights,
        () => new CausalLM(config, { device, dtype, stateDtype, weights, tokenizer, extras }),
        options,
      );
    } finally {
      await checkpoint.close();
    }
  },

  /** A fresh model with the paper's initialisation. `json` is what config.json would hold. */
  async fromConfig(
    json: JsonObject,
    options: ModelOptions & { readonly seed?: number; readonly tokenizer?: Codec } = {},
  ): Promise<CausalLM> {
    checkNames('fromConfig', options, [...modelOptions, 'seed', 'tokenizer'], 'options');
    const { seed = 0, tokenizer } = options;
    if (!Number.isSafeInteger(seed)) {
      throw new TypeError(`fromConfig: seed is ${String(seed)}, expected a whole number`);
    }
    if (tokenizer !== undefined && !(tokenizer instanceof Tokenizer || tokenizer instanceof ByteTokenizer)) {
      throw new TypeError(`fromConfig: tokenizer is ${kindOf(tokenizer)}, expected a Tokenizer`);
    }
    const dtype = chosenDtype('fromConfig', 'dtype', options.dtype, () => 'f32');
    const stateDtype = chosenDtype('fromConfig', 'stateDtype', options.stateDtype);
    const device = openDevice(options.device);
    const { family, config } = familyOf(json);
    if (tokenizer instanceof Tokenizer && family.codec === 'bytes')
      throw new TypeError(`fromConfig: tokenizer is a Tokenizer, but the tokens of ${family.type} are bytes`);
    const weights = new Weights({ device, dtype, seed });
    return filled(weights, () => new CausalLM(config, { device, dtype, stateDtype, weights, tokenizer }));
  },
} as const;

/** The model that `make` builds on `weights`, loaded; when that fails nothing of it is left. */
async function filled(weights: Weights, make: () => CausalLM, options?: LoadOptions): Promise<CausalLM> {
  let model: CausalLM | undefined;
  try {
    model = make();
    await model.load(options);
    return model;
  } catch (error) {
    model?.dispose();
    weights.dispose();
    throw error;
  }
}

/** What `dtype` names, f32 by default; with `auto`, what that gives. */
function chosenDtype(
  call: string,
  name: 'dtype' | 'stateDtype',
  dtype: ModelOptions['dtype'],
  auto?: () => FloatFormat,
): FloatFormat {
  if (dtype === undefined || (auto && dtype === 'auto')) return auto?.() ?? 'f32';
  if (dtype === 'f32' || dtype === 'bf16' || dtype === 'f16') return dtype;
  throw new TypeError(
    `${call}: ${name} is ${String(dtype)}, expected ${auto ? 'auto, ' : ''}f32, bf16 or f16`,
  );
}

/** The dtype that most of the checkpoint's bytes have. */
export function storedDtype(checkpoint: Awaited<ReturnType<typeof openCheckpoint>>): FloatFormat {
  const bytes = new Map<string, number>();
  for (const name of checkpoint.names()) {
    const { dtype, begin, end } = checkpoint.info(name);
    bytes.set(dtype, (bytes.get(dtype) ?? 0) + end - begin);
  }
  const [most] = [...bytes].reduce((a, b) => (b[1] > a[1] ? b : a), ['F32', 0]);
  return most === 'BF16' ? 'bf16' : most === 'F16' ? 'f16' : 'f32';
}
