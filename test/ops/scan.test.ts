import { join } from 'node:path';
import type { Op } from '../../lib/op';
import { openSafetensors } from '../../lib/io/safetensors';
import { causalConv1dPacked, selectiveScanPacked } from '../../lib/ops/scan';
import { Tensor, type DType } from '../../lib/tensor';
import { bits, inputsOf, read, toTensor, type Sizes } from '../../lib/verify/cases';
import { onEach } from '../devices';
import { packedAndPieces, packedArguments } from '../../lib/verify/pieces';
import { references, type Inputs } from '../../lib/verify/reference';
import { expectSame, relativeError } from '../same';

type Args = Record<string, Tensor | boolean | undefined>;
type Call = (args: Args) => Tensor;

// Lengths 5, 0, 17 and 1: three sequences with a state, one of them empty, and one without.
const lengths = [5, 0, 17, 1];
const slots = [3, 1, -1, 0];

const subjects: readonly (readonly [string, Op, Call, Sizes])[] = [
  [
    'selective_scan',
    selectiveScanPacked as unknown as Op,
    selectiveScanPacked as unknown as Call,
    { d: 70, n: 16, g: 2 },
  ],
  [
    'causal_conv1d',
    causalConv1dPacked as unknown as Op,
    causalConv1dPacked as unknown as Call,
    { d: 70, w: 4 },
  ],
];
const flags = { selective_scan: { deltaSoftplus: true }, causal_conv1d: { silu: true } } as const;

describe.each(onEach)('on %s', (_, device) => {
  const ints = (data: readonly number[]) => Tensor.from(Int32Array.from(data), [data.length], { device });

  describe.each(subjects)('%s', (name, op, call, sizes) => {
    describe.each(['f32', 'bf16', 'f16'] as const)('%s', (T) => {
      const each = { sizes, dtype: T, lengths, slots, attrs: flags[name as keyof typeof flags] };
      const given = (): Args => packedArguments(op, device, each) as Args;
      const copyOf = async (args: Args): Promise<Args> => {
        const state = args['state'] as Tensor;
        return {
          ...args,
          state: Tensor.from(await state.data(), state.shape, { dtype: state.dtype, device }),
        };
      };

      it.each([1, 2, 16, 1000])('packed is one by one, in pieces of %i tokens', async (step) => {
        for (const form of name === 'selective_scan' ? [0, 1] : [0])
          for (const pair of await packedAndPieces(op, device, { ...each, form }, step))
            expectSame(pair.pieces, pair.packed, { on: device, dtype: pair.dtype });
      });

      it('leaves states that no sequence owns as they are', async () => {
        const args = given();
        const state = args['state'] as Tensor;
        const rows = () => Promise.all([1, 2, 4, 5].map((i) => bits(state.rows(i, i + 1))));
        const before = await rows();
        await call(args).data();
        expect(await rows()).toEqual(before); // row 1 belongs to the empty sequence
      });

      it('without slots, sequence i owns row i', async () => {
        const args: Args = { ...given(), slots: undefined };
        const named: Args = { ...(await copyOf(args)), slots: ints([0, 1, 2, 3]) };
        expect((await bits(call(args))).equals(await bits(call(named)))).toBe(true);
        expect((await bits(args['state'] as Tensor)).equals(await bits(named['state'] as Tensor))).toBe(true);
      });

      it.each([
        ['offsets', [1, 5, 5, 22, 23], 'offsets'],
        ['offsets', [0, 6, 5, 22, 23], 'offsets'],
        ['offsets', [0, 5, 5, 22, 24], 'offsets'],
        ['offsets', [0, 5, 5, 22, 22], 'offsets'],
        ['slots', [3, 1, 6, 0], 'slots'],
      ])('refuses %s %p when it is read, and works on', async (input, wrong, mentioned) => {
        const y = call({ ...given(), [input]: ints(wrong) });
        await expect(y.data()).rejects.toThrow(new RegExp(`${name}: ${mentioned}`));
        await call(given()).data();
      });
    });

    it.each([1, 2, 3, 4, 5, 8, 16, 33, 64])('any state size or width: %i', async (size) => {
      for (const T of ['f32', 'bf16'] as const) {
        const inputs = inputsOf(op, { sizes: { ...sizes, t: 20, d: 36, n: size, w: size }, dtypes: { T } });
        const tensors = Object.fromEntries(
          Object.entries(inputs).map(([input, value]) => [input, toTensor(value, device)]),
        );
        const got = [await read(call({ ...tensors })), await read(tensors['state']!)];
        const want = [references[name]!(inputs as Inputs, {})['y']!.data, inputs['state']!.data];
        got.forEach((each, i) =>
          expect(relativeError(each, want[i]!)).toBeLessThan(
            T === 'f32' || (i && name === 'selective_scan') ? 2e-6 : 2 ** -8,
          ),
        );
      }
    });
  });

  // As many channels as take each of the ways a GPU has for long sequences (132 multiprocessors).
  it.each([
    ['a few', 'f32', [700, 300, 33, 257], 72, 2],
    ['a few', 'bf16', [700, 300, 33, 257], 72, 2],
    ['some', 'bf16', [1400, 700], 480, 2],
    ['a few', 'f16', [1025], 1544, 1],
    ...(device.id === 'cpu'
      ? []
      : ([
          ['a wave of 96', 'bf16', Array<number>(44).fill(260), 288, 1],
          ['a wave of 128', 'f32', Array<number>(44).fill(257), 384, 1],
        ] as const)),
  ] as const)(
    'selective_scan, %s channels in %s: long is short after short',
    async (_, dtype, lengths, d, g) => {
      const slots = lengths.map((_, i) => i - 1); // the first has no state
      const each = { sizes: { d, n: 16, g }, dtype, lengths, slots, attrs: flags.selective_scan };
      const op = selectiveScanPacked as unknown as Op;
      for (const pair of await packedAndPieces(op, device, each, 200))
        expectSame(pair.pieces, pair.packed, { on: device, dtype: pair.dtype });
    },
  );

  describe('answers of another implementation, in f64', () => {
    it.each([0, 1, 2, 3, 4, 5, 6, 7])('case %i', async (i) => {
      const file = await openSafetensors(
        join(__dirname, '..', 'fixtures', 'selective-scan', 'cases.safetensors'),
      );
      try {
        const load = async (name: string) => {
          const info = file.tensors.get(`${i}.${name}`);
          if (!info) return undefined;
          const data = new (info.dtype === 'F64' ? Float64Array : Float32Array)(
            (info.end - info.begin) / (info.dtype === 'F64' ? 8 : 4),
          );
          await file.read(info, new Uint8Array(data.buffer));
          return { shape: info.shape, data: Float64Array.from(data) };
        };
        const u = await load('u');
        if (!u) return expect([...file.tensors.keys()].some((name) => name.startsWith(`${i}.`))).toBe(false);
        const [batch, d, length] = u.shape as [number, number, number];
        const f32 = (shape: readonly number[], data: Float64Array, dtype: DType = 'f32') =>
          toTensor({ shape, data, dtype }, device);
        const A = (await load('A'))!;
        const n = A.shape[1]!;
        /** (batch, dim..., length) to packed tokens (batch · length, dim...). */
        const packed = async (name: string) => {
          const x = await load(name);
          if (!x) return undefined;
          if (x.shape.length === 2) return f32(x.shape, x.data); // constant B or C
          const dims = x.shape.slice(1, -1);
          return f32(
            [batch * length, ...dims],
            transpose(
              x.data,
              batch,
              dims.reduce((a, b) => a * b, 1),
              length,
            ),
          );
        };
        const vector = async (name: string) => {
          const x = await load(name);
          return x && f32(x.shape, x.data);
        };
        const state = f32([batch, d, n], new Float64Array(batch * d * n));
        const y = selectiveScanPacked({
          u: (await packed('u'))!,
          delta: (await packed('delta'))!,
          A: f32(A.shape, A.data),
          B: (await packed('B'))!,
          C: (await packed('C'))!,
          D: await vector('D'),
          z: await packed('z'),
          deltaBias: await vector('delta_bias'),
          deltaSoftplus: file.tensors.has(`${i}.delta_bias`),
          offsets: ints(Array.from({ length: batch + 1 }, (_, b) => b * length)),
          state,
        });
        const out = (await load('out'))!;
        expect(relativeError(await read(y), transpose(out.data, batch, d, length))).toBeLessThan(2e-6);
        expect(relativeError(await read(state), (await load('last_state'))!.data)).toBeLessThan(2e-6);
      } finally {
        await file.close();
      }
    });
  });
});

/** (batch, dim, length) to (batch, length, dim). */
function transpose(x: Float64Array, batch: number, dim: number, length: number): Float64Array {
  const y = new Float64Array(x.length);
  for (let b = 0; b < batch; b++)
    for (let c = 0; c < dim; c++)
      for (let t = 0; t < length; t++) y[(b * length + t) * dim + c] = x[(b * dim + c) * length + t]!;
  return y;
}
