import { DisposedError } from '../lib/errors';
import { cast } from '../lib/ops/elementwise';
import { rmsNorm } from '../lib/ops/norm';
import { Tensor, type DType } from '../lib/tensor';
import { onEach } from './devices';

type Loose = (...args: readonly unknown[]) => unknown;

describe.each(onEach)('on %s', (_, device) => {
  const count = (n: number) => Float32Array.from({ length: n }, (_, i) => i);
  const matrix = () => Tensor.from(count(12), [3, 4], { device });

  describe('from', () => {
    it('takes typed arrays and numbers', async () => {
      const given: readonly (readonly [Parameters<typeof Tensor.from>[0], DType | undefined, DType])[] = [
        [Float32Array.of(1, -2.5), undefined, 'f32'],
        [[1, -2.5], undefined, 'f32'],
        [Int32Array.of(1, -2), undefined, 'i32'],
        [[1, -2], 'i32', 'i32'],
        [Uint16Array.of(0x3f80, 0xc020), 'bf16', 'bf16'],
        [Uint16Array.of(0x3c00, 0xc100), 'f16', 'f16'],
      ];
      for (const [data, dtype, wanted] of given) {
        const made = Tensor.from(data, [2], { dtype, device });
        expect([made.dtype, made.shape, made.size, String(made)]).toEqual([wanted, [2], 2, `${wanted}[2]`]);
        expect([...(await made.data())]).toEqual([...data]);
      }
    });

    it('takes a part of a buffer, and the values as they are now', async () => {
      const whole = count(10);
      const made = Tensor.from(whole.subarray(4, 7), [3], { device });
      whole.fill(-1);
      expect([...(await made.data())]).toEqual([4, 5, 6]);
    });

    it.each<readonly [string, readonly unknown[], string]>([
      [
        'the wrong array for a dtype',
        [Int32Array.of(1), [1], { dtype: 'f32' }],
        'data is Int32Array, expected Float32Array for f32',
      ],
      [
        'floats for half precision',
        [Float32Array.of(1), [1], { dtype: 'bf16' }],
        'data is Float32Array, expected Uint16Array for bf16',
      ],
      [
        'numbers for half precision',
        [[1], [1], { dtype: 'f16' }],
        'data is Array, expected Uint16Array for f16',
      ],
      ['bits without a dtype', [Uint16Array.of(1)], 'data is Uint16Array, expected Float32Array for f32'],
      ['doubles', [Float64Array.of(1)], 'data is Float64Array'],
      ['a view that is no array', [new DataView(new ArrayBuffer(4)), [1]], 'data is DataView'],
      ['text', ['1', [1]], 'data is string'],
      ['an unknown dtype', [[1], [1], { dtype: 'f64' }], 'dtype is f64, expected one of f32, bf16, f16, i32'],
      ['too few values', [[1, 2], [3]], 'data has 2 elements, expected 3 for [3]'],
    ])('refuses %s', (_, args, message) => {
      const before = device.memoryUsage().tensors;
      expect(() => (Tensor.from as Loose)(...args)).toThrow(TypeError);
      expect(() => (Tensor.from as Loose)(...args)).toThrow(`Tensor.from: ${message}`);
      expect(device.memoryUsage().tensors).toBe(before);
    });
  });

  describe('empty', () => {
    it.each([[[0]], [[3, 0]], [[0, 5, 2]], [[1, 1, 1, 1]]])('can be [%s]', async (shape) => {
      const made = Tensor.empty(shape, 'i32', device);
      expect(made.shape).toEqual(shape);
      expect((await made.data()).length).toBe(made.size);
    });

    it.each<readonly [readonly unknown[], string]>([
      [[-1], 'expected whole numbers, 0 or more'],
      [[2.5], 'expected whole numbers, 0 or more'],
      [[NaN], 'expected whole numbers, 0 or more'],
      [['3'], 'expected whole numbers, 0 or more'],
      [[], 'expected 1 to 4 dimensions'],
      [[1, 1, 1, 1, 1], 'expected 1 to 4 dimensions'],
      [[2 ** 30, 2 ** 30], 'expected at most 2^48 elements'],
      [[0, 2 ** 52], 'expected at most 2^48 elements'],
    ])('refuses [%s]', (shape, message) => {
      expect(() => Tensor.empty(shape as number[], 'f32', device)).toThrow(RangeError);
      expect(() => Tensor.empty(shape as number[], 'f32', device)).toThrow(
        `Tensor: shape is [${shape.join(',')}], ${message}`,
      );
    });

    it('refuses an unknown dtype or device', () => {
      expect(() => Tensor.empty([1], 'f64' as DType, device)).toThrow('Tensor: dtype is f64');
      expect(() => Tensor.empty([1], 'f32', 'tpu')).toThrow(
        "device: name is 'tpu', expected cpu, cuda or cuda:<index>",
      );
    });

    it('does not follow changes of the shape that was given', () => {
      const shape = [2, 3];
      const made = Tensor.empty(shape, 'f32', device);
      shape[0] = 99;
      expect(made.shape).toEqual([2, 3]);
    });
  });

  describe('set and write', () => {
    it('write in order, in place', async () => {
      const x = matrix();
      const first = x.data();
      x.set(count(12).map((v) => v + 100));
      await x.write(new Uint8Array(Float32Array.of(-1, -2).buffer), 8);
      expect([...(await first)]).toEqual([...count(12)]);
      expect([...(await x.data())].slice(0, 5)).toEqual([100, 101, -1, -2, 104]);
    });

    it('set refuses other kinds and sizes', () => {
      const x = matrix();
      expect(() => x.set(new Int32Array(12))).toThrow(
        'set: values is Int32Array, expected Float32Array for f32',
      );
      expect(() => (x.set as Loose).call(x, [1, 2])).toThrow('set: values is Array');
      expect(() => x.set(count(11))).toThrow('set: values has 11 elements, expected 12');
      expect(() => x.columns(0, 2).set(count(6))).toThrow('strided rows, expected a dense one');
    });

    it('write refuses what lies outside, and other kinds', async () => {
      const x = matrix();
      for (const offset of [-1, 41, 2 ** 40, 1.5, NaN]) {
        await expect(x.write(new Uint8Array(8), offset)).rejects.toThrow(
          `write: byteOffset is ${offset} for 8 bytes`,
        );
      }
      await expect((x.write as Loose).call(x, count(1))).rejects.toThrow(
        'write: bytes is Float32Array, expected Uint8Array',
      );
      await expect(x.columns(0, 2).write(new Uint8Array(4))).rejects.toThrow(
        'write: tensor is f32[3,2] with strided rows',
      );
    });
  });

  describe('views', () => {
    it('share what they show', async () => {
      const x = matrix();
      x.rows(1, 2).set(Float32Array.of(-4, -5, -6, -7));
      expect([...(await x.data())]).toEqual([0, 1, 2, 3, -4, -5, -6, -7, 8, 9, 10, 11]);
      const [right, middle] = [x.columns(2, 4), x.columns(2, 4).rows(1, 3)];
      expect([right.shape, right.stride, right.dense]).toEqual([[3, 2], 4, false]);
      expect([...(await cast({ x: right }).data())]).toEqual([2, 3, -6, -7, 10, 11]);
      expect([...(await cast({ x: middle }).data())]).toEqual([-6, -7, 10, 11]);
      expect([...(await middle.rows(1, 2).data())]).toEqual([10, 11]); // one row is always dense
      await expect(right.data()).rejects.toThrow('data: tensor is f32[3,2] with strided rows');
    });

    it('outlive the tensor that they were taken from', async () => {
      const x = matrix();
      const row = x.rows(2, 3);
      x.dispose();
      Tensor.from(new Float32Array(12), [3, 4], { device }); // would get its memory
      expect([...(await row.data())]).toEqual([8, 9, 10, 11]);
    });

    it.each([
      [-1, 2],
      [0, 5],
      [2, 1],
      [0.5, 1],
      [NaN, 1],
      [0, Infinity],
    ])('refuse the range %p to %p', (begin, end) => {
      const x = matrix();
      expect(() => x.rows(begin, end)).toThrow(RangeError);
      expect(() => x.rows(begin, end)).toThrow(
        `rows: range is ${begin} to ${end}, expected one within 0 to 3`,
      );
      expect(() => x.columns(begin, end)).toThrow('columns: range is');
    });

    it('can be empty', async () => {
      const x = matrix();
      for (const none of [x.rows(3, 3), x.columns(4, 4), x.rows(0, 0).columns(1, 2)]) {
        expect(none.size).toBe(0);
        expect((await none.data()).length).toBe(0);
      }
    });

    it('columns are of matrices', () => {
      expect(() => matrix().reshape([12]).columns(0, 1)).toThrow(
        'columns: tensor is f32[12], expected two dimensions',
      );
    });
  });

  describe('as', () => {
    it('shows the same bits as another dtype of the same size', async () => {
      const x = Tensor.from([1, -2, 0.5], [1, 3], { device });
      const bits = x.as('i32');
      expect([...(await bits.data())]).toEqual([0x3f800000, -0x40000000, 0x3f000000]);
      bits.set(Int32Array.of(0x40400000, 0, 0x3f800000));
      expect([...(await x.data())]).toEqual([3, 0, 1]);
      const half = Tensor.from(Uint16Array.of(0x3c00, 1, 2, 3), [2, 2], { dtype: 'f16', device });
      expect([...(await half.columns(0, 1).rows(1, 2).as('bf16').data())]).toEqual([2]);
    });

    it('refuses other sizes', () => {
      const x = Tensor.from([1, 2], [2], { device });
      expect(() => x.as('f16')).toThrow('as: dtype is f16, expected one of 4 bytes for f32[2]');
      expect(() => x.as('f64' as 'f32')).toThrow(TypeError);
    });
  });

  describe('reshape', () => {
    it('keeps the elements', async () => {
      const x = matrix();
      for (const shape of [[12], [2, 6], [1, 3, 2, 2], [3, 4]]) {
        const y = x.reshape(shape);
        expect(y.shape).toEqual(shape);
        expect([...(await y.data())]).toEqual([...count(12)]);
      }
    });

    it('splits strided rows, but does not join them', async () => {
      const right = matrix().columns(2, 4);
      expect([...(await right.reshape([3, 2, 1]).rows(1, 2).data())]).toEqual([6, 7]);
      expect(() => right.reshape([6])).toThrow(
        'reshape: tensor is f32[3,2], expected as many elements as [6], row by row',
      );
      // A kernel takes one dimension for dense: a column must not become one.
      expect(() => matrix().columns(1, 2).reshape([3])).toThrow('reshape: tensor is f32[3,1]');
    });

    it('refuses other sizes and shapes', () => {
      expect(() => matrix().reshape([3, 5])).toThrow(
        'reshape: tensor is f32[3,4], expected as many elements as [3,5]',
      );
      expect(() => matrix().reshape([-3, -4])).toThrow('reshape: shape is [-3,-4], expected whole numbers');
      expect(() => matrix().reshape([2.4, 5])).toThrow(RangeError);
      expect(() => matrix().reshape([1, 1, 1, 3, 4])).toThrow(
        'reshape: shape is [1,1,1,3,4], expected 1 to 4 dimensions',
      );
    });
  });

  describe('dispose', () => {
    it('may be called twice, by `using` as well', () => {
      const x = matrix();
      expect(x.disposed).toBe(false);
      x.dispose();
      x.dispose();
      (x as unknown as Record<symbol, () => void>)[Symbol.dispose ?? Symbol.for('Symbol.dispose')]!();
      expect(x.disposed).toBe(true);
      expect([x.dtype, x.shape]).toEqual(['f32', [3, 4]]); // still there for messages
    });

    it('makes every later use a DisposedError', async () => {
      const x = matrix();
      x.dispose();
      for (const use of [
        () => x.rows(0, 1),
        () => x.columns(0, 1),
        () => x.reshape([12]),
        () => x.set(count(12)),
      ]) {
        expect(use).toThrow(DisposedError);
      }
      for (const use of [() => x.data(), () => x.write(new Uint8Array(4))])
        await expect(use()).rejects.toThrow(DisposedError);
      expect(() => rmsNorm({ x, weight: matrix().rows(0, 1).reshape([4]) })).toThrow(
        'rms_norm: x is disposed',
      );
    });

    it('lets queued work finish', async () => {
      const x = matrix();
      const [y, read] = [cast({ x }), x.data()];
      x.dispose();
      expect([...(await read)]).toEqual([...count(12)]);
      expect([...(await y.data())]).toEqual([...count(12)]);
    });
  });
});
