import type { InputGradients } from '../autograd/tape';
import { op, positional } from '../op';
import type { Tensor } from '../tensor';
import { rowsGradient } from './matmul-backward';

/** The same values in another dtype, dense unless `out` says where. */
export const cast = op('cast', {
  in: { x: 'T[t,d]' },
  out: { y: 'Y[t,d]' },
  strided: ['y'],
  vjp: ({ grad, inputs }): InputGradients => ({ x: cast({ x: grad['y']!, dtype: inputs['x']!.dtype }) }),
});

/** `a + b` */
export const add = positional(
  op('add', {
    in: { a: 'T[t,d]', b: 'T[t,d]' },
    out: { y: 'T[t,d]' },
    vjp: ({ grad }) => ({ a: grad['y'], b: grad['y'] }),
  }),
);

/** `x = value`, everywhere. */
export const fill = op('fill', { in: { x: 'T[t,d]!' }, attrs: { value: 0 }, out: {} });

/** `sum = sum + x`, rounded once to the dtype of `sum`. */
export const accumulate = op('accumulate', { in: { x: 'T[t,d]', sum: 'S[t,d]!' }, out: {} });

/** `a · b`, element by element. */
const product = op('mul', {
  in: { a: 'T[t,d]', b: 'T[t,d]' },
  out: { y: 'T[t,d]' },
  saves: ['a', 'b'],
  vjp: ({ args, grad }): InputGradients => ({
    a: mul(grad['y']!, args['b'] as Tensor),
    b: mul(grad['y']!, args['a'] as Tensor),
  }),
});
export const mul: (...tensors: readonly Tensor[]) => Tensor = positional(product);

/** `-exp(x)`: A from the parameter A_log. */
export const negExp = op('neg_exp', {
  in: { x: 'f32[t,d]' },
  out: { y: 'f32[t,d]' },
  saves: ['y'],
  // d(-e^x)/dx is -e^x itself.
  vjp: ({ results, grad, room }): InputGradients => ({
    x: product({ a: grad['y']!, b: results['y']!, out: { y: room('x') } }),
  }),
});

/** Rows of `x` by number, in the order of `rows`. */
export const takeRows = op('take_rows', {
  in: { x: 'T[t,d]', rows: 'i32[m]' },
  out: { y: 'T[m,d]' },
  saves: ['rows'],
  vjp: ({ args, grad, inputs, sum }): InputGradients => ({
    x: rowsGradient(args['rows'] as Tensor, grad['y']!, inputs['x']!, sum('x')),
  }),
});

/** Zeros the rows of a pool that `slots` names; negative slots are passed over. */
export const zeroSlots = op('zero_slots', { in: { pool: 'T[p,e]!', slots: 'i32[s]' }, out: {} });

/** Copies rows `fromSlots` of one pool to rows `toSlots` of another. */
export const copySlots = op('copy_slots', {
  in: { from: 'T[p,e]', fromSlots: 'i32[s]', to: 'T[q,e]!', toSlots: 'i32[s]' },
  out: {},
});

/** `x = x · factor`, with one factor for all. */
export const scale = op('scale', { in: { x: 'T[t,d]!', factor: 'f32[1]' }, out: {} });
