/** Writes to stdout, and waits until it is taken: a slow reader slows the work down. Rejects when stdout is gone. */
export function print(text: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const shown = process.stdout.isTTY ? printable(text) : text;
    process.stdout.write(shown, (error) => (error ? reject(explained(error)) : resolve()));
  });
}

/** Writes bytes to stdout as they are, and waits as `print` does. */
export function printBytes(bytes: Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(bytes, (error) => (error ? reject(explained(error)) : resolve()));
  });
}

/** A reader that went away is no failure, and known by its code. */
function explained(error: NodeJS.ErrnoException): Error {
  if (error.code === 'EPIPE') return error;
  const reason = error.code === 'ENOSPC' ? 'the disk is full' : error.message;
  return new Error(`stdout cannot be written; ${reason}`, { cause: error });
}

/** Writes a line to stderr, where everything goes that is not the answer. */
export function note(line: string): void {
  process.stderr.write(`${process.stderr.isTTY ? printable(line) : line}\n`);
}

/** `text` without the control characters that a terminal would obey; line breaks and tabs stay. */
export function printable(text: string): string {
  return text.replace(/(?![\n\t])\p{Cc}/gu, '');
}

/** `text` on one line, with control characters spelled out. For names that come from files. */
export function oneLine(text: string): string {
  return text.replace(/\p{Cc}/gu, (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, '0')}`);
}

/** Lines with columns under each other; those numbered in `right` are set to the right. */
export function table(rows: readonly (readonly string[])[], right: readonly number[] = []): string {
  const columns = Math.max(0, ...rows.map((row) => row.length));
  const widths = Array.from({ length: columns }, (_, i) =>
    Math.max(...rows.map((row) => row[i]?.length ?? 0)),
  );
  const set = (cell: string, i: number) =>
    right.includes(i) ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!);
  return rows.map((row) => `  ${row.map(set).join('  ').trimEnd()}\n`).join('');
}

/** 1234567 as `1,234,567`. */
export const count = (n: number) => n.toLocaleString('en-US');

/** 1536 as `1.5 KiB`. */
export function size(bytes: number): string {
  const power = Math.min(4, Math.max(0, Math.floor(Math.log2(bytes || 1) / 10)));
  const value = bytes / 1024 ** power;
  return `${power === 0 ? value : value.toFixed(value < 10 ? 2 : 1)} ${['bytes', 'KiB', 'MiB', 'GiB', 'TiB'][power]}`;
}
