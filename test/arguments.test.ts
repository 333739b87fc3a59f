/** Every op × every argument × everything that can be wrong with it: refused by name, before any work. */
import '../lib/index';
import { DisposedError } from '../lib/errors';
import { ops, type Op } from '../lib/op';
import { Tensor, type DType } from '../lib/tensor';
import { inputsOf, toTensor } from '../lib/verify/cases';
import { devices, onEach } from './devices';

const everyOp = [...ops.entries()];
const everyInput = everyOp.flatMap(([name, op]) =>
  [...op.inputs.keys()].map((input) => [name, input, op] as const),
);

describe.each(onEach)('on %s', (_, device) => {
  const valid = (op: Op) =>
    Object.fromEntries(
      Object.entries(inputsOf(op, { sizes: {} })).map(([name, value]) => [name, toTensor(value, device)]),
    );

  /** The error of a call with some arguments replaced; fails if the device got any work or memory. */
  function refused(op: Op, wrong: Readonly<Record<string, unknown>>): Error {
    const args = { ...valid(op), ...wrong };
    const before = device.memoryUsage();
    let thrown: unknown;
    try {
      (op as (args: unknown) => unknown)(args);
    } catch (error) {
      thrown = error;
    }
    const { tensors, used } = device.memoryUsage();
    expect({ tensors, used }).toEqual({ tensors: before.tensors, used: before.used });
    expect(thrown).toBeInstanceOf(Error);
    return thrown as Error;
  }
  const empty = (shape: readonly number[], dtype: DType) => Tensor.empty(shape, dtype, device);

  describe.each(everyInput)('%s: %s', (name, input, op) => {
    const spec = op.inputs.get(input)!;
    const { shape, dtype } = valid(op)[input]!;
    const expectKind = (error: Error) => {
      expect(error).toBeInstanceOf(TypeError);
      expect(error.message).toContain(`${name}: ${input} is `);
    };

    it('refuses a wrong rank', () => {
      const more = shape.length < 4 ? [...shape, 1] : shape.slice(1);
      const less = shape.length > 1 && !(spec.forms.length > 1) ? shape.slice(1) : [1, 1, 1, 1];
      for (const wrong of [more, less]) {
        const error = refused(op, { [input]: empty(wrong, dtype) });
        expectKind(error);
        expect(error.message).toContain(`${dtype}[${wrong.join(',')}], expected ${spec.text}`);
      }
    });

    it('refuses a wrong dtype', () => {
      const form = spec.forms[0]!;
      const shared =
        [...op.inputs.values()].filter(({ forms }) => forms[0]!.letter === form.letter).length > 1;
      const fits = (other: DType) =>
        form.letter < 0 ? other === form.dtype : other === dtype || (!shared && other !== 'i32');
      for (const other of (['f32', 'bf16', 'f16', 'i32'] as const).filter((each) => !fits(each))) {
        const { message } = refused(op, { [input]: empty(shape, other) });
        // A wrong T in the first argument that has one shows in the next that disagrees.
        expect(message).toMatch(/^\w+: \w+ is (f32|bf16|f16|i32)\[[\d,]+\], expected /);
        if (other === 'i32' || form.letter < 0) expect(message).toContain(`${name}: ${input} is ${other}`);
      }
    });

    it('refuses a size that disagrees', () => {
      for (let dim = 0; dim < shape.length; dim++) {
        const { symbol } = spec.forms[0]!.dims[dim]!;
        const specs = [...op.inputs.values()];
        const uses = specs
          .flatMap(({ forms }) => forms[0]!.dims)
          .filter((each) => each.symbol === symbol).length;
        if (uses < 2) continue; // free
        const wrong = shape.map((size, i) => (i === dim ? size + 1 : size));
        const { message } = refused(op, { [input]: empty(wrong, dtype) });
        expect(message).toMatch(new RegExp(`^${name}: \\w+ (is|has) `));
        expect(message).toMatch(/is \d+ by \w+|expected/);
      }
    });

    it('refuses what is no tensor', () => {
      for (const wrong of [null, 3, 'tensor', [1, 2], new Float32Array(5), {}, true]) {
        if (op.inputs.size > 1) expectKind(refused(op, { [input]: wrong }));
        else expect(refused(op, { [input]: wrong }).message).toContain(`${name}: `);
      }
      if (!spec.optional && op.inputs.size > 1) expectKind(refused(op, { [input]: undefined }));
    });

    it('refuses a disposed tensor', () => {
      const gone = empty(shape, dtype);
      gone.dispose();
      const error = refused(op, { [input]: gone });
      expect(error).toBeInstanceOf(DisposedError);
      expect(error.message).toBe(`${name}: ${input} is disposed`);
    });

    it('refuses a tensor of another device', () => {
      const other = devices.find((each) => each !== device);
      if (!other || op.inputs.size < 2) return;
      const error = refused(op, { [input]: Tensor.empty(shape, dtype, other) });
      expect(error).toBeInstanceOf(TypeError);
      expect(error.message).toMatch(/ is on (cpu|cuda:0), expected (cpu|cuda:0)/);
    });
  });

  describe.each(everyOp)('%s', (name, op) => {
    const attrs = Object.entries(op.schema.attrs ?? {});

    it('refuses attributes of another kind', () => {
      for (const [attr, fallback] of attrs)
        for (const wrong of ['1', {}, [1], typeof fallback === 'boolean' ? 1 : true, Symbol('x')]) {
          const error = refused(op, { [attr]: wrong });
          expect(error).toBeInstanceOf(TypeError);
          expect(error.message).toContain(
            `${name}: ${attr} is ${String(wrong)}, expected a ${typeof fallback}`,
          );
        }
    });

    it('refuses unknown arguments', () => {
      const error = refused(op, { wieghts: 1 });
      expect(error).toBeInstanceOf(TypeError);
      expect(error.message).toBe(`${name}: there is no argument wieghts`);
      const alone = Tensor.from(new Float32Array(1), [1]);
      expect(() => (op as (args: unknown) => unknown)(alone)).toThrow(
        `${name}: the argument is a tensor, expected a record of tensors by their names`,
      );
      alone.dispose();
    });

    it('refuses dtypes that its output cannot have', () => {
      for (const dtype of ['f64', 'i32', 5, null]) {
        const error = refused(op, { dtype });
        expect(error).toBeInstanceOf(TypeError);
        expect(error.message).toMatch(new RegExp(`^${name}: (dtype is|there is no argument dtype)`));
      }
    });

    it('refuses to be called without tensors', () => {
      for (const args of [undefined, null, {}, 5]) {
        expect(() => (op as (args: unknown) => unknown)(args)).toThrow(`${name}: no tensor was given`);
      }
    });
  });

  describe('sizes that fit each other and still make no sense', () => {
    const sized = (name: string, sizes: Readonly<Record<string, readonly [readonly number[], DType]>>) => {
      const made = Object.entries(sizes).map(([input, [shape, dtype]]) => [input, empty(shape, dtype)]);
      return refused(ops.get(name)!, Object.fromEntries(made));
    };

    it('selective_scan: groups that do not divide the channels', () => {
      for (const g of [0, 2]) {
        const each = [[5, g, 5], 'f32'] as const;
        expect(sized('selective_scan', { B: each, C: each }).message).toBe(
          `selective_scan: B and C have ${g} groups, expected a divisor of d, which is 5`,
        );
      }
    });

    it('causal_conv1d: a kernel without taps', () => {
      const error = refused(ops.get('causal_conv1d')!, { weight: empty([5, 0], 'f32'), state: undefined });
      expect(error.message).toBe('causal_conv1d: weight has no taps, expected 1 or more');
    });

    it('sample: too few bits for the ids, or no ids', () => {
      expect(sized('sample', { logits: [[5, 33], 'f32'] }).message).toBe(
        'sample: seen has 1 columns, expected 2: one bit for each of 33 ids',
      );
      expect(sized('sample', { logits: [[5, 0], 'f32'] }).message).toContain('logits has no columns');
    });
  });
});
