/** States in 16 bits: what they cost in accuracy, and that slow ones still move. */
import { AutoModelForCausalLM, FormatError, type CausalLM } from '../../lib';
import type { Device } from '../../lib/device';
import { selectiveScanPacked } from '../../lib/ops/scan';
import { scope, Tensor } from '../../lib/tensor';
import { encode, read } from '../../lib/verify/cases';
import { onEach } from '../devices';
import { randomIds, tinyConfig } from './checkpoints';

const narrow = ['bf16', 'f16'] as const;

async function logitsAfter(
  model: CausalLM,
  ids: Int32Array,
  pieces: readonly number[],
): Promise<Float64Array> {
  const state = model.createState();
  let begin = 0;
  let last: Float64Array | undefined;
  for (const length of pieces) {
    const inputIds = [ids.subarray(begin, begin + length)];
    const { logits } = await model.forward({ inputIds, state, logitsToKeep: 1 });
    last = await read(logits);
    logits.dispose();
    begin += length;
  }
  state.dispose();
  return last!;
}

const rms = (x: Float64Array) => Math.sqrt(x.reduce((sum, v) => sum + v * v, 0) / x.length);

describe.each(onEach)('stateDtype on %s', (_, device) => {
  const open = (stateDtype: 'f32' | 'bf16' | 'f16', dtype: 'f32' | 'bf16' = 'f32') =>
    AutoModelForCausalLM.fromConfig(tinyConfig, { device, dtype, stateDtype });

  it.each(narrow)('%s gives logits near those of f32, the same ones again', async (stateDtype) => {
    const [wide, model] = [await open('f32'), await open(stateDtype)];
    const ids = randomIds(40, 256, 3);
    const pieces = [11, ...Array<number>(29).fill(1)];
    const right = await logitsAfter(wide, ids, pieces);
    const got = await logitsAfter(model, ids, pieces);
    expect(await logitsAfter(model, ids, pieces)).toEqual(got);
    const off = rms(got.map((v, i) => v - right[i]!)) / rms(right);
    expect(off).toBeGreaterThan(0);
    expect(off).toBeLessThan(stateDtype === 'bf16' ? 0.03 : 0.004);
    for (const each of [wide, model]) each.dispose();
  });

  it.each(narrow)('%s goes into a snapshot, which another dtype refuses', async (stateDtype) => {
    const [wide, model] = [await open('f32'), await open(stateDtype)];
    const state = model.createState();
    (await model.forward({ inputIds: [[1, 2, 3]], state })).logits.dispose();
    const bytes = await state.snapshot();
    const copy = model.restoreState(bytes);
    const next = async (from: typeof state) =>
      read((await model.forward({ inputIds: [[4]], state: from })).logits);
    expect(await next(copy)).toEqual(await next(state));
    expect(() => wide.restoreState(bytes)).toThrow(FormatError);
    expect(() => wide.restoreState(bytes)).toThrow(new RegExp(`scan ${stateDtype}\\[`));
    for (const each of [state, copy, wide, model]) each.dispose();
  });

  // Rounded to the nearest, bf16 would stay at 1 and f16 too: a step takes off a tenth of a unit.
  it.each(narrow)('%s: a state decays under a constant input', async (dtype) => {
    const [steps, rate] = [800, dtype === 'bf16' ? 8e-4 : 1e-4];
    const left = await decayed(device, dtype, steps, rate);
    const wanted = Math.exp(-steps * rate);
    const mean = left.reduce((sum, v) => sum + v, 0) / left.length;
    expect(Math.abs(mean - wanted)).toBeLessThan(0.1 * (1 - wanted));
  });
});

/** States that were 1, after so many steps of one token without input. */
async function decayed(
  device: Device,
  dtype: 'bf16' | 'f16',
  steps: number,
  rate: number,
): Promise<Float64Array> {
  const [d, n] = [96, 16];
  const filled = (value: number, shape: readonly number[], dtype: 'f32' | 'bf16' | 'f16' = 'f32') => {
    const size = shape.reduce((a, b) => a * b, 1);
    return Tensor.from(encode(new Float32Array(size).fill(value), dtype), shape, { device, dtype });
  };
  const state = filled(1, [1, d, n], dtype);
  scope(() => {
    const zeros = filled(0, [1, d]);
    const inputs = {
      u: zeros,
      delta: filled(rate, [1, d]),
      A: filled(-1, [d, n]),
      B: filled(0, [1, 1, n]),
      C: filled(1, [1, 1, n]),
      offsets: Tensor.from(new Int32Array([0, 1]), [2], { device }),
      state,
    };
    for (let step = 0; step < steps; step++) selectiveScanPacked(inputs).dispose();
  });
  return read(state).finally(() => state.dispose());
}

describe('stateDtype', () => {
  it('is refused by name', async () => {
    const options = { stateDtype: 'f64' as never };
    await expect(AutoModelForCausalLM.fromConfig(tinyConfig, options)).rejects.toThrow(
      'fromConfig: stateDtype is f64, expected f32, bf16 or f16',
    );
    await expect(AutoModelForCausalLM.fromPretrained('test/fixtures/mamba-tiny', options)).rejects.toThrow(
      'fromPretrained: stateDtype is f64, expected f32, bf16 or f16',
    );
  });
});
