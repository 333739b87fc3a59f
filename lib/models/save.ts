import { readFile, rm, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { kindOf } from '../arguments';
import { makeFolder } from '../io/folder';
import { writeAtomically, writeFully } from '../io/atomic';
import { MAX_INDEX_BYTES, parseIndex, WEIGHTS } from '../io/checkpoint';
import type { FloatFormat } from '../io/convert';
import { readJson, type JsonObject } from '../io/json';
import { writeSafetensors, type TensorSource } from '../io/safetensors';
import type { Tensor } from '../tensor';
import type { CommonConfig } from './family';

/** What belongs to a model beside its configuration and parameters. */
export interface Extras {
  readonly generationConfig?: JsonObject;
  /** Where the tokenizer's files are. */
  readonly tokenizerFolder?: string;
}

/** What transformers writes beside a model of which nothing is known but its configuration. */
export function generationDefaults(json: JsonObject): JsonObject {
  const ids = ['bos_token_id', 'eos_token_id', 'pad_token_id'] as const;
  const said = ids.filter((name) => json[name] !== undefined && json[name] !== null);
  return { _from_model_config: true, ...Object.fromEntries(said.map((name) => [name, json[name]])) };
}

const stored = { f32: 'F32', bf16: 'BF16', f16: 'F16' } as const;
const named = { f32: 'float32', bf16: 'bfloat16', f16: 'float16' } as const;
const [weightsFile, indexFile] = WEIGHTS;
const tokenizerFiles = [
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'tokenizer.model',
  'chat_template.jinja',
];
const architectures: ReadonlyMap<string, string> = new Map([
  ['mamba', 'MambaForCausalLM'],
  ['falcon_mamba', 'FalconMambaForCausalLM'],
]);

/**
 * A field on a line of its own that Python's side holds to be a float and refuses as an int: 1 of JavaScript has to
 * be written as 1.0.
 */
const wholeFloat = new RegExp(
  `(?<=^ {2}"(?:${[
    ...['layer_norm_epsilon', 'mixer_rms_eps', 'initializer_range', 'time_step_scale', 'time_step_min'],
    ...['time_step_max', 'time_step_floor', 'temperature', 'top_p', 'min_p', 'typical_p', 'epsilon_cutoff'],
    ...['eta_cutoff', 'repetition_penalty', 'encoder_repetition_penalty', 'length_penalty'],
    ...['diversity_penalty', 'guidance_scale'],
  ].join('|')})": )-?\\d+(?=,?$)`,
  'gm',
);

/** A link is replaced, not written through: what it leads to may be of others, as in a snapshot of the hub. */
const writeInPlace = (path: string, content: Buffer) =>
  writeAtomically(path, (file) => writeFully(file, content), { links: 'replace' });

export async function writeJson(path: string, json: unknown): Promise<void> {
  const text = JSON.stringify(json, undefined, 2).replace(wholeFloat, '$&.0');
  await writeInPlace(path, Buffer.from(`${text}\n`));
}

/**
 * Removes the shards of an older checkpoint, and their index. Only what the index names goes, and of that only
 * other safetensors files; an index that cannot be read names nothing.
 */
async function removeShards(folder: string): Promise<void> {
  const path = join(folder, indexFile);
  const index = await readJson(path, { maxBytes: MAX_INDEX_BYTES })
    .then((json) => parseIndex(json, path))
    .catch(() => undefined);
  if (!index) return;
  const isShard = (name: string) =>
    name.endsWith('.safetensors') && resolve(folder, name) !== resolve(folder, weightsFile);
  for (const name of new Set(index.values()))
    if (isShard(name)) await rm(join(folder, name), { force: true });
  await rm(path, { force: true });
}

/**
 * Writes a folder that transformers' `from_pretrained` reads. Matrices keep their dtype, the rest is f32. Links in
 * it are replaced by files.
 */
export async function savePretrained(
  folder: string,
  config: CommonConfig,
  parameters: ReadonlyMap<string, Tensor>,
  extras: Extras,
): Promise<void> {
  if (typeof folder !== 'string')
    throw new TypeError(`savePretrained: folder is ${kindOf(folder)}, expected a path`);
  if ((await stat(folder).catch(() => undefined))?.isDirectory() === false) {
    throw new Error(`savePretrained: ${folder} is a file, expected a folder`);
  }
  const read = async (tensor: Tensor) => {
    const { buffer, byteOffset, byteLength } = await tensor.data();
    return new Uint8Array(buffer, byteOffset, byteLength);
  };
  await writeModel(folder, config, parameters, extras, (_, tensor) => read(tensor));
}

/** The same for parameters whose bytes, in the tensor's dtype, `read` gives. */
export async function writeModel(
  folder: string,
  config: CommonConfig,
  parameters: ReadonlyMap<string, Tensor>,
  extras: Extras,
  read: (name: string, tensor: Tensor) => ReturnType<TensorSource['read']>,
): Promise<void> {
  await makeFolder(folder);
  const tensors = [...parameters].map(([name, tensor]): TensorSource => ({
    name,
    dtype: stored[tensor.dtype as FloatFormat],
    shape: tensor.shape,
    read: () => read(name, tensor),
  }));
  await writeSafetensors(join(folder, weightsFile), tensors);
  const dtypes = [...parameters.values()].map(({ dtype }) => dtype as FloatFormat);
  const dtype = named[dtypes.find((dtype) => dtype !== 'f32') ?? 'f32'];
  const architecture = architectures.get(config.modelType);
  await writeJson(join(folder, 'config.json'), {
    ...(architecture && { architectures: [architecture] }),
    ...config.json,
    ...('torch_dtype' in config.json ? { torch_dtype: dtype } : { dtype }),
  });
  if (extras.generationConfig)
    await writeJson(join(folder, 'generation_config.json'), extras.generationConfig);
  if (extras.tokenizerFolder !== undefined && resolve(extras.tokenizerFolder) !== resolve(folder)) {
    for (const name of tokenizerFiles) {
      const content = await readFile(join(extras.tokenizerFolder, name)).catch(() => undefined);
      if (content) await writeInPlace(join(folder, name), content);
    }
  }
  await removeShards(folder);
}
