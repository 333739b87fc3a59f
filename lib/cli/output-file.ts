import { access, constants, stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { irregular } from '../io/atomic';
import { UsageError } from './exit';
import { oneLine } from './terminal';

/**
 * What cannot be written is better known before the work than after it. `flag` is the one that names the file,
 * which is to be replaced as a whole: devices and pipes are refused, unless it is `direct`ly written to.
 */
export async function checkOutput(flag: string, path: string, direct = false): Promise<void> {
  const stats = await stat(path).catch(() => undefined);
  const strange = stats && irregular(stats);
  if (strange !== undefined && !(direct && !stats!.isDirectory()))
    throw new UsageError(`${flag}: ${oneLine(path)} is ${strange}, expected a file to write`);
  const folder = dirname(resolve(path));
  await access(folder, constants.W_OK).catch((error: unknown) => {
    throw new UsageError(`${flag}: folder ${oneLine(folder)} does not exist or cannot be written`, {
      cause: error,
    });
  });
}

/** The same of a folder, which need not be there yet. */
export async function checkFolder(flag: string, path: string): Promise<void> {
  const stats = await stat(path).catch(() => undefined);
  if (stats && !stats.isDirectory())
    throw new UsageError(`${flag}: ${oneLine(path)} is ${irregular(stats) ?? 'a file'}, expected a folder`);
}
