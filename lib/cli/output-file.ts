import { access, constants, stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { UsageError } from './exit';
import { oneLine } from './terminal';

/** What cannot be written is better known before the work than after it. `flag` is the one that names the file. */
export async function checkOutput(flag: string, path: string): Promise<void> {
  const folder = dirname(resolve(path));
  await access(folder, constants.W_OK).catch((error: unknown) => {
    throw new UsageError(`${flag}: folder ${oneLine(folder)} does not exist or cannot be written`, {
      cause: error,
    });
  });
  if ((await stat(path).catch(() => undefined))?.isDirectory())
    throw new UsageError(`${flag}: ${oneLine(path)} is a folder, expected a file to write`);
}
