import { DeviceError } from '../lib/errors';
import { add, cast } from '../lib/ops/elementwise';
import { addRmsNorm, rmsNorm } from '../lib/ops/norm';
import { scope, Tensor } from '../lib/tensor';
import { run } from './child';
import { fresh, onEach } from './devices';

const MiB = 2 ** 20;

describe.each(onEach)('on %s', (id, shared) => {
  const device = fresh(shared);
  const start = () => {
    const { tensors, used } = device.memoryUsage();
    return { tensors, used };
  };
  const rows = (shape: readonly number[]) =>
    Tensor.from(new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(1), shape, { device });

  it('is counted and given back', async () => {
    const before = start();
    const x = Tensor.empty([MiB], 'f32', device);
    expect(start().tensors).toBe(before.tensors + 1);
    expect(start().used - before.used).toBeGreaterThanOrEqual(4 * MiB);
    expect(start().used - before.used).toBeLessThan(4.3 * MiB);
    const view = x.rows(0, 10);
    x.dispose();
    expect(start().tensors).toBe(before.tensors + 1); // the view holds it
    expect(start().used).toBeGreaterThan(before.used);
    view.dispose();
    expect(start()).toEqual(before);
    expect(device.memoryUsage().peak).toBeGreaterThanOrEqual(before.used + 4 * MiB);
  });

  it('is back at the start after 10,000 ops, with a few at a time alive', async () => {
    const [x, residual, weight] = [rows([2, 64]), rows([2, 64]), rows([64])];
    const before = device.memoryUsage();
    for (let i = 0; i < 2500; i++) {
      scope(() => {
        const { y, sum } = addRmsNorm({ x, residual, weight });
        add(cast({ x: y.columns(0, 32), dtype: 'bf16' }), cast({ x: sum.columns(32, 64), dtype: 'bf16' }));
      });
      if (i % 500 === 0) await device.stamp();
    }
    await device.stamp();
    const after = device.memoryUsage();
    expect([after.tensors, after.used]).toEqual([before.tensors, before.used]);
    expect(after.cached - before.cached).toBeLessThan(MiB);
    for (const tensor of [x, residual, weight]) tensor.dispose();
  });

  it('is reused, and given to the system by trim', async () => {
    device.trim();
    const { used } = device.memoryUsage();
    const shape = [3 * MiB + 1];
    for (let i = 0; i < 20; i++) Tensor.empty(shape, 'f32', device).dispose();
    const { cached } = device.memoryUsage();
    expect(cached).toBeGreaterThanOrEqual(12 * MiB);
    expect(cached).toBeLessThan(25 * MiB);
    device.trim();
    expect(device.memoryUsage()).toMatchObject({ used, cached: 0 });
  });

  it('trim does not touch what the queue still uses', async () => {
    const x = rows([1000, 300]);
    const [y, read] = scope(() => {
      const twice = add(x, x);
      return [add(twice, twice), twice.data()];
    });
    x.dispose();
    device.trim();
    rows([1000, 300]).dispose();
    expect((await read).every((v) => v === 2)).toBe(true);
    expect((await y.data()).every((v) => v === 4)).toBe(true);
    y.dispose();
  });

  describe('with a limit', () => {
    afterEach(() => device.setMemoryLimit(0));

    it('refuses what is beyond it, and works on', async () => {
      const before = start();
      device.setMemoryLimit(before.used + 8 * MiB);
      expect(() => Tensor.empty([64 * MiB], 'f32', device)).toThrow(DeviceError);
      expect(() => Tensor.empty([64 * MiB], 'f32', device)).toThrow(/Tensor of f32\[67108864\]: .*memory/);
      const x = rows([MiB / 64, 64]); // 4 MiB
      expect(() => scope(() => [rmsNorm({ x, weight: rows([64]) }), add(x, x)])).toThrow(DeviceError);
      const y = scope(() => cast({ x: x.rows(0, 2) }));
      expect((await y.data()).length).toBe(128);
      x.dispose();
      y.dispose();
      expect(start()).toEqual(before);
      Tensor.empty([2 * MiB - 4096], 'f32', device).dispose();
    });

    it('gives cached memory back before it refuses', () => {
      device.trim();
      device.setMemoryLimit(device.memoryUsage().used + 8 * MiB);
      for (let i = 0; i < 6; i++) Tensor.empty([MiB + i * 40_000], 'f32', device).dispose();
    });

    it('drops the first output of an op that has no memory for the second', () => {
      const [x, weight] = [rows([1000, 64]), rows([64])];
      const before = start();
      device.trim();
      device.setMemoryLimit(before.used + 300_000); // one output takes 256,000
      expect(() => addRmsNorm({ x, residual: x, weight })).toThrow(DeviceError);
      expect(start()).toEqual(before);
      x.dispose();
      weight.dispose();
    });

    it.each([-1, 1.5, NaN, Infinity])('cannot be %p', (bytes) => {
      expect(() => device.setMemoryLimit(bytes)).toThrow(
        `setMemoryLimit: bytes is ${bytes}, expected a whole number`,
      );
    });
  });

  it('more than the machine has is refused, and the process goes on', async () => {
    const before = start();
    expect(() => Tensor.empty([2 ** 44], 'f32', device)).toThrow(DeviceError);
    expect(() => Tensor.empty([2 ** 40], 'bf16', device)).toThrow(DeviceError);
    expect(start()).toEqual(before);
    await device.stamp();
  });

  it('finalizers free what was forgotten', async () => {
    const left = await run<{ tensors: number; used: number }[]>(
      `const device = lib.device('${id}');
       const turn = () => new Promise((resolve) => setImmediate(resolve));
       const usage = () => { const { tensors, used } = device.memoryUsage(); return { tensors, used }; };
       const before = usage();
       const forget = () => {
         for (let i = 0; i < 100; i++) {
           const x = lib.Tensor.empty([1000, 4], 'f32', device);
           lib.cast({ x: x.columns(0, 2) });
         }
         lib.capture(device, () => lib.cast({ x: lib.Tensor.empty([1000, 4], 'f32', device) })).replay();
       };
       forget();
       const during = usage();
       for (let i = 0; i < 10; i++) { gc(); await turn(); }
       await device.stamp();
       return [before, during, usage()];`,
      { args: ['--expose-gc'] },
    );
    expect(left[1]!.tensors).toBeGreaterThanOrEqual(300);
    expect(left[2]).toEqual(left[0]);
  });

  // `process.memoryUsage().external` knows ArrayBuffers alone: that V8 was told shows in what it does.
  it('the garbage collector comes for what was forgotten, and only for that', async () => {
    const allocate = (dispose: boolean) =>
      run<{ peak: number; collections: number }>(
        `const device = lib.device('${id}');
         const turn = () => new Promise((resolve) => setImmediate(resolve));
         let collections = 0;
         new (require('node:perf_hooks').PerformanceObserver)((list) => { collections += list.getEntries().length; }).observe({ entryTypes: ['gc'] });
         for (let i = 0; i < 2000; i++) {
           const x = lib.Tensor.empty([${MiB}], 'f32', device);
           if (${dispose}) x.dispose();
           if (i % 10 === 0) await turn();
         }
         await turn();
         return { peak: device.memoryUsage().peak, collections };`,
      );
    const [forgotten, disposed] = [await allocate(false), await allocate(true)];
    expect(forgotten.peak).toBeLessThan(2000 * MiB); // of 8,000 MiB in all
    expect(disposed.peak).toBeLessThan(5 * MiB);
    expect(disposed.collections).toBeLessThan(forgotten.collections / 2);
  });
});
