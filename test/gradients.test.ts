/** The gradient rule of every op that has one, against differences of its reference in f64. */
import '../lib/index';
import { grad } from '../lib/autograd/grad';
import type { Device } from '../lib/device';
import { ops, type Op } from '../lib/op';
import { scope, type Tensor } from '../lib/tensor';
import {
  attrsOf,
  inputsOf,
  normal,
  randomFrom,
  read,
  toStrided,
  toTensor,
  type Case,
} from '../lib/verify/cases';
import { onEach } from './devices';
import { references, values, type Attrs, type Inputs, type Values } from '../lib/verify/reference';

const differentiable = [...ops.entries()].filter(([, op]) => op.schema.vjp);

const copy = (inputs: Inputs): Inputs =>
  Object.fromEntries(
    Object.entries(inputs).map(([name, value]) => [name, { ...value, data: value.data.slice() }]),
  );
const dot = (a: Float64Array, b: Float64Array) => a.reduce((sum, v, i) => sum + v * b[i]!, 0);

/** d(Σ seed · output) / d(input), by central differences. */
function differences(op: Op, inputs: Inputs, attrs: Attrs, output: string, seed: Values, input: string) {
  const value = (i: number, step: number) => {
    const moved = copy(inputs);
    moved[input]!.data[i]! += step;
    return dot(references[op.opName]!(moved, attrs)[output]!.data, seed.data);
  };
  return inputs[input]!.data.map((_, i) => (value(i, 1e-5) - value(i, -1e-5)) / 2e-5);
}

async function check(op: Op, device: Device, each: Case, place = toTensor): Promise<void> {
  const constants: Attrs = { ...attrsOf(op, each.sizes), ...each.attrs };
  const attrs: Attrs = { ...op.schema.attrs, ...constants };
  const inPlace = [...op.inputs].filter(([, spec]) => spec.inPlace).map(([name]) => name);
  const inputs = inputsOf(op, { ...each, without: [...(each.without ?? []), ...inPlace] });
  const wanted = references[op.opName]!(copy(inputs), attrs);
  for (const [output, spec] of op.outputs) {
    if (spec.text.startsWith('i32')) continue; // a choice

    const random = randomFrom(7);
    const seed = values(...wanted[output]!.shape);
    seed.data.forEach((_, i) => (seed.data[i] = Math.fround(normal(random))));
    const dy = toTensor({ ...seed, dtype: 'f32' }, device);
    const args = Object.fromEntries(
      Object.entries(inputs).map(([name, value]) => [name, place(value, device)]),
    );
    const floats = Object.keys(inputs).filter((name) => inputs[name]!.dtype !== 'i32');
    const before = device.memoryUsage().tensors;
    const y = () => {
      const made = (op as (args: unknown) => Tensor | Record<string, Tensor>)({ ...args, ...constants });
      return op.outputs.size > 1 ? (made as Record<string, Tensor>)[output]! : (made as Tensor);
    };
    const { value, gradients } = grad(
      () => scope(y),
      floats.map((name) => args[name]!),
      { seed: dy },
    );
    // Nothing is left behind but what was asked for.
    expect(device.memoryUsage().tensors - before).toBe(1 + floats.length);
    for (const [i, name] of floats.entries()) {
      const got = await read(gradients[i]!);
      const want = differences(op, inputs, attrs, output, seed, name);
      const largest = want.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-3);
      const error = got.reduce((most, v, j) => Math.max(most, Math.abs(v - want[j]!)), 0);
      if (!(error <= 2e-5 * largest))
        throw new Error(`${op.opName}: d${output}/d${name} is ${error} off, largest ${largest}`);
    }
    for (const tensor of [value, ...gradients, dy, ...Object.values(args)]) tensor.dispose();
  }
}

describe.each(onEach)('on %s', (_, device) => {
  it.each(differentiable)('%s', async (_name, op) => {
    const flags = Object.entries(op.schema.attrs ?? {}).filter(([, value]) => typeof value === 'boolean');
    const optional = [...op.inputs].filter(([, spec]) => spec.optional).map(([name]) => name);
    const run = (each: Case, place?: typeof toTensor) => check(op, device, each, place);
    await run({ sizes: {} });
    await run({ sizes: { t: 1, d: 3 } });
    await run({ sizes: { t: 7, d: 9, n: 3 } }, toStrided);
    for (const name of optional) await run({ sizes: {}, without: [name] });
    await run({ sizes: {}, without: optional });
    if ([...op.inputs.values()].some(({ forms }) => forms.length > 1)) await run({ sizes: {}, form: 1 });
    for (const [flag, value] of flags) await run({ sizes: {}, attrs: { [flag]: !value } });
  });
});
