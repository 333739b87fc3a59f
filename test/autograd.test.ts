/** The tape: fan-out, views, micro-batches, rematerialisation, what it refuses, what it leaves behind. */
import { grad, noGrad } from '../lib/autograd/grad';
import { derivedBy, remat } from '../lib/autograd/remat';
import { together } from '../lib/autograd/together';
import { activate } from '../lib/ops/experts';
import { accumulate, add, cast, fill, mul, negExp } from '../lib/ops/elementwise';
import { matmul } from '../lib/ops/matmul';
import { rmsNorm } from '../lib/ops/norm';
import { causalConv1dPacked } from '../lib/ops/scan';
import { sinkhorn } from '../lib/ops/routing';
import { observing } from '../lib/op';
import { scope, Tensor } from '../lib/tensor';
import { onEach } from './devices';

describe.each(onEach)('on %s', (_, on) => {
  const made: Tensor[] = [];
  const matrix = (values: readonly number[], columns = values.length): Tensor => {
    const tensor = Tensor.from(values, [values.length / columns, columns], { device: on });
    made.push(tensor);
    return tensor;
  };
  /** The gradients of the sum of what `fn` gives. */
  const gradients = async (fn: () => Tensor, ...parameters: Tensor[]) => {
    const { value, gradients: all } = grad(fn, parameters);
    made.push(value, ...all);
    return await Promise.all(all.map(async (tensor) => [...(await tensor.data())]));
  };
  afterEach(() => {
    for (const tensor of made.splice(0)) tensor.dispose();
    expect(on.memoryUsage().tensors).toBe(0);
  });

  it('sums what comes from several uses', async () => {
    const x = matrix([2, 3]);
    expect(await gradients(() => scope(() => add(mul(x, x), x)), x)).toEqual([[5, 7]]);
  });

  it('takes ops together as one step, by the rule that is given for them', async () => {
    const steps: string[] = [];
    const cube = together(
      {
        name: 'cube',
        saves: ['x'],
        // A tenth of what the ops' own rules give: it is this one that counts.
        vjp: ({ args, grad }) => ({ x: mul(grad['y']!, mul(args['x'] as Tensor, matrix([0.3, 0.3]))) }),
      },
      ({ x }: { readonly x: Tensor }) => ({ y: mul(mul(x, x), x) }),
    );
    const x = matrix([2, 3]);
    const plain = scope(() => cube({ x }).y);
    made.push(plain);
    expect([...(await plain.data())]).toEqual([8, 27]);
    const { value, gradients: all } = grad(() => scope(() => cube({ x }).y), [x], {
      watch: (name) => steps.push(name),
    });
    made.push(value, ...all);
    expect([...(await value.data())]).toEqual([8, 27]);
    expect(steps).toEqual(['cube']);
    const [first, second] = [...(await all[0]!.data())];
    expect([first, second]).toEqual([Math.fround(0.6), expect.closeTo(0.9, 6)]);
  });

  it('keeps apart what a rule gives twice', async () => {
    const [a, b] = [matrix([2, 3]), matrix([5, 7])];
    // add hands the same gradient to both; a then gets more of its own.
    expect(await gradients(() => scope(() => add(add(a, b), mul(a, b))), a, b)).toEqual([
      [6, 8],
      [3, 4],
    ]);
  });

  it('puts the gradients of views into those of their base', async () => {
    const x = matrix([1, 2, 3, 4, 5, 6, 7, 8], 4);
    const left = () => x.columns(0, 2);
    const right = () => x.columns(2, 4);
    expect(await gradients(() => scope(() => mul(left(), right())), x)).toEqual([[3, 4, 1, 2, 7, 8, 5, 6]]);
    expect(await gradients(() => scope(() => mul(x.rows(0, 1), x.rows(1, 2))), x)).toEqual([
      [5, 6, 7, 8, 1, 2, 3, 4],
    ]);
    const flat = () => x.reshape([8, 1]).reshape([2, 2, 2]).reshape([2, 4]).columns(1, 3);
    expect(await gradients(() => scope(() => mul(flat(), left())), x)).toEqual([[2, 4, 2, 0, 6, 12, 6, 0]]);
  });

  it('has rules write into the gradient of a base, and zeros where none did', async () => {
    const x = matrix([1, 2, 3, 4, 5, 6, 7, 8], 4);
    const taps = matrix([2, 3, 5, 7], 2);
    const offsets = Tensor.from(Int32Array.of(0, 2), [2], { device: on });
    const slots = Tensor.from(Int32Array.of(0), [1], { device: on });
    made.push(offsets, slots);
    const conv = (part: Tensor) => causalConv1dPacked({ x: part, weight: taps, offsets, slots });
    const doubled = () => add(x, x); // its gradient is no parameter's
    const alone = await gradients(() => scope(() => conv(doubled().columns(1, 3))), x);
    expect(alone).toEqual([[0, 10, 24, 0, 0, 6, 14, 0]]);
    const halves = () => {
      const both = doubled();
      return add(conv(both.columns(0, 2)), mul(both.columns(2, 4), both.columns(2, 4)));
    };
    expect(await gradients(() => scope(halves), x)).toEqual([[10, 24, 24, 32, 6, 14, 56, 64]]);
    const overlapping = () => {
      const both = doubled();
      return add(conv(both.columns(0, 2)), conv(both.columns(1, 3)));
    };
    expect(await gradients(() => scope(overlapping), x)).toEqual([[10, 34, 24, 0, 6, 20, 14, 0]]);
    const whole = () => {
      const both = doubled();
      return add(conv(both.columns(1, 3)), mul(both, both).columns(0, 2));
    };
    expect(await gradients(() => scope(whole), x)).toEqual([[8, 26, 24, 0, 40, 54, 14, 0]]);
  });

  it('has a rule write to two parts of one gradient, unless they overlap', async () => {
    const x = matrix([1, 2, 3, 4, 5, 6, 7, 8], 4);
    const product = (part: readonly [number, number], other: readonly [number, number]) =>
      gradients(
        () =>
          scope(() => {
            const both = add(x, x);
            return activate({ x: both.columns(...part), factor: both.columns(...other) }); // ReLU of what is positive
          }),
        x,
      );
    expect(await product([0, 2], [2, 4])).toEqual([[12, 16, 4, 8, 28, 32, 20, 24]]);
    expect(await product([2, 4], [0, 2])).toEqual([[12, 16, 4, 8, 28, 32, 20, 24]]);
    expect(await product([0, 2], [1, 3])).toEqual([[8, 16, 8, 0, 24, 48, 24, 0]]);
    expect(await product([1, 3], [1, 3])).toEqual([[0, 16, 24, 0, 0, 48, 56, 0]]);
  });

  it('gives zeros to a parameter that nothing depends on', async () => {
    const [x, unused] = [matrix([1, 2]), matrix([3, 4])];
    expect(await gradients(() => add(x, x), x, unused)).toEqual([
      [2, 2],
      [0, 0],
    ]);
  });

  it('stops at noGrad', async () => {
    const x = matrix([2, 3]);
    const squared = () =>
      scope(() =>
        mul(
          x,
          noGrad(() => mul(x, x)),
        ),
      );
    expect(await gradients(squared, x)).toEqual([[4, 9]]);
  });

  it('casts gradients back', async () => {
    const x = matrix([1, 2]);
    const y = () => scope(() => cast({ x: cast({ x, dtype: 'bf16' }), dtype: 'f32' }));
    expect(await gradients(y, x)).toEqual([[1, 1]]);
  });

  it('counts copies of another dtype for their parameters', async () => {
    const [x, weight] = [matrix([2, 3]), matrix([5, 7, 11, 13], 2)];
    const copy = cast({ x: weight, dtype: 'bf16' });
    const y = () => scope(() => mul(matmul({ x, weight: copy }), matmul({ x, weight: copy.rows(0, 2) })));
    const { value, gradients: all } = grad(y, [weight], { copies: new Map([[copy, weight]]) });
    made.push(value, copy, ...all);
    expect(String(all[0])).toBe('f32[2,2]');
    // y = (w · x)², so its gradient is 2 (w · x) x.
    expect([...(await all[0]!.data())]).toEqual([124, 186, 244, 366]);
  });

  it('adds up micro-batches', async () => {
    const x = matrix([2, 3]);
    const { value, gradients: sums } = grad(() => mul(x, x), [x]);
    const again = grad(() => mul(x, x), [x], { into: sums, seed: matrix([10, 100]) });
    expect([...(await sums[0]!.data())]).toEqual([4 + 40, 6 + 600]);
    expect(again.gradients[0]).toBe(sums[0]);
    made.push(value, again.value, ...sums);
  });

  it('overwrites what is given where it is asked to, also where nothing is given to it', async () => {
    const [x, weight] = [matrix([2, 3]), matrix([5, 7, 11, 13], 2)];
    const [unused, part] = [matrix([1, 2]), matrix([1, 2, 3, 4], 4)];
    const parameters = [x, weight, unused, part];
    const into = parameters.map(({ shape, size }) => matrix(Array<number>(size).fill(NaN), shape[1]));
    // A product's weight first, then the same as a factor; and columns of a parameter.
    const y = () => scope(() => mul(add(matmul({ x, weight }), x), add(part.columns(1, 3), x)));
    const { value, gradients: all } = grad(y, parameters, { into, overwrite: true });
    made.push(value);
    expect(all).toEqual(into);
    const { value: again, gradients: plain } = grad(y, parameters);
    made.push(again, ...plain);
    for (const [i, tensor] of plain.entries())
      expect([...(await all[i]!.data())]).toEqual([...(await tensor.data())]);
    expect([...(await all[3]!.data())]).toEqual([0, 33, 64, 0]);
  });

  it('has products add to what is there, once for each use', async () => {
    const [x, weight] = [matrix([2, 3]), matrix([5, 7, 11, 13], 2)];
    const twice = () => add(matmul({ x, weight }), matmul({ x, weight }));
    expect(await gradients(() => scope(twice), x, weight)).toEqual([
      [32, 40],
      [4, 6, 4, 6],
    ]);
    // x and the weight are one tensor: y = x xᵀ; and what a rule gave to two inputs stays as it is.
    const square = () => add(matmul({ x, weight: x }), matmul({ x, weight: x }));
    expect(await gradients(() => scope(square), x)).toEqual([[8, 12]]);
    const mixed = () => {
      const both = add(x, x);
      return add(mul(both, both), add(matmul({ x: both, weight }), both));
    };
    expect(await gradients(() => scope(mixed), x, weight)).toEqual([
      [50, 66],
      [4, 6, 4, 6],
    ]);
    const into = [matrix([1, 1]), matrix([1, 1, 1, 1], 2)];
    const { value } = grad(() => scope(twice), [x, weight], { into });
    made.push(value);
    expect([...(await into[1]!.data())]).toEqual([5, 7, 5, 7]);
    expect([...(await into[0]!.data())]).toEqual([33, 41]);
  });

  it('computes again instead of keeping, to the same bits', async () => {
    const [x, weight] = [matrix([0.1, 0.2, 0.3]), matrix([1.5, -2.5, 3.5])];
    const layer = (input: Tensor) => mul(negExp({ x: mul(input, weight) }), input);
    const plain = await gradients(() => scope(() => layer(layer(x))), x, weight);
    const calls: string[] = [];
    const watch = (name: string) => calls.push(name);
    const { value, gradients: all } = grad(() => scope(() => remat(layer, remat(layer, x))), [x, weight], {
      watch,
    });
    made.push(value, ...all);
    expect(await Promise.all(all.map(async (each) => [...(await each.data())]))).toEqual(plain);
    expect(calls).toEqual(['remat', 'remat']);
  });

  it('keeps less when it computes again', () => {
    const x = matrix(Array<number>(1000).fill(0.1));
    const layer = (input: Tensor) => mul(mul(mul(input, input), input), input);
    const kept = (fn: (x: Tensor) => Tensor) => {
      let used = 0;
      const { value, gradients: all } = grad(() => {
        const y = scope(() => fn(fn(fn(x))));
        used = on.memoryUsage().used;
        return y;
      }, [x]);
      made.push(value, ...all);
      return used;
    };
    expect(kept((input) => remat(layer, input))).toBeLessThan(kept(layer) / 2);
  });

  it('computes a tensor again for the steps that need it, once, to the same bits', async () => {
    const [x, weight] = [matrix([0.1, 0.2, 0.3]), matrix([1.5, -2.5, 3.5])];
    const plain = (tensor: Tensor): Tensor => tensor;
    const again = (tensor: Tensor, input: Tensor) => derivedBy(tensor, negExp, { x: input });
    // Its own step keeps what it gives, two others what they are given; one is derived from one.
    const layer = (mark: typeof again) => () =>
      scope(() => {
        const y = mark(negExp({ x }), x);
        const z = mark(negExp({ x: y }), y);
        return mul(mul(mul(y, weight), y), z);
      });
    const run = async (mark: typeof again) => {
      const calls: string[] = [];
      const after = (name: string) => void calls.push(name);
      const { value, gradients: all } = grad(layer(mark), [x, weight]);
      made.push(value, ...all);
      const { value: told, gradients: more } = observing({ before: () => {}, after }, () =>
        grad(layer(mark), [x, weight]),
      );
      made.push(told, ...more);
      const bits = await Promise.all(all.map(async (each) => [...(await each.data())]));
      return { bits, count: calls.filter((name) => name === 'neg_exp').length };
    };
    const kept = await run(plain);
    expect(await run(again)).toEqual({ bits: kept.bits, count: kept.count + 2 });
  });

  it('keeps nothing of what is computed again', () => {
    const x = matrix(Array<number>(1000).fill(0.1));
    const norm = { x, weight: x.reshape([1000]) };
    made.push(norm.weight);
    const run = (mark: (y: Tensor) => Tensor) => {
      const before = on.memoryUsage().used;
      let used = 0;
      const { value, gradients: all } = grad(() => {
        const y = scope(() => cast({ x: mul(mark(rmsNorm(norm)), x), dtype: 'f32' }));
        used = on.memoryUsage().used - before;
        return y;
      }, [x]);
      made.push(value, ...all);
      return used;
    };
    const kept = run((y) => y);
    expect(kept - run((y) => derivedBy(y, rmsNorm, norm))).toBeGreaterThanOrEqual(4000);
  });

  it('refuses what it cannot differentiate, and is usable afterwards', async () => {
    const x = matrix([1, 2]);
    expect(() => grad(() => sinkhorn({ logits: x }).balanced, [x])).toThrow('sinkhorn: it has no gradient');
    expect(() =>
      grad(() => {
        accumulate({ x, sum: x });
        return x;
      }, [x]),
    ).toThrow('accumulate');
    expect(() => grad(() => matrix([1]), [x])).toThrow('grad: the value does not depend on any');
    expect(() => grad(() => x, [x], { into: [] })).toThrow('grad: into has 0 tensors, expected 1');
    expect(() => grad(() => grad(() => x, [x]).value, [x])).toThrow('in use by another grad');
    expect(() => grad(() => x, [x, x])).toThrow('grad: parameters has number 1 a second time');
    expect(await gradients(() => mul(x, x), x)).toEqual([[2, 4]]);
  });

  it('notes nothing of other tensors', () => {
    const [x, other] = [matrix([1, 2]), matrix([3, 4])];
    const { value, gradients: all } = grad(() => {
      fill({ x: other });
      return add(x, other);
    }, [x]);
    made.push(value, ...all);
  });
});
