import { op, positional } from '../op';

/** The same values in another dtype, dense. */
export const cast = op('cast', { in: { x: 'T[t,d]' }, out: { y: 'Y[t,d]' } });

/** `a + b` */
export const add = positional(op('add', { in: { a: 'T[t,d]', b: 'T[t,d]' }, out: { y: 'T[t,d]' } }));

/** `-exp(x)`: A from the parameter A_log. */
export const negExp = op('neg_exp', { in: { x: 'f32[t,d]' }, out: { y: 'f32[t,d]' } });

/** Rows of `x` by number, in the order of `rows`. */
export const takeRows = op('take_rows', { in: { x: 'T[t,d]', rows: 'i32[m]' }, out: { y: 'T[m,d]' } });

/** Zeros the rows of a pool that `slots` names; negative slots are passed over. */
export const zeroSlots = op('zero_slots', { in: { pool: 'T[p,e]!', slots: 'i32[s]' }, out: {} });

/** Copies rows `fromSlots` of one pool to rows `toSlots` of another. */
export const copySlots = op('copy_slots', {
  in: { from: 'T[p,e]', fromSlots: 'i32[s]', to: 'T[q,e]!', toSlots: 'i32[s]' },
  out: {},
});

/** `logsumexp(logits) - logits[label]` for each row, in f32; 0 where the label is -100. */
export const crossEntropy = op('cross_entropy', {
  in: { logits: 'f32[t,v]', labels: 'i32[t]' },
  out: { loss: 'f32[t]' },
});
