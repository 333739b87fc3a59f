import { mkdir, stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';

/**
 * Makes a folder and those above it that are missing. Not by Node's `recursive`, which never ends where the
 * nearest folder takes none and says so by ENOENT, as /proc does. Returns those that were made, the outermost
 * first. @throws the system's error.
 */
export async function makeFolder(path: string): Promise<readonly string[]> {
  const missing: string[] = [];
  for (let at = resolve(path); !(await isThere(at)); at = dirname(at)) missing.push(at);
  for (const folder of missing.reverse())
    await mkdir(folder).catch(async (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST' || !(await isFolder(folder))) throw error; // another process may have made it
    });
  if (missing.length === 0 && !(await isFolder(path))) await mkdir(path); // the system says what is there instead
  return missing;
}

async function isThere(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return dirname(path) === path;
      throw error;
    },
  );
}

/** Whether a path leads to a folder. */
export const isFolder = (path: string): Promise<boolean> =>
  stat(path).then(
    (stats) => stats.isDirectory(),
    () => false,
  );
