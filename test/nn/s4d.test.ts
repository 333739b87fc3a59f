import { activate, DeviceError, grad, S4D, scope, Tensor, type S4DOptions } from '../../lib';
import { chooseExecution } from '../../lib/nn/s4d-cost';
import { relativeError } from '../../lib/verify/measure';
import { activations } from '../../lib/verify/moe-reference';
import { onEach } from '../devices';
import { noise, plainAt, randomSystem, type PlainSystem } from './s4d-plain';

const ints = (values: readonly number[], device: Tensor['device']) =>
  Tensor.from(Int32Array.from(values), [values.length], { device });

const names = ['log_dt', 'log_A_real', 'A_imag', 'C', 'D'] as const;
const parametersOf = (system: PlainSystem) =>
  Object.fromEntries(names.map((name) => [name, Float32Array.from(system[name])]));

describe.each(onEach)('S4D on %s', (_, device) => {
  const layerOf = (system: PlainSystem) =>
    S4D.create({
      dModel: system.d,
      dState: 2 * system.n,
      discretization: system.bilinear ? 'bilinear' : 'zoh',
      parameters: parametersOf(system),
      device,
    });

  describe.each([
    ['S4D-Lin, zero-order hold', 'lin', false],
    ['S4D-Lin, bilinear', 'lin', true],
    ['S4D-Real, zero-order hold', 'real', false],
    ['S4D-Real, bilinear', 'real', true],
  ] as const)('%s', (_, init, bilinear) => {
    it.each([1, 2, 3, 33, 257, 1025, 65536])(
      'is one model computed two ways at length %i, and the one of the paper',
      async (length) => {
        const system = randomSystem(length > 2000 ? 3 : 19, 32, init, bilinear, length);
        const layer = await layerOf(system);
        const u = noise(length * system.d, length + 1);
        const both = await Promise.all(
          (['recurrent', 'convolutional'] as const).map((mode) => layer.run({ batch: 1, length, u, mode })),
        );
        layer.dispose();
        const [recurrent, convolutional] = both.map(({ y }) => y);
        expect(relativeError(recurrent!, convolutional!)).toBeLessThan(1e-5);

        // Against the sum itself, at some places: all of them would take a minute.
        const at = [0, 1, 2, length >> 2, length >> 1, length - 2, length - 1].filter(
          (t, i, all) => t >= 0 && t < length && all.indexOf(t) === i,
        );
        const largest = recurrent!.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
        for (const c of new Set([0, length > 2000 ? 0 : system.d - 1])) {
          const wanted = plainAt(system, u, c, at);
          for (const y of [recurrent!, convolutional!])
            at.forEach((t, i) =>
              expect(Math.abs(y[t * system.d + c]! - wanted[i]!) / largest).toBeLessThan(1e-5),
            );
        }
      },
      60_000,
    );

    it.each([1, 65, 400])(
      'has the gradients of its formula by either execution at length %i',
      async (length) => {
        const [d, n] = [2, 4];
        const system = randomSystem(d, n, init, bilinear, length);
        const plain = {
          ...system,
          ...Object.fromEntries(names.map((name) => [name, Float64Array.from(system[name])])),
        };
        const [u, given] = [noise(length * d, 3), noise(length * d, 4)];
        const wide = Float64Array.from(u);
        const everywhere = Array.from({ length }, (_, t) => t);
        const loss = () => {
          let sum = 0;
          for (let c = 0; c < d; c++)
            plainAt(plain, wide, c, everywhere).forEach((y, t) => (sum += y * given[t * d + c]!));
          return sum;
        };
        const slope = (values: Float32Array | Float64Array, i: number) => {
          const before = values[i]!;
          const [above, below] = [1e-5, -1e-5].map((step) => {
            values[i] = before + step;
            return loss();
          });
          values[i] = before;
          return (above! - below!) / 2e-5;
        };
        const places = [0, length >> 1, length * d - 1];
        const wanted = [
          ...names.map((name) => Array.from(plain[name], (_, i) => slope(plain[name], i))),
          places.map((i) => slope(wide, i)),
        ];
        const layer = await layerOf(system);
        for (const mode of ['recurrent', 'convolutional'] as const) {
          const x = Tensor.from(u, [length, d], { device });
          const dy = Tensor.from(given, [length, d], { device });
          const offsets = ints([0, length], device);
          const of = [...names.map((name) => layer.parameters.get(name)!), x];
          const { value, gradients } = grad(() => layer.forward({ u: x, offsets, mode }), of, { seed: dy });
          for (const [k, gradient] of gradients.entries()) {
            const all = (await gradient.data()) as Float32Array;
            const got = k < names.length ? all : places.map((i) => all[i]!);
            const largest = wanted[k]!.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-3);
            wanted[k]!.forEach((want, i) =>
              expect([mode, k, i, Math.abs(got[i]! - want) < 5e-5 * largest]).toEqual([mode, k, i, true]),
            );
          }
          for (const tensor of [x, dy, offsets, value, ...gradients]) tensor.dispose();
        }
        layer.dispose();
      },
    );
  });

  it('gives the same whole, in chunks and step by step', async () => {
    const system = randomSystem(21, 5, 'lin', false);
    const layer = await layerOf(system);
    const length = 70;
    const u = noise(length * 21);
    const whole = await layer.run({ batch: 1, length, u, returnState: true });
    for (const cuts of [[0, 33, 34, 70], [0, 1, 70], Array.from({ length: 71 }, (_, i) => i)]) {
      let state: Float32Array | undefined;
      const y: number[] = [];
      for (const [i, begin] of cuts.slice(0, -1).entries()) {
        const piece = u.subarray(begin * 21, cuts[i + 1]! * 21);
        const part = await layer.run({
          batch: 1,
          length: cuts[i + 1]! - begin,
          u: piece,
          ...(state ? { initialState: state } : { returnState: true }),
        });
        y.push(...part.y);
        state = part.lastState!;
      }
      const bound = device.id === 'cpu' ? 0 : 1e-6;
      expect(relativeError(y, whole.y)).toBeLessThanOrEqual(bound);
      expect(relativeError(state!, whole.lastState!)).toBeLessThanOrEqual(bound);
    }
    layer.dispose();
  });

  it.each(['recurrent', 'convolutional'] as const)('packs sequences as one by one (%s)', async (mode) => {
    const system = randomSystem(37, 12, 'lin', true);
    const layer = await layerOf(system);
    const lengths = [33, 1, 0, 257, 2];
    const offsets = lengths.reduce<number[]>((all, n) => [...all, all.at(-1)! + n], [0]);
    const u = noise(offsets.at(-1)! * 37);
    const packed = scope(() =>
      layer.forward({
        u: Tensor.from(u, [offsets.at(-1)!, 37], { device }),
        offsets: ints(offsets, device),
        longest: 257,
        mode,
      }),
    );
    const y = (await packed.data()) as Float32Array;
    packed.dispose();
    for (const [i, length] of lengths.entries()) {
      if (length === 0) continue;
      const rows = [offsets[i]! * 37, offsets[i + 1]! * 37] as const;
      const alone = await layer.run({ batch: 1, length, u: u.subarray(...rows), mode });
      expect(relativeError(y.subarray(...rows), alone.y)).toBeLessThan(2e-6);
    }
    layer.dispose();
  });

  it('keeps states in a pool, and takes half precision', async () => {
    const layer = await S4D.create({ dModel: 40, dState: 8, device, seed: 7 });
    const u = noise(30 * 40);
    const alone = await layer.run({ batch: 1, length: 10, u: u.subarray(400, 800), returnState: true });
    const state = Tensor.from(new Float32Array(4 * 40 * 8), [4, 40, 4, 2], { device });
    const y = scope(() =>
      layer.forward({
        u: Tensor.from(u, [30, 40], { device }),
        offsets: ints([0, 10, 20, 30], device),
        slots: ints([2, 0, -1], device),
        state,
        mode: 'convolutional', // a state makes it a recurrence all the same
      }),
    );
    const pool = (await state.data()) as Float32Array;
    expect(relativeError(pool.subarray(0, 320), alone.lastState!)).toBeLessThan(1e-6);
    expect(pool.subarray(320, 640).every((value) => value === 0)).toBe(true);
    expect(relativeError(((await y.data()) as Float32Array).subarray(400, 800), alone.y)).toBeLessThan(1e-6);
    for (const tensor of [y, state]) tensor.dispose();
    layer.dispose();
  });

  it('tells of a sequence that is longer than the kernel', async () => {
    const layer = await S4D.create({ dModel: 4, device });
    const y = scope(() =>
      layer.forward({
        u: Tensor.from(noise(40), [10, 4], { device }),
        offsets: ints([0, 2, 10], device),
        longest: 5,
        mode: 'convolutional',
      }),
    );
    await expect(y.data()).rejects.toThrow(
      'fft_conv: sequence 1 has 8 tokens, expected at most 5, the taps of kernel',
    );
    y.dispose();
    layer.dispose();
  });

  it('changes when its parameters do', async () => {
    const layer = await S4D.create({ dModel: 3, dState: 4, device });
    const u = noise(15);
    const before = await layer.run({ batch: 1, length: 5, u });
    layer.parameters.get('D')!.set(new Float32Array(3));
    layer.parameters.get('C')!.set(new Float32Array(12));
    layer.ready();
    const { y } = await layer.run({ batch: 1, length: 5, u });
    expect(y.every((value) => value === 0)).toBe(true);
    expect(before.y).not.toEqual(new Float32Array(15));
    layer.dispose();
  });

  it('has a sigmoid for its gate', async () => {
    const x = Float32Array.from([-200, -5, -0.5, 0, 0.5, 5, 200]);
    const y = scope(() => activate({ x: Tensor.from(x, [1, 7], { device }), kind: 3 }));
    expect(relativeError(await y.data(), Array.from(x, activations[3]!))).toBeLessThan(3e-7);
    y.dispose();
  });
});

describe('S4D', () => {
  it('starts as the paper says', async () => {
    const values = async (options: Partial<S4DOptions>, name: string) => {
      const layer = await S4D.create({ dModel: 2, dState: 8, ...options });
      const data = (await layer.parameters.get(name)!.data()) as Float32Array;
      layer.dispose();
      return [...data.subarray(0, data.length / 2)].map((value) => Math.round(value * 1e4) / 1e4);
    };
    const rounded = (all: readonly number[]) => all.map((value) => Math.round(value * 1e4) / 1e4);
    expect(await values({}, 'A_imag')).toEqual(rounded([0, 1, 2, 3].map((j) => Math.PI * j)));
    expect(await values({}, 'log_A_real')).toEqual(rounded(Array<number>(4).fill(Math.log(0.5))));
    expect(await values({ init: 'inv' }, 'A_imag')).toEqual(
      rounded([7, 5 / 3, 0.6, 1 / 7].map((x) => (8 / Math.PI) * x)),
    );
    expect(await values({ init: 'real' }, 'A_imag')).toEqual([0, 0, 0, 0]);
    expect(await values({ init: 'real' }, 'log_A_real')).toEqual(rounded([1, 2, 3, 4].map(Math.log)));
    const [logDt] = await values({ dtMin: 0.01, dtMax: 0.02 }, 'log_dt');
    expect(Math.exp(logDt!)).toBeGreaterThan(0.0099);
    expect(Math.exp(logDt!)).toBeLessThan(0.0201);
  });

  it.each([
    [{ dModel: 0 }, 'S4D: dModel is 0, expected a whole number, 1 or more'],
    [{ dState: 7 }, 'S4D: dState is 7, expected an even number, at most 512'],
    [{ dState: 1024 }, 'S4D: dState is 1024'],
    [{ init: 'legs' }, 'S4D: init is legs, expected lin, inv, real'],
    [{ discretization: 'euler' }, 'S4D: discretization is euler, expected zoh, bilinear'],
    [{ dtMin: -1 }, 'S4D: dtMin is -1, expected a positive number'],
    [{ dtMin: 1 }, 'S4D: dtMin is 1, expected at most dtMax, 0.1'],
    [{ parameters: { E: [1] } }, 'S4D: there is no option E'],
    [{ parameters: { D: [1] } }, 'S4D: parameters.D has 1 elements, expected [2]'],
    [{ states: 4 }, 'S4D: there is no option states'],
  ])('refuses %p', async (change, message) => {
    await expect(S4D.create({ dModel: 2, ...change } as S4DOptions)).rejects.toThrow(message);
  });

  it('refuses bad input by name', async () => {
    const layer = await S4D.create({ dModel: 2, dState: 4 });
    const run = (change: object) => layer.run({ batch: 1, length: 2, u: [1, 2, 3, 4], ...change });
    await expect(run({ u: [1] })).rejects.toThrow('S4D.run: u has 1 elements, expected [1,2,2]');
    await expect(run({ u: 'x' })).rejects.toThrow('S4D.run: u is string');
    await expect(run({ length: 0 })).rejects.toThrow('S4D.run: length is 0');
    await expect(run({ initialState: [1] })).rejects.toThrow(
      'S4D.run: initialState has 1 elements, expected [1,2,2,2]',
    );
    await expect(run({ mode: 'fast' })).rejects.toThrow(
      'mode is fast, expected auto, recurrent, convolutional',
    );
    layer.dispose();
    await expect(run({})).rejects.toThrow('disposed');
  });

  it('chooses by length, and can be told', () => {
    const device = (found: boolean) => ({ id: 'cpu', fft: { found, text: 'none' } }) as Tensor['device'];
    const shape = (length: number) => ({
      sequences: 64,
      tokens: 64 * length,
      longest: length,
      d: 64,
      n: 256,
    });
    expect(chooseExecution('auto', device(true), shape(1))).toBe('recurrent');
    expect(chooseExecution('auto', device(true), shape(65536))).toBe('convolutional');
    expect(chooseExecution('auto', device(false), shape(65536))).toBe('recurrent');
    expect(chooseExecution('recurrent', device(true), shape(65536))).toBe('recurrent');
    expect(chooseExecution('convolutional', device(true), shape(1))).toBe('convolutional');
  });

  it('says what is missing where it is told to convolve without FFTs', async () => {
    const layer = await S4D.create({ dModel: 2, dState: 4 });
    const fft = jest.spyOn(layer.device, 'fft', 'get').mockReturnValue({ found: false, text: 'no cuFFT' });
    const run = layer.run({ batch: 1, length: 2, u: [1, 2, 3, 4], mode: 'convolutional' });
    await expect(run).rejects.toThrow(new DeviceError('S4D: mode is convolutional; no cuFFT'));
    fft.mockRestore();
    layer.dispose();
  });
});
