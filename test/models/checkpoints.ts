import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { AutoModelForCausalLM, device, type CausalLM, type Ids, type Tensor } from '../../lib';
import { FIXTURES } from '../io/folder';

export { FIXTURES, temporaryFolder } from '../io/folder';
export { relativeError } from '../same';

/** The sizes of mamba-tiny, for models that a test starts afresh. */
export const tinyConfig = {
  model_type: 'mamba',
  vocab_size: 256,
  hidden_size: 64,
  num_hidden_layers: 2,
  state_size: 16,
  eos_token_id: 2,
} as const;

/** Opens a fixture on the device under test. bf16 weights are computed with in f32, on a GPU as well. */
export async function open(name: string): Promise<CausalLM> {
  const dtype = device().id === 'cpu' ? 'auto' : 'f32';
  return AutoModelForCausalLM.fromPretrained(join(FIXTURES, name), { dtype });
}

/** The tensors of a safetensors file: numbers and their shape. */
export function answers(name: string, file = 'expected.safetensors') {
  const bytes = readFileSync(join(FIXTURES, name, file));
  const begin = 8 + Number(bytes.readBigUInt64LE());
  type Entry = { readonly dtype: string; readonly shape: number[]; readonly data_offsets: [number, number] };
  const header = JSON.parse(bytes.toString('utf8', 8, begin)) as Readonly<Record<string, Entry>>;
  return (tensor: string) => {
    const { dtype, shape, data_offsets } = header[tensor]!;
    const { buffer } = new Uint8Array(bytes.subarray(begin + data_offsets[0], begin + data_offsets[1]));
    return { shape, values: dtype === 'I32' ? new Int32Array(buffer) : new Float32Array(buffer) };
  };
}

/** `values` as rows of `width`. */
export function rowsOf<T extends Int32Array | Float32Array>(values: T, width: number): T[] {
  return Array.from(
    { length: values.length / width },
    (_, i) => values.subarray(i * width, (i + 1) * width) as T,
  );
}

/** Reads an f32 tensor and disposes it. */
export async function take(tensor: Tensor): Promise<Float32Array> {
  const values = (await tensor.data()) as Float32Array;
  tensor.dispose();
  return values;
}

/** The logits of one sequence, [length · vocabSize]. */
export async function logitsOf(model: CausalLM, ids: Ids): Promise<Float32Array> {
  return take((await model.forward({ inputIds: ids })).logits);
}

/** Equal for arrays of the same bits; jest takes seconds to compare a million numbers. */
export function bits({ buffer, byteOffset, byteLength }: Float32Array): string {
  return createHash('sha256')
    .update(new Uint8Array(buffer, byteOffset, byteLength))
    .digest('hex');
}

/** Token ids that are the same in every run. */
export function randomIds(length: number, vocabSize = 256, seed = 1): Int32Array {
  let x = seed;
  return Int32Array.from({ length }, () => {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    return Math.floor((x / 2 ** 32) * vocabSize);
  });
}

/** Live handles and bytes on the device under test. */
export function inUse() {
  const { tensors, used } = device().memoryUsage();
  return { tensors, used };
}
