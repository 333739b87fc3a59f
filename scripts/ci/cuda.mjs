// The CUDA device of this checkout. With a card: its ops agree with the CPU's, directly and captured.
// Without one: it declines with the reason, as a DeviceError, and the CPU goes on.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { DeviceError, Tensor, addRmsNorm, capture, device, rmsNorm } from '../../index.mjs';

const tolerance = { f32: 1e-5, bf16: 2 ** -7, f16: 2 ** -10 }; // of f16 and bf16: one unit in the last place

function values(count, seed) {
  return Float32Array.from({ length: count }, (_, i) => Math.sin(i * 12.9898 + seed) * 3);
}

/** Both norms of a [t, d] input of `dtype` on `on`, with every second row of a wider tensor. */
async function norms(on, dtype, t, d) {
  const place = (data, shape) => Tensor.from(data, shape, { device: on });
  const ones = Tensor.from(new Float32Array(d).fill(1), [d], { device: 'cpu' });
  const raw = Tensor.from(values(t * 2 * d, 1), [2 * t, d], { device: 'cpu' });
  const bits = await rmsNorm({ x: raw, weight: ones, dtype }).data(); // the CPU rounds to dtype
  const wide = Tensor.from(bits, [t, 2 * d], { device: on, dtype });
  const x = wide.columns(d, 2 * d);
  const weight = place(values(d, 2), [d]);
  const residual = place(values(t * d, 3), [t, d]);
  const run = () => ({ ...addRmsNorm({ x, residual, weight }), plain: rmsNorm({ x, weight, dtype: 'f32' }) });
  const graph = capture(device(on), run);
  graph.replay();
  const results = [];
  for (const made of [run(), graph.result])
    for (const name of Object.keys(made).sort())
      results.push({ dtype: made[name].dtype, data: await made[name].data() });
  graph.dispose();
  return results;
}

function toFloats({ dtype, data }) {
  if (dtype === 'f32') return data;
  if (dtype === 'bf16') return new Float32Array(Uint32Array.from(data, (bits) => bits << 16).buffer);
  return Float32Array.from(data, (bits) => {
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
    return bits & 0x8000 ? -size : size;
  });
}

if (existsSync('/proc/driver/nvidia/version')) {
  const { name, detail } = device('cuda').info;
  console.log(`cuda: ${name}, ${detail}`);
  for (const dtype of ['f32', 'bf16', 'f16'])
    for (const [t, d] of [
      [0, 8],
      [1, 1],
      [3, 33],
      [5, 256],
      [7, 1025],
      [2, 5120],
    ]) {
      const [cpu, cuda] = [await norms('cpu', dtype, t, d), await norms('cuda', dtype, t, d)];
      cpu.forEach((expected, i) => {
        const [want, got] = [toFloats(expected), toFloats(cuda[i])];
        want.forEach((value, j) => {
          const error = Math.abs(got[j] - value);
          assert.ok(
            error <= tolerance[expected.dtype] * Math.max(Math.abs(value), 2 ** -13),
            `${dtype} [${t},${d}] result ${i} at ${j}: ${got[j]} on cuda, ${value} on the CPU`,
          );
        });
      });
    }
  console.log('rms_norm and add_rms_norm agree with the CPU, directly and captured');
} else {
  assert.throws(
    () => device('cuda'),
    (error) => {
      console.log(`declined: ${error.message}`);
      return error instanceof DeviceError && /libselective_scan_cuda\.so: .*driver/.test(error.message);
    },
  );
  assert.deepEqual([...(await Tensor.from([1, 2]).data())], [1, 2]);
}
