/** Some tokens of some sequences, one after the other. */
export interface Piece {
  readonly row: number;
  readonly begin: number;
  readonly end: number;
}

/** Tokens that go through the layers at once: more would not be faster, but take more memory. */
const chunkTokens = 2048;

/** Cuts sequences into pieces that fill chunks of `chunkTokens`. */
export function chunked(lengths: readonly number[]): Piece[][] {
  const chunks: Piece[][] = [];
  let room = 0;
  lengths.forEach((length, row) => {
    for (let begin = 0; begin < length;) {
      if (room === 0) {
        chunks.push([]);
        room = chunkTokens;
      }
      const end = Math.min(length, begin + room);
      chunks.at(-1)!.push({ row, begin, end });
      room -= end - begin;
      begin = end;
    }
  });
  return chunks;
}

/** The rows of a chunk that hold padding: those where `muted` of their sequence is 1. */
export function mutedRows(
  pieces: readonly Piece[],
  muted: readonly (Int32Array | undefined)[] = [],
): number[] {
  const rows: number[] = [];
  let at = 0;
  for (const { row, begin, end } of pieces) {
    muted[row]?.subarray(begin, end).forEach((is, i) => is && rows.push(at + i));
    at += end - begin;
  }
  return rows;
}
