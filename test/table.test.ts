/** Every op of the table on every device, held to its schema and to its reference in f64. */
import '../lib/index';
import type { Device } from '../lib/device';
import { mismatch, ops, type Op } from '../lib/op';
import { scope, Tensor, type DType } from '../lib/tensor';
import {
  attrsOf,
  attrsToTry,
  bits,
  completeSizes,
  describe as shapeOf,
  dtypeChoices,
  dtypesOf,
  inputsOf,
  read,
  roundTo,
  sizeNames,
  toStrided,
  toTensor,
  type Case,
} from './cases';
import { onEach } from './devices';
import { references, type Attrs, type Inputs } from './reference';

const everyOp = [...ops.entries()];
const sizesToTry = [0, 1, 3, 33, 257, 1025];

/** Largest difference to f64, as a share of the largest magnitude, in f32 arithmetic. */
const tolerance: Readonly<Record<string, number>> = {
  matmul: 2e-6, // sums of up to 1,025 products
  norm_matmul: 2e-6,
  selective_scan: 2e-6, // the bound that the fixtures are held to as well
  mamba_step: 7e-6, // of a convolution, two products and a scan, one after the other
};
/** What is made of a value that was rounded to a dtype on the way, and the letter of that dtype. */
const rounded: Readonly<Record<string, Readonly<Record<string, string>>>> = { norm_matmul: { y: 'T' } };
const tolerated = (op: Op) => tolerance[op.opName] ?? 1e-6;

type Results = Readonly<Record<string, Tensor>>;

/** Runs an op; what it updates in place counts as a result. */
function call(op: Op, args: Record<string, unknown>): Results {
  const made = (op as (args: unknown) => Tensor | Results | undefined)(args);
  const outputs = made instanceof Tensor ? { [[...op.outputs.keys()][0]!]: made } : (made ?? {});
  const updated = [...op.inputs].filter(([name, { inPlace }]) => inPlace && args[name]);
  return { ...outputs, ...Object.fromEntries(updated.map(([name]) => [name, args[name] as Tensor])) };
}

function tensorsOf(op: Op, each: Case, device: Device, place = toTensor) {
  return Object.fromEntries(
    Object.entries(inputsOf(op, each)).map(([name, value]) => [name, place(value, device)]),
  );
}

const largest = (x: Float64Array) => x.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
function difference(a: Float64Array, b: Float64Array): number {
  return a.reduce((most, v, i) => (Number.isNaN(v) ? Infinity : Math.max(most, Math.abs(v - b[i]!))), 0);
}

/**
 * Fails unless `got` is as near to f64 as its dtype and f32 arithmetic allow. `plain` is what f64 gives
 * when what the op rounds on the way is rounded; `within` a dtype that it was made of.
 */
function expectNear(
  op: Op,
  name: string,
  got: Float64Array,
  want: Float64Array,
  plain: Float64Array,
  dtype: DType,
  within: DType = 'f32',
): void {
  expect(got.length).toBe(want.length);
  if (dtype === 'i32') return expect([...got]).toEqual([...want]);
  const rounding = (to: DType) => (to === 'f32' ? 0 : difference(roundTo(want, to), want));
  const allowed =
    tolerated(op) * largest(want) + 2 * (difference(plain, want) + rounding(dtype) + rounding(within));
  const error = difference(got, want);
  if (error > allowed) {
    throw new Error(
      `${op.opName}: ${name} is ${error} from f64, at most ${allowed} allowed (largest ${largest(want)})`,
    );
  }
}

async function checkCase(op: Op, device: Device, each: Case): Promise<void> {
  const given: Attrs = { ...attrsOf(op, each.sizes), ...each.attrs };
  const inputs = inputsOf(op, each);
  const free = each.dtypes?.['Y'] ? { dtype: each.dtypes['Y'] } : {};
  const attrs: Attrs = { ...op.schema.attrs, ...given };
  const results = call(op, { ...tensorsOf(op, each, device), ...given, ...free });
  const wanted: Inputs = { ...references[op.opName]!(inputs, attrs) };
  const rounding = inputsOf(op, each);
  const round = (data: Float64Array) => roundTo(data, each.dtypes?.['T'] ?? 'f32');
  const plain: Inputs = each.dtypes?.['T']
    ? { ...rounding, ...references[op.opName]!(rounding, attrs, round) }
    : { ...inputs, ...wanted };
  for (const [name, tensor] of Object.entries(results)) {
    const spec = op.outputs.get(name) ?? op.inputs.get(name)!;
    const dtypes = dtypesOf(op, each.dtypes);
    const [dtype, shape] = shapeOf(spec.text, completeSizes(op, each.sizes), dtypes);
    expect([name, tensor.dtype, tensor.shape]).toEqual([name, dtype, shape]);
    const want = (wanted[name] ?? inputs[name])!.data;
    const within = dtypes[rounded[op.opName]?.[name] ?? ''];
    expectNear(op, name, await read(tensor), want, plain[name]!.data, tensor.dtype, within);
  }
  for (const tensor of Object.values(results)) tensor.dispose();
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
      const names = sizeNames(op).filter((size) => !(/scan|mamba/.test(name) && size === 'n'));
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
        const dense = call(op, { ...tensorsOf(op, each, device), ...attrsOf(op, each.sizes) });
        const strided = call(op, {
          ...tensorsOf(op, each, device, toStrided),
          ...attrsOf(op, each.sizes),
        });
        for (const result of Object.keys(dense)) {
          const wanted = await read(dense[result]!);
          const got = strided[result]!;
          expect(await readRows(got)).toEqual(wanted);
        }
      }
    });

    it('gives the same bits twice', async () => {
      const each: Case = { sizes: { t: 40, d: 150, m: 20, n: 70, k: 130 } };
      const [first, second] = [0, 1].map(() =>
        call(op, { ...tensorsOf(op, each, device), ...attrsOf(op, each.sizes) }),
      );
      for (const result of Object.keys(first!)) {
        expect((await bits(second![result]!)).equals(await bits(first![result]!))).toBe(true);
      }
    });

    it('leaves no tensor behind but its outputs', () => {
      const before = device.memoryUsage().tensors;
      scope(() => {
        const given = tensorsOf(op, { sizes: {} }, device);
        const results = call(op, { ...given, ...attrsOf(op, {}) });
        const made = new Set([...Object.values(given), ...Object.values(results)]);
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
