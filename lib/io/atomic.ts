import { randomBytes } from 'node:crypto';
import type { Stats } from 'node:fs';
import { lstat, open, readlink, realpath, rename, rm, stat, type FileHandle } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';

/**
 * Writes a file so that readers see the old content or the new, never a part: `write` fills a temporary file
 * beside `path`, which replaces it once it is on disk. On any failure (a full disk, a throwing `write`) the old
 * file is as it was, the temporary file is gone, and the error says so. A link stays, and what it leads to is
 * replaced, or with `links: 'replace'` the link; what is no regular file (a device, a pipe) cannot be replaced and
 * is refused.
 */
export async function writeAtomically(
  path: string,
  write: (file: FileHandle) => Promise<void>,
  { links = 'follow' }: { readonly links?: 'follow' | 'replace' } = {},
): Promise<void> {
  const own = links === 'replace' && (await isLink(path));
  const place = await (own ? Promise.resolve(path) : regularFile(path)).catch((error: unknown) => {
    throw explain(error as NodeJS.ErrnoException, path);
  });
  const temporary = `${place}.${process.pid}.${randomBytes(4).toString('hex')}.tmp`;
  try {
    const file = await open(temporary, 'wx');
    try {
      await write(file);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, place);
  } catch (error) {
    await rm(temporary, { force: true });
    throw explain(error as NodeJS.ErrnoException, path);
  }
  await syncFolder(dirname(place));
}

const isLink = (path: string) =>
  lstat(path).then(
    (stats) => stats.isSymbolicLink(),
    () => false,
  );

/** Where the links at `path` end: a regular file, or a name that is free. */
async function regularFile(path: string): Promise<string> {
  const stats = await stat(path).catch(absent);
  if (stats) {
    const strange = irregular(stats);
    if (strange !== undefined) throw new Error(`${path}: is ${strange}, expected a file to write`);
    return realpath(path);
  }
  // A link to nothing yet is followed by hand; a ring of links has failed above.
  const next = await readlink(path).catch(() => undefined);
  return next === undefined ? path : regularFile(resolve(await realpath(dirname(path)), next));
}

function absent(error: NodeJS.ErrnoException): undefined {
  if (error.code !== 'ENOENT') throw error;
}

/** What `stats` are of, in words, unless it is a regular file. */
export function irregular(stats: Stats): string | undefined {
  if (stats.isFile()) return undefined;
  if (stats.isDirectory()) return 'a folder';
  if (stats.isFIFO()) return 'a pipe';
  return stats.isSocket() ? 'a socket' : 'a device';
}

/** Writes all of `bytes` at the file's current position; a single `write` may stop short. */
export async function writeFully(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await file.write(bytes, done, Math.min(bytes.length - done, 1 << 30));
    done += bytesWritten;
  }
}

/** System errors get the path and what became of the old file; errors of the caller's `write` pass as they are. */
function explain(error: NodeJS.ErrnoException, path: string): Error {
  if (error.code === undefined || error.syscall === undefined) return error;
  const reason = error.code === 'ENOSPC' ? 'the disk is full' : error.message;
  const explained = new Error(`${path}: cannot be written, ${reason}; what was there before is unchanged`, {
    cause: error,
  });
  return Object.assign(explained, { code: error.code });
}

/** Makes the rename itself survive a power cut; where folders cannot be synced (Windows) it is left to the system. */
async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r').catch(() => undefined);
  await folder?.sync().catch(() => undefined);
  await folder?.close();
}
