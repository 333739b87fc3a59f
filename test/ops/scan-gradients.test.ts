/** The scan's gradients against those that another program computed in f64. */
import { join } from 'node:path';
import '../../lib/index';
import { grad } from '../../lib/autograd/grad';
import { openSafetensors } from '../../lib/io/safetensors';
import { selectiveScanPacked } from '../../lib/ops/scan';
import { scope, Tensor } from '../../lib/tensor';
import { ops } from '../../lib/op';
import { inputsOf, read, toTensor, type Case } from '../../lib/verify/cases';
import { argumentsOf, call, disposeAll, measure } from '../../lib/verify/measure';
import { onEach } from '../devices';
import { relativeError } from '../same';

const file = join(__dirname, '..', 'fixtures', 'selective-scan', 'cases.safetensors');

interface Values {
  readonly shape: readonly number[];
  readonly data: Float64Array;
}

/** (batch, dim..., length) to packed tokens (batch · length, dim...); anything else as it is. */
function packed({ shape, data }: Values): Values {
  if (shape.length < 3) return { shape, data };
  const [batch, length] = [shape[0]!, shape.at(-1)!];
  const dims = shape.slice(1, -1);
  const width = dims.reduce((a, b) => a * b, 1);
  const out = data.map((_, at) => {
    const [b, t, c] = [Math.floor(at / (length * width)), Math.floor(at / width) % length, at % width];
    return data[(b * width + c) * length + t]!;
  });
  return { shape: [batch * length, ...dims], data: out };
}

async function open() {
  const opened = await openSafetensors(file);
  const load = async (name: string): Promise<Values | undefined> => {
    const info = opened.tensors.get(name);
    if (!info) return undefined;
    const wide = info.dtype === 'F64';
    const raw = new (wide ? Float64Array : Float32Array)((info.end - info.begin) / (wide ? 8 : 4));
    await opened.read(info, new Uint8Array(raw.buffer));
    return packed({ shape: info.shape, data: Float64Array.from(raw) });
  };
  return { load, close: () => opened.close() };
}

describe.each(onEach)('on %s', (_, device) => {
  it.each([0, 1, 2, 3, 4, 5, 6, 7])('case %i', async (i) => {
    const { load, close } = await open();
    try {
      const names = ['u', 'delta', 'A', 'B', 'C', 'D', 'z', 'delta_bias'] as const;
      const given = new Map<string, Tensor>();
      for (const name of names) {
        const values = await load(`${i}.${name}`);
        if (values) given.set(name, toTensor({ ...values, dtype: 'f32' }, device));
      }
      const [tokens] = given.get('u')!.shape as [number];
      const length = await openLength(i);
      const offsets = Tensor.from(
        Int32Array.from({ length: tokens / length + 1 }, (_, s) => s * length),
        undefined,
        { device },
      );
      const of = (name: string) => given.get(name)!;
      const seed = toTensor({ ...(await load(`${i}.dout`))!, dtype: 'f32' }, device);
      const { value, gradients } = grad(
        () =>
          scope(() =>
            selectiveScanPacked({
              u: of('u'),
              delta: of('delta'),
              A: of('A'),
              B: of('B'),
              C: of('C'),
              D: given.get('D'),
              z: given.get('z'),
              deltaBias: given.get('delta_bias'),
              offsets,
              deltaSoftplus: given.has('delta_bias'),
            }),
          ),
        [...given.values()],
        { seed },
      );
      const wanted = await load(`${i}.out`);
      expect(relativeError(await read(value), wanted!.data)).toBeLessThan(1e-5);
      for (const [k, name] of [...given.keys()].entries()) {
        const right = (await load(`${i}.grad.${name}`))!;
        expect([name, right.shape]).toEqual([name, gradients[k]!.shape]);
        expect([name, relativeError(await read(gradients[k]!), right.data) < 1e-5]).toEqual([name, true]);
      }
      for (const tensor of [value, seed, offsets, ...gradients, ...given.values()]) tensor.dispose();
    } finally {
      await close();
    }
  });

  // On a GPU 128 channels are four warps of a block, which share memory that the call before had, too.
  it.each([1, 20, 33, 100])('%i channels after a call of no numbers', async (d) => {
    const op = ops.get('selective_scan_backward')!;
    const of = (d: number): Case => ({ sizes: { t: 200, d, n: 16, g: 1, s: 2 } });
    const inputs = inputsOf(op, of(128));
    for (const { dtype, data } of Object.values(inputs)) if (dtype !== 'i32') data.fill(NaN);
    const args = argumentsOf(op, of(128), device, toTensor, inputs);
    disposeAll(call(op, args), args);
    for (const { result, error, bound } of await measure(op, device, of(d)))
      expect([result, error <= bound]).toEqual([result, true]);
  });
});

/** The length of a case's sequences, which packing forgets. */
async function openLength(i: number): Promise<number> {
  const opened = await openSafetensors(file);
  const length = opened.tensors.get(`${i}.u`)!.shape.at(-1)!;
  await opened.close();
  return length;
}
