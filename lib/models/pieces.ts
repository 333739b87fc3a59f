/** Some tokens of some sequences, one after the other. */
export interface Piece {
  readonly row: number;
  readonly begin: number;
  readonly end: number;
}

/**
 * Tokens that go through the layers at once: more would hardly be faster, but take more memory. On a
 * GPU 8 x 2048 tokens of a 1.4b model take 95.7 ms at once, 98.8 in halves and 125 in eighths.
 */
export const chunkTokens = (deviceId: string): number => (deviceId.startsWith('cuda') ? 16384 : 2048);

/** Cuts sequences into pieces that fill chunks of `most` tokens. */
export function chunked(lengths: readonly number[], most: number): Piece[][] {
  const chunks: Piece[][] = [];
  let room = 0;
  lengths.forEach((length, row) => {
    for (let begin = 0; begin < length;) {
      if (room === 0) {
        chunks.push([]);
        room = most;
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
