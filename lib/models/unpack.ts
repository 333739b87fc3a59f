import { cast, copySlots, takeRows } from '../ops/elementwise';
import { scope, Tensor } from '../tensor';
import type { Dense } from './inputs';
import type { Piece } from './pieces';

/** Calls `each` with the packed row and the place [batch · length] of every token in `pieces`. */
export function eachToken(
  pieces: readonly Piece[],
  dense: Dense,
  each: (packed: number, row: number, column: number) => void,
): void {
  let at = 0;
  for (const { row, begin, end } of pieces)
    for (let i = begin; i < end; i++, at++) each(at, row, dense.columns[row]![i]!);
}

/** Puts the packed rows of `x` where they belong in a dense [batch · columns, size], from column `first` on. */
export function unpack(
  x: Tensor,
  pieces: readonly Piece[],
  dense: Dense,
  first: number,
  to: Tensor,
  map: (rows: Tensor) => Tensor = (rows) => (rows.dtype === 'f32' ? rows : cast({ x: rows, dtype: 'f32' })),
): void {
  const width = to.shape[0]! / dense.batch;
  const from: number[] = [];
  const places: number[] = [];
  eachToken(pieces, dense, (packed, row, column) => {
    if (column < first) return;
    from.push(packed);
    places.push(row * width + column - first);
  });
  if (from.length === 0) return;
  const { device } = to;
  const ints = (values: Iterable<number>) => Tensor.from(Int32Array.from(values), undefined, { device });
  scope(() => {
    const all = from.length === x.shape[0]!;
    const chosen = map(all ? x : takeRows({ x, rows: ints(from) }));
    copySlots({ from: chosen, fromSlots: ints(from.keys()), to, toSlots: ints(places) });
  });
}
