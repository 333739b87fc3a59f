/** Every op of the table on every device, held to its schema and to its reference in f64. */
import '../lib/index';
import type { Device } from '../lib/device';
import { mismatch, ops, type Op } from '../lib/op';
import { scope, tensorsIn, type Tensor } from '../lib/tensor';
import { attrsToTry, bits, dtypeChoices, read, sizeNames, toStrided, type Case } from '../lib/verify/cases';
import { argumentsOf, call, measure } from '../lib/verify/measure';
import { references } from '../lib/verify/reference';
import { onEach } from './devices';

const everyOp = [...ops.entries()];
const sizesToTry = [0, 1, 3, 33, 257, 1025];

/** Fails unless all results are as near to f64 as their dtypes and f32 arithmetic allow. */
async function checkCase(op: Op, device: Device, each: Case): Promise<void> {
  for (const { result, error, bound } of await measure(op, device, each)) {
    if (error <= bound) continue;
    throw new Error(
      `${op.opName}: ${result} is ${error} from f64, at most ${bound} allowed, of the largest magnitude; ${JSON.stringify(each)}`,
    );
  }
}

describe.each(onEach)('on %s', (_, device) => {
  it('every kernel has an op, and every op a kernel of its signature', () => {
    expect([...device.kernels.keys()].filter((name) => !ops.has(name))).toEqual([]);
    const wrong = everyOp.map(([name, op]) => {
      const kernel = device.kernels.get(name);
      return kernel ? mismatch(op, kernel.signature) : `${name} has no kernel`;
    });
    expect(wrong.filter(Boolean)).toEqual([]);
  });

  describe.each(everyOp)('%s', (name, op) => {
    const optional = [...op.inputs].filter(([, spec]) => spec.optional).map(([input]) => input);

    it('has a reference', () => expect(references).toHaveProperty(name));

    it('takes every size', async () => {
      const names = sizeNames(op).filter((size) => !(/scan|mamba|s4d_kernel/.test(name) && size === 'n'));
      for (const size of names)
        for (const n of sizesToTry) await checkCase(op, device, { sizes: { [size]: n }, seed: n });
    });

    it('takes every dtype', async () => {
      for (const dtypes of dtypeChoices(op))
        for (const n of [5, 33]) await checkCase(op, device, { sizes: { [sizeNames(op)[1]!]: n }, dtypes });
    });

    it('can do without what is optional', async () => {
      for (const without of [optional, ...optional.map((each) => [each])])
        await checkCase(op, device, { sizes: {}, without });
    });

    it('takes every form and attribute', async () => {
      for (const form of [0, 1])
        for (const attrs of [{}, ...attrsToTry(op)])
          for (const T of ['f32', 'bf16'] as const)
            await checkCase(op, device, { sizes: { d: 35 }, form, attrs, dtypes: { T } });
    });

    it('gives the same bits for strided rows', async () => {
      for (const T of ['f32', 'bf16', 'f16'] as const) {
        const each: Case = { sizes: { t: 6, d: 37, m: 9, k: 70 }, dtypes: { T, W: T, Y: T } };
        const dense = call(op, argumentsOf(op, each, device));
        const strided = call(op, argumentsOf(op, each, device, toStrided));
        for (const result of Object.keys(dense)) {
          const wanted = await read(dense[result]!);
          const got = strided[result]!;
          expect(await readRows(got)).toEqual(wanted);
        }
      }
    });

    it('gives the same bits twice', async () => {
      const each: Case = { sizes: { t: 40, d: 150, m: 20, n: 70, k: 130 } };
      const [first, second] = [0, 1].map(() => call(op, argumentsOf(op, each, device)));
      for (const result of Object.keys(first!)) {
        expect((await bits(second![result]!)).equals(await bits(first![result]!))).toBe(true);
      }
    });

    it('leaves no tensor behind but its outputs', () => {
      const before = device.memoryUsage().tensors;
      scope(() => {
        const given = argumentsOf(op, { sizes: {} }, device);
        const results = call(op, given);
        const made = new Set([...tensorsIn(given), ...Object.values(results)]);
        expect(device.memoryUsage().tensors - before).toBe(made.size);
      });
      expect(device.memoryUsage().tensors).toBe(before);
    });
  });
});

/** The contents of a tensor whose rows may be strided: row by row. */
async function readRows(tensor: Tensor): Promise<Float64Array> {
  if (tensor.dense) return await read(tensor);
  const rows = Array.from({ length: tensor.shape[0]! }, (_, i) => read(tensor.rows(i, i + 1)));
  return Float64Array.from((await Promise.all(rows)).flatMap((row) => [...row]));
}
