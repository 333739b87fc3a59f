import { capture } from '../lib/capture';
import { DeviceError, DisposedError } from '../lib/errors';
import { add, cast, zeroSlots } from '../lib/ops/elementwise';
import { matmul } from '../lib/ops/matmul';
import { rmsNorm } from '../lib/ops/norm';
import { selectiveScanPacked } from '../lib/ops/scan';
import { scope, Tensor } from '../lib/tensor';
import { bits, inputsOf, randomFrom, toTensor } from '../lib/verify/cases';
import { fresh, onEach } from './devices';
import type { Op } from '../lib/op';

describe.each(onEach)('on %s', (_, shared) => {
  let device = fresh(shared);
  beforeEach(() => {
    device = fresh(shared);
  });
  const random = (shape: readonly number[], seed: number) => {
    const next = randomFrom(seed);
    return Tensor.from(
      Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => next() - 0.5),
      shape,
      { device },
    );
  };
  const used = () => {
    const { tensors, used } = device.memoryUsage();
    return { tensors, used };
  };

  /** A small net over x; `weight` and the like are made outside. */
  const net = (x: Tensor, weight: Tensor, scale: Tensor) =>
    scope(() => {
      let y = x;
      for (let layer = 0; layer < 3; layer++)
        y = add(y, matmul({ x: rmsNorm({ x: y, weight: scale }), weight }));
      return y;
    });

  it('replays to the same bits as a direct call, whatever the inputs then hold', async () => {
    const [x, weight, scale] = [random([5, 64], 1), random([64, 64], 2), random([64], 3)];
    const graph = capture(device, () => net(x, weight, scale));
    for (const seed of [4, 5, 6]) {
      const fresh = random([5, 64], seed);
      x.set((await fresh.data()) as Float32Array);
      graph.replay();
      expect((await bits(graph.result)).equals(await bits(net(fresh, weight, scale)))).toBe(true);
    }
    graph.dispose();
  });

  it('carries a state from one replay to the next', async () => {
    const steps = (op: Op, state: Tensor) => {
      const inputs = inputsOf(op, { sizes: { t: 1, s: 1, d: 20, n: 16, p: 1 }, without: ['slots', 'state'] });
      const tensors = Object.fromEntries(
        Object.entries(inputs).map(([name, value]) => [name, toTensor(value, device)]),
      );
      return () => (op as unknown as typeof selectiveScanPacked)({ ...tensors, state } as never);
    };
    const zero = () => Tensor.from(new Float32Array(20 * 16), [1, 20, 16], { device });
    const [captured, direct] = [zero(), zero()];
    const op = selectiveScanPacked as unknown as Op;
    const graph = capture(device, steps(op, captured));
    const step = steps(op, direct);
    for (let i = 0; i < 5; i++) {
      graph.replay();
      expect((await bits(graph.result)).equals(await bits(step()))).toBe(true);
    }
    expect((await bits(captured)).equals(await bits(direct))).toBe(true);
    graph.dispose();
  });

  it('does not run while it records', async () => {
    const pool = random([3, 4], 1);
    const before = await bits(pool);
    const slots = Tensor.from([0, 1, 2], [3], { dtype: 'i32', device });
    const graph = capture(device, () => zeroSlots({ pool, slots }));
    expect((await bits(pool)).equals(before)).toBe(true);
    graph.replay();
    expect((await bits(pool)).equals(Buffer.alloc(48))).toBe(true);
    graph.dispose();
  });

  it('keeps what it uses until it is disposed, though that is disposed outside', async () => {
    const start = used();
    const [x, weight, scale] = [random([2, 256], 1), random([256, 256], 2), random([256], 3)];
    const direct = net(x, weight, scale);
    const wanted = await bits(direct);
    const graph = capture(device, () => net(x, weight, scale));
    for (const tensor of [x, weight, scale, direct]) tensor.dispose();
    const others = [4, 5, 6].map((seed) => random([256, 256], seed)); // would take the memory over
    graph.replay();
    expect((await bits(graph.result)).equals(wanted)).toBe(true);
    for (const tensor of [graph.result, ...others]) tensor.dispose();
    expect(used().tensors).toBe(start.tensors);
    expect(used().used).toBeGreaterThan(start.used + 256 * 256 * 4);
    graph.dispose();
    expect(used()).toEqual(start);
  });

  it('may be disposed before its last replay has run, and before its result', async () => {
    const [x, weight, scale] = [random([200, 256], 1), random([256, 256], 2), random([256], 3)];
    const wanted = await bits(net(x, weight, scale));
    const graph = capture(device, () => net(x, weight, scale));
    graph.replay();
    graph.dispose();
    graph.dispose();
    const others = [4, 5, 6].map((seed) => random([200, 256], seed));
    expect((await bits(graph.result)).equals(wanted)).toBe(true);
    expect(() => graph.replay()).toThrow(DisposedError);
    for (const tensor of others) tensor.dispose();
  });

  it('gives back all memory, graph after graph', async () => {
    const [x, weight, scale] = [random([5, 64], 1), random([64, 64], 2), random([64], 3)];
    const start = used();
    for (let i = 0; i < 50; i++) {
      const graph = capture(device, () => net(x, weight, scale));
      graph.replay();
      graph.result.dispose();
      graph.dispose();
    }
    await device.stamp();
    expect(used()).toEqual(start);
  });

  describe('inside', () => {
    /** Runs `fn` inside; the device must be as good as new afterwards. */
    const inside = async <R>(fn: () => R): Promise<R> => {
      let result: R | undefined;
      const start = used();
      const attempt = () =>
        capture(device, () => {
          Tensor.empty([4], 'f32', device).dispose();
          result = fn();
          throw new Error('enough');
        });
      expect(attempt).toThrow('enough');
      expect(device.capturing).toBe(false);
      expect(used()).toEqual(start);
      const x = Tensor.from([1, 2], [1, 2], { device });
      expect([...(await cast({ x }).data())]).toEqual([1, 2]);
      x.dispose();
      return result as R;
    };
    let x: Tensor;
    beforeEach(() => {
      x = random([2, 2], 1);
    });

    it('nothing can be read', async () => {
      const read = await inside(() => x.data().catch((error: Error) => error.message));
      expect(await read).toBe('data: nothing can be read while a graph is captured');
    });

    it('nothing can be written', async () => {
      const tries = [() => x.set(new Float32Array(4)), () => Tensor.from([1], [1], { device })];
      for (const attempt of tries) {
        await inside(() => expect(attempt).toThrow(DeviceError));
        await inside(() =>
          expect(attempt).toThrow('set: nothing can be read or written while a graph is captured'),
        );
      }
      const write = await inside(() => x.write(new Uint8Array(4)).catch((error: Error) => error.message));
      expect(await write).toBe('write: nothing can be read or written while a graph is captured');
    });

    it('no other capture can begin, no graph run', async () => {
      const other = capture(device, () => cast({ x }));
      await inside(() =>
        expect(() => capture(device, () => undefined)).toThrow('capture: a capture is under way already'),
      );
      await inside(() =>
        expect(() => other.replay()).toThrow('replay: a captured graph cannot hold another one'),
      );
      other.replay();
      other.dispose();
    });

    it('a refused op leaves nothing in the graph', async () => {
      const weight = random([2], 2);
      const start = used();
      const graph = capture(device, () => {
        expect(() => rmsNorm({ x, weight: x })).toThrow('rms_norm: weight is');
        return rmsNorm({ x, weight });
      });
      graph.replay();
      expect((await bits(graph.result)).equals(await bits(scope(() => rmsNorm({ x, weight }))))).toBe(true);
      graph.result.dispose();
      graph.dispose();
      await device.stamp();
      expect(used().tensors).toBe(start.tensors + 1); // the result of the direct call
    });
  });

  it('refuses async functions', () => {
    expect(() => capture(device, async () => await Promise.reject(new Error('late')))).toThrow(
      'capture: fn is async',
    );
    expect(device.capturing).toBe(false);
  });
});
