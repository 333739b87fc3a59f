// In processes of its own: `peak.ts <folder> write` makes a model of 200 MB, `peak.ts <folder> pickle` makes
// pytorch_model.bin of it, `peak.ts <folder> <dtype>` loads it and says how much memory that took, and
// how much there was before.
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { AutoModelForCausalLM, device, type ModelOptions } from '../../lib';
import { openCheckpoint } from '../../lib/io/checkpoint';
import { dict, storage, tensor, text, torchFile } from '../io/torch-files';

const [folder, what] = process.argv.slice(2) as [string, string];

async function write(): Promise<void> {
  const config = { model_type: 'mamba', vocab_size: 4096, hidden_size: 1536, num_hidden_layers: 3 };
  const model = await AutoModelForCausalLM.fromConfig(config);
  await model.savePretrained(folder);
}

/** Every other matrix is stored transposed, as `tensor.t()` is. */
async function pickle(): Promise<void> {
  const checkpoint = await openCheckpoint(folder);
  const storages: Record<string, Uint8Array> = {};
  const entries: [Uint8Array, Uint8Array][] = [];
  for (const [i, name] of checkpoint.names().entries()) {
    const { begin, end, shape } = checkpoint.info(name);
    storages[i] = new Uint8Array(end - begin);
    await checkpoint.read(name, storages[i]);
    const isTransposed = i % 2 === 1 && shape.length === 2;
    const strides = shape.map((_, k) => shape.slice(k + 1).reduce((a, b) => a * b, 1));
    const place = storage(`${i}`, (end - begin) / 4);
    entries.push([text(name), tensor(place, shape, isTransposed ? [1, shape[0]!] : strides)]);
  }
  await checkpoint.close();
  writeFileSync(join(folder, 'pytorch_model.bin'), torchFile({ root: dict(...entries), storages }));
  rmSync(join(folder, 'model.safetensors'));
}

const memory = (name: 'VmRSS' | 'VmHWM') =>
  Number(new RegExp(`${name}:\\s*(\\d+) kB`).exec(readFileSync('/proc/self/status', 'utf8'))![1]) * 1024;

async function load(dtype: ModelOptions['dtype']): Promise<void> {
  const { info } = device();
  const before = memory('VmRSS');
  const model = await AutoModelForCausalLM.fromPretrained(folder, { dtype });
  const weights = [...model.parameters.values()].reduce(
    (sum, { size, dtype }) => sum + size * (dtype === 'f32' ? 4 : 2),
    0,
  );
  console.log(JSON.stringify({ weights, before, peak: memory('VmHWM'), onCpu: info.id === 'cpu' }));
}
void (what === 'write' ? write() : what === 'pickle' ? pickle() : load(what as ModelOptions['dtype']));
