/** AdamW, clipping and the loss scale over several steps, against plain f64. */
import { adamw, addSquares, planStep } from '../../lib/ops/optimizer';
import { Tensor } from '../../lib/tensor';
import { normal, randomFrom, read } from '../../lib/verify/cases';
import { onEach } from '../devices';
import { relativeError } from '../same';

const n = 1003;
const constants = { beta1: 0.9, beta2: 0.95, eps: 1e-8 };

describe.each(onEach)('on %s', (_, device) => {
  const f32 = (values: ArrayLike<number>) =>
    Tensor.from(Float32Array.from(values), [values.length], { device });
  const start = (scale = 1) => ({
    parameter: f32(Array.from({ length: n }, () => 0.5)),
    m: f32(new Float32Array(n)),
    v: f32(new Float32Array(n)),
    squares: f32([0]),
    loss: f32([3 * scale]),
    learningRate: f32([0.01]),
    scaler: f32([scale, 0, 0, 0, 0, 0]),
  });
  const free = (...records: readonly Record<string, Tensor>[]) =>
    records.forEach((record) => Object.values(record).forEach((tensor) => tensor.dispose()));

  it('ten steps of AdamW are those of the formula', async () => {
    const random = randomFrom(5);
    const tensors = start();
    const { parameter, m, v, squares, loss, learningRate, scaler } = tensors;
    const [p, first, second] = [0.5, 0, 0].map((x) => new Float64Array(n).fill(x)) as [
      Float64Array,
      Float64Array,
      Float64Array,
    ];
    for (let step = 1; step <= 10; step++) {
      const g = Float32Array.from({ length: n }, () => normal(random));
      const gradient = f32(g);
      addSquares({ x: gradient, sum: squares });
      const control = planStep({ squares, loss, learningRate, scaler, maxNorm: 4, beta1: 0.9, beta2: 0.95 });
      adamw({ parameter, m, v, gradient, control, ...constants, decay: 0.1 });
      const norm = Math.sqrt(g.reduce((sum, x) => sum + x * x, 0));
      const clip = norm > 4 ? 4 / (norm + 1e-6) : 1;
      g.forEach((raw, i) => {
        const x = raw * clip;
        first[i] = 0.9 * first[i]! + 0.1 * x;
        second[i] = 0.95 * second[i]! + 0.05 * x * x;
        const [a, b] = [first[i]! / (1 - 0.9 ** step), second[i]! / (1 - 0.95 ** step)];
        p[i] = p[i]! * (1 - 0.01 * 0.1) - (0.01 * a) / (Math.sqrt(b) + 1e-8);
      });
      free({ gradient, control });
    }
    expect(relativeError(await read(parameter), p)).toBeLessThan(1e-6);
    expect(relativeError(await read(m), first)).toBeLessThan(1e-5);
    expect(relativeError(await read(v), second)).toBeLessThan(1e-5);
    expect([...(await read(scaler))].slice(0, 4)).toEqual([1, 0, 10, 0]);
    free(tensors);
  });

  it('a step whose gradients are not finite changes nothing but the loss scale', async () => {
    const tensors = start(1024);
    const { parameter, m, v, squares, loss, learningRate, scaler } = tensors;
    const scales: number[] = [];
    for (const bad of [Infinity, 1, 1, NaN, 1, 1, 1]) {
      const gradient = f32(new Float32Array(n).fill(bad));
      addSquares({ x: gradient, sum: squares });
      const control = planStep({ squares, loss, learningRate, scaler, interval: 2 });
      const before = [...(await read(parameter))];
      adamw({ parameter, m, v, gradient, control });
      expect((await read(parameter)).every((x, i) => x === before[i])).toBe(!Number.isFinite(bad));
      scales.push((await read(scaler))[0]!);
      free({ gradient, control });
    }
    expect(scales).toEqual([512, 512, 1024, 512, 512, 1024, 1024]);
    expect([...(await read(scaler))].slice(2, 4)).toEqual([5, 2]);
    free(tensors);
  });

  it('without a loss scale to change, no step is taken after one that is not finite', async () => {
    for (const bad of ['gradient', 'loss'] as const) {
      const tensors = start();
      const { squares, loss, learningRate, scaler } = tensors;
      const taken: number[] = [];
      for (const step of [0, 1, 2, 3]) {
        const gradient = f32(new Float32Array(n).fill(bad === 'gradient' && step === 1 ? NaN : 1));
        if (bad === 'loss' && step === 1) loss.set(Float32Array.of(Infinity));
        if (step === 3) squares.set(Float32Array.of(0)); // somebody has looked
        addSquares({ x: gradient, sum: squares });
        const control = planStep({ squares, loss, learningRate, scaler });
        taken.push((await read(control))[0]!);
        free({ gradient, control });
      }
      expect(taken).toEqual([1, 0, 0, 1]);
      free(tensors);
    }
  });
});
