import type { Device } from '../device';
import { AutoModelForCausalLM, type CausalLM, type ModelOptions } from '../generation/causal-lm';
import type { JsonObject } from '../io/json';
import { seeded } from '../nn/init';
import { dtypeBytes, type DType, type Tensor } from '../tensor';
import { modelOfRandomWeights } from './random-weights';

/** The published Mamba sizes: width and layers. Speed does not depend on what the weights hold. */
export const presets: Readonly<Record<string, readonly [hiddenSize: number, numLayers: number]>> = {
  '130m': [768, 24],
  '370m': [1024, 48],
  '790m': [1536, 48],
  '1.4b': [2048, 48],
  '2.8b': [2560, 64],
};

/** A model to measure: random weights in the shape that a preset names, or a folder's or the hub's. */
export async function openModel(
  name: string,
  device: Device,
  { dtype, stateDtype }: Pick<ModelOptions, 'dtype' | 'stateDtype'>,
): Promise<CausalLM> {
  const preset = presets[name];
  if (preset) {
    const format = dtype === undefined || dtype === 'auto' ? 'f32' : dtype;
    return modelOfRandomWeights(presetConfig(...preset), device, format, stateDtype);
  }
  return AutoModelForCausalLM.fromPretrained(name, { device, dtype, stateDtype });
}

export const presetConfig = (hiddenSize: number, numLayers: number, vocabSize = 50280): JsonObject => ({
  model_type: 'mamba',
  hidden_size: hiddenSize,
  num_hidden_layers: numLayers,
  vocab_size: vocabSize,
});

/** `count` prompts of random tokens; the same ones each time. */
export function randomPrompts(model: CausalLM, count: number, length: number): Int32Array[] {
  const random = seeded(1);
  const token = () => Math.floor(random() * model.config.vocabSize);
  return Array.from({ length: count }, () => Int32Array.from({ length }, token));
}

const layerMatrices = (model: CausalLM): Tensor[] =>
  [...model.parameters].filter(([name]) => /_proj\.weight$/.test(name)).map(([, tensor]) => tensor);

/** How a result names the model and the dtype of its states, where that is not f32. */
export function named(model: CausalLM, name: string): { name: string; model: string; stateDtype?: DType } {
  const dtype = model.stateLayout.parts.find(({ name }) => name.endsWith('.scan'))?.dtype ?? 'f32';
  return dtype === 'f32'
    ? { name, model: name }
    : { name: `${name}, ${dtype} states`, model: name, stateDtype: dtype };
}

/** The dtype of the matrices. */
export const weightDtype = (model: CausalLM): DType => layerMatrices(model)[0]!.dtype;

/**
 * Floating point operations of a prompt: two for each weight of a layer's matrices and token, and
 * for the head once a sequence, since only the last token needs logits. What is left, convolution
 * and scan, is under 2 % of these sizes.
 */
export function prefillFlops(model: CausalLM, batch: number, length: number): number {
  const { hiddenSize, vocabSize } = model.config;
  const perToken = layerMatrices(model).reduce((sum, { size }) => sum + size, 0);
  return 2 * batch * (length * perToken + hiddenSize * vocabSize);
}

/** Bytes of all parameters. */
export const weightBytes = (model: CausalLM): number =>
  [...model.parameters.values()].reduce((sum, { size, dtype }) => sum + size * dtypeBytes[dtype], 0);

/** Bytes of parameters that a decode step reads: all, but of untied embeddings only the tokens' rows. */
export function stepWeightBytes(model: CausalLM): number {
  const untied = [...model.parameters.keys()].some((name) => name.startsWith('lm_head.'));
  return [...model.parameters]
    .filter(([name]) => !(untied && /\bembeddings?\.weight$/.test(name)))
    .reduce((sum, [, { size, dtype }]) => sum + size * dtypeBytes[dtype], 0);
}
