/** The checks that users run, on every device present; and that they find what is wrong. */
import '../lib/index';
import { ops } from '../lib/op';
import type { Device } from '../lib/device';
import { dtypeChoices } from '../lib/verify/cases';
import { boundOf, relativeError } from '../lib/verify/measure';
import { isSequential } from '../lib/verify/pieces';
import { references } from '../lib/verify/reference';
import { verify, type VerifyRow } from '../lib/verify/verify';
import { run } from './cli/run';
import { onEach } from './devices';

/** Milliseconds: minutes of processor time, on machines that do other work too. */
const patience = 900_000;

describe.each(onEach)('on %s', (_, device) => {
  // In a process of its own: in jest every use of a global is slow, and there are many.
  let rows: readonly VerifyRow[];
  beforeAll(async () => {
    const { code, stdout } = await run(['verify', '--device', device.id, '--json']);
    const { devices } = JSON.parse(stdout) as {
      devices: readonly [{ readonly rows: readonly VerifyRow[] }];
    };
    ({ rows } = devices[0]);
    expect(code).toBe(rows.every(({ passed }) => passed) ? 0 : 1);
  }, patience);

  it('every kernel is within its bounds', () => {
    expect(rows.filter(({ passed }) => !passed)).toEqual([]);
  });

  // In half precision the bound is twice the error of the same maths done plainly in it.
  it.each([...ops])('%s is checked: every dtype, in every way', (name, op) => {
    const of = (check: VerifyRow['check']) => rows.filter((row) => row.op === name && row.check === check);
    const casesOf = (check: VerifyRow['check']) => of(check).reduce((sum, { cases }) => sum + cases, 0);
    for (const check of ['again', 'captured'] as const)
      expect(casesOf(check)).toBeGreaterThanOrEqual(dtypeChoices(op).length);
    expect(casesOf('f64')).toBeGreaterThanOrEqual(5 * dtypeChoices(op).length);
    expect(of('pieces').length > 0).toBe(isSequential(op));
  });

  describe('finds', () => {
    const table = references as Record<string, (typeof references)[string]>;
    /** The rows of one op, while its reference is another one. */
    async function withReference(
      name: string,
      reference: (typeof references)[string] | undefined,
      seed?: number,
    ) {
      const own = table[name]!;
      const others = [...ops].filter(([other]) => other !== name);
      const op = ops.get(name)!;
      const kernels = new Map([...device.kernels].filter(([kernel]) => kernel === name));
      try {
        for (const [other] of others) ops.delete(other);
        if (reference) table[name] = reference;
        else delete table[name];
        return await verify(new Proxy(device, only(kernels)), undefined, seed);
      } finally {
        table[name] = own;
        ops.clear();
        for (const [each, value] of [[name, op] as const, ...others]) ops.set(each, value);
      }
    }
    /** The same device with some of its kernels only. */
    const only = (kernels: Device['kernels']): ProxyHandler<Device> => ({
      get: (target, key) => (key === 'kernels' ? kernels : (Reflect.get(target, key, target) as unknown)),
    });

    it('a result that is wrong', async () => {
      const before = device.memoryUsage().tensors;
      const found = await withReference('neg_exp', ({ x }) => ({
        y: { shape: x!.shape, data: x!.data.map((v) => -Math.exp(v) * (1 + 4e-6)) },
      }));
      const wrong = found.find(({ check }) => check === 'f64')!;
      expect(wrong).toMatchObject({ op: 'neg_exp', dtype: 'f32', passed: false, bound: 1e-6 });
      expect(wrong.error).toBeCloseTo(4e-6, 6);
      expect(found.filter(({ passed }) => !passed)).toEqual([wrong]);
      expect(device.memoryUsage().tensors).toBe(before);
    });

    it('as much with other values', async () => {
      const right = references['neg_exp']!;
      const [first, same, other] = [
        await withReference('neg_exp', right),
        await withReference('neg_exp', right, 0),
        await withReference('neg_exp', right, 65535),
      ];
      expect(first).toEqual(same);
      expect(other.map(({ cases, passed }) => [cases, passed])).toEqual(
        first.map(({ cases }) => [cases, true]),
      );
      expect(other.map(({ error }) => error)).not.toEqual(first.map(({ error }) => error));
    });

    it('a kernel without a reference', async () => {
      const found = await withReference('neg_exp', undefined);
      expect(found).toMatchObject([
        { op: 'neg_exp', passed: false, reason: 'there is no reference to hold it against' },
      ]);
    });
  });
});

it.each([-1, 0.5, 65536, NaN])('refuses the seed %p', async (seed) => {
  await expect(verify('cpu', undefined, seed)).rejects.toThrow(
    new RangeError(`verify: seed is ${seed}, expected a whole number from 0 to 65535`),
  );
});

describe('a bound', () => {
  const op = ops.get('add')!;
  const values = Float64Array.of(1, 1 / 3, -0.7);

  it('is what f32 allows, or twice what rounding once does in half precision', () => {
    expect(boundOf(op, values, 'i32')).toBe(0);
    expect(boundOf(op, values, 'f32')).toBe(1e-6);
    expect(boundOf(op, values, 'bf16')).toBeGreaterThan(2 ** -10);
    expect(boundOf(op, values, 'bf16')).toBeLessThan(2 ** -7);
    expect(boundOf(op, values, 'f16')).toBeLessThan(2 ** -10);
  });

  it('is never kept by what is no number', () => {
    expect(relativeError([NaN, 1], [1, 1])).toBe(Infinity);
    expect(relativeError([NaN], [NaN])).toBe(Infinity);
    expect(relativeError([Infinity, 1], [Infinity, 1])).toBe(0);
    expect(relativeError([Infinity], [1])).toBe(Infinity);
  });
});
