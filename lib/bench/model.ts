import type { Device } from '../device';
import { AutoModelForCausalLM, type CausalLM, type ModelOptions } from '../generation/causal-lm';
import type { JsonObject } from '../io/json';
import { seeded } from '../nn/init';
import type { State } from '../models/state';
import type { Routing } from '../nn/moe';
import { dtypeBytes, scope, type DType, type Tensor } from '../tensor';
import { modelOfRandomWeights } from './random-weights';

/** The published Mamba sizes: width and layers. Speed does not depend on what the weights hold. */
export const presets: Readonly<Record<string, readonly [hiddenSize: number, numLayers: number]>> = {
  '130m': [768, 24],
  '370m': [1024, 48],
  '790m': [1536, 48],
  '1.4b': [2048, 48],
  '2.8b': [2560, 64],
};

/** BlackMamba's released sizes: `r` and eight experts in turn. */
const blackmamba = (hiddenSize: number, ffnHiddenSize: number, numLayers: number): JsonObject => ({
  hidden_size: hiddenSize,
  ffn_hidden_size: ffnHiddenSize,
  num_layers: numLayers,
  mamba_moe_layers: Array.from({ length: numLayers }, (_, i) => (i % 2 === 0 ? 'r' : '8')),
  state_size: 16,
  conv_dimension: 4,
  vocab_size: 50304,
  swiglu: true,
  add_bias_linear: false,
});

/** Mixtures of experts, and dense Mambas of as many parameters as one of their tokens sees. */
export const mixturePresets: Readonly<Record<string, JsonObject>> = {
  'blackmamba-1.5b': blackmamba(1152, 3072, 30),
  'blackmamba-2.8b': blackmamba(1472, 3872, 36),
  'dense-340m': presetConfig(1152, 34, 50304),
  'dense-630m': presetConfig(1472, 41, 50304),
};

/** A model to measure: random weights in the shape that a preset names, or a folder's or the hub's. */
export async function openModel(
  name: string,
  device: Device,
  { dtype, stateDtype }: Pick<ModelOptions, 'dtype' | 'stateDtype'>,
): Promise<CausalLM> {
  const preset = presets[name];
  const config = preset ? presetConfig(...preset) : mixturePresets[name];
  if (config) {
    const format = dtype === undefined || dtype === 'auto' ? 'f32' : dtype;
    return modelOfRandomWeights(config, device, format, stateDtype);
  }
  return AutoModelForCausalLM.fromPretrained(name, { device, dtype, stateDtype });
}

export function presetConfig(hiddenSize: number, numLayers: number, vocabSize = 50280): JsonObject {
  return {
    model_type: 'mamba',
    hidden_size: hiddenSize,
    num_hidden_layers: numLayers,
    vocab_size: vocabSize,
  };
}

/** `count` prompts of random tokens; the same ones each time. */
export function randomPrompts(model: CausalLM, count: number, length: number): Int32Array[] {
  const random = seeded(1);
  const token = () => Math.floor(random() * model.config.vocabSize);
  return Array.from({ length: count }, () => Int32Array.from({ length }, token));
}

/** The matrices of layers that every token sees. */
const layerMatrices = (model: CausalLM): Tensor[] =>
  [...model.parameters]
    .filter(([name]) => /(_proj|linear_fc\d)\.weight$/.test(name) && !expertName.test(name))
    .map(([, tensor]) => tensor);

/** How a result names the model and the dtype of its states, where that is not f32. */
export function named(model: CausalLM, name: string): { name: string; model: string; stateDtype?: DType } {
  const dtype = model.stateLayout.parts.find(({ name }) => name.endsWith('.scan'))?.dtype ?? 'f32';
  return dtype === 'f32'
    ? { name, model: name }
    : { name: `${name}, ${dtype} states`, model: name, stateDtype: dtype };
}

/** The dtype of the matrices. */
export const weightDtype = (model: CausalLM): DType => layerMatrices(model)[0]!.dtype;

/** A parameter of one expert of several: the layer's name, and the expert's number. */
const expertName = /^(.*\b(?:local_)?experts)\.(\d+)\./;

/** Layers with experts, in their order: how many they have, and the size of one. */
export function expertLayers(
  model: CausalLM,
): { readonly experts: number; readonly bytes: number; readonly size: number }[] {
  const layers = new Map<string, { experts: number; bytes: number; size: number }>();
  for (const [name, { size, dtype, shape }] of model.parameters) {
    const [, layer, number] = expertName.exec(name) ?? [];
    if (layer === undefined) continue;
    const found = layers.get(layer) ?? { experts: 0, bytes: 0, size: 0 };
    layers.set(layer, found);
    found.experts = Math.max(found.experts, Number(number) + 1);
    if (number !== '0') continue;
    found.bytes += size * dtypeBytes[dtype];
    if (shape.length === 2) found.size += size;
  }
  return [...layers.values()];
}

/** Of each layer with experts, how many a step of `ids` reads, one token for each sequence of `state`. */
export async function expertsRead(model: CausalLM, ids: Tensor, state: State): Promise<number[]> {
  const chosen: Promise<number>[] = [];
  const count = async (experts: Tensor) =>
    new Set((await experts.data()).filter((expert) => expert >= 0)).size;
  const seen: Tensor[] = [];
  const rows = [...Array(ids.shape[0]).keys()];
  scope(() => {
    const batch = model.batch(
      rows.map(() => 1),
      rows,
    );
    const router = (routing: Routing) => {
      seen.push(...(Object.values(routing) as Tensor[]));
      chosen.push(count(routing.experts));
    };
    model.step(ids, { ...batch, router }, state);
  });
  try {
    return await Promise.all(chosen);
  } finally {
    for (const tensor of seen) tensor.dispose();
  }
}

/**
 * Floating point operations of a prompt: two for each weight of a layer's matrices and token, and
 * for the head once a sequence, since only the last token needs logits; of experts one a token. What
 * is left, convolution and scan, is under 2 % of these sizes.
 */
export function prefillFlops(model: CausalLM, batch: number, length: number): number {
  const { hiddenSize, vocabSize } = model.config;
  const dense = layerMatrices(model).reduce((sum, { size }) => sum + size, 0);
  const perToken = expertLayers(model).reduce((sum, { size }) => sum + size, dense);
  return 2 * batch * (length * perToken + hiddenSize * vocabSize);
}

/** Bytes of all parameters. */
export const weightBytes = (model: CausalLM): number =>
  [...model.parameters.values()].reduce((sum, { size, dtype }) => sum + size * dtypeBytes[dtype], 0);

/**
 * Bytes of parameters that a decode step reads: all, but of untied embeddings only the tokens' rows,
 * and of each layer with experts only so many of these as `expertsRead` says.
 */
export function stepWeightBytes(model: CausalLM, expertsRead: readonly number[] = []): number {
  const untied = [...model.parameters.keys()].some((name) => name.startsWith('lm_head.'));
  const dense = [...model.parameters]
    .filter(([name]) => !(untied && /\bembeddings?\.weight$/.test(name)) && !expertName.test(name))
    .reduce((sum, [, { size, dtype }]) => sum + size * dtypeBytes[dtype], 0);
  return expertLayers(model).reduce(
    (sum, { bytes, experts }, i) => sum + bytes * (expertsRead[i] ?? experts),
    dense,
  );
}
