import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { link, lstat, open, readFile, rename, rm, rmdir, stat } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { FormatError, TrainingError } from '../errors';
import { irregular } from './atomic';
import { makeFolder } from './folder';
import { isObject, parseJsonObject } from './json';

const name = '.lock';
/** How long a process may take from making the file to writing into it. */
const graceMs = 10_000;

/** Who holds a folder. */
interface Holder {
  readonly pid: number;
  /** Of the process, in ticks since the machine's start; null where the system does not tell. */
  readonly begun: string | null;
  readonly host: string;
  /** When it was locked. */
  readonly since: string;
}

/** A folder that no other process writes into. */
export interface Lock {
  /** Frees the folder. One that was made for the lock, and in which nothing is, goes as well. */
  release(): Promise<void>;
}

/**
 * Makes `folder` if need be, and a file in it, `.lock`, which says who holds it. The lock of a process that has
 * died is taken over, and `onWarning` says so.
 * @throws TrainingError where another holds it, or it cannot be made or written.
 */
export async function lockFolder(
  folder: string,
  onWarning: (message: string) => void = () => {},
): Promise<Lock> {
  const made = await makeFolder(folder).catch(explained(`${folder}: folder cannot be made`));
  const path = join(folder, name);
  const holder = { pid: process.pid, begun: begunAt(process.pid), host: hostname() };
  const own = `${JSON.stringify({ ...holder, since: new Date().toISOString() } satisfies Holder)}\n`;
  // What holds something stays.
  const removeMade = async () => {
    for (const each of [...made].reverse()) await rmdir(each).catch(() => {});
  };
  try {
    while (!(await create(path, own).catch(explained(`${folder}: folder cannot be written`)))) {
      const text = await textOf(path);
      if (text === undefined) continue; // it was released just now
      const gone = await whyGone(path, text, folder);
      if (await takeAway(path, text)) onWarning(`${folder}: was left locked by ${gone}; going on`);
    }
  } catch (error) {
    await removeMade();
    throw error;
  }
  return {
    async release() {
      if ((await readFile(path, 'utf8').catch(absent)) === own) await rm(path, { force: true });
      await removeMade();
    },
  };
}

/** Throws what the system says after what it means here. */
const explained = (what: string) => (error: NodeJS.ErrnoException) => {
  const reason = error.code === 'ENOSPC' ? 'the disk is full' : error.message;
  throw new TrainingError(`${what}; ${reason}`, { cause: error });
};

function absent(error: NodeJS.ErrnoException): undefined {
  if (error.code !== 'ENOENT') throw error;
}

/** What a lock says; undefined where it is gone. @throws TrainingError for what is no lock: a folder, a pipe, a link. */
async function textOf(path: string): Promise<string | undefined> {
  const stats = await lstat(path).catch(absent);
  const strange = stats && (stats.isSymbolicLink() ? 'a link' : irregular(stats));
  if (strange !== undefined)
    throw new TrainingError(
      `${path}: is ${strange}, expected the file that says who uses the folder; remove it`,
    );
  return readFile(path, 'utf8').catch(absent);
}

/** False where the file is there already. */
async function create(path: string, text: string): Promise<boolean> {
  const file = await open(path, 'wx').catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error;
  });
  if (!file) return false;
  try {
    await file.writeFile(text);
  } catch (error) {
    await rm(path, { force: true });
    throw error;
  } finally {
    await file.close();
  }
  return true;
}

/** Who left a lock. @throws TrainingError unless they are known to be gone. */
async function whyGone(path: string, text: string, folder: string): Promise<string> {
  const holder = parsed(text, path);
  if (!holder) {
    const { mtimeMs } = (await stat(path).catch(absent)) ?? { mtimeMs: 0 };
    if (Date.now() - mtimeMs > graceMs) return 'a process that did not get to say which';
    throw new TrainingError(`${folder}: is in use by a process that began just now; one at a time`);
  }
  const { pid, begun, host, since } = holder;
  if (host === hostname() && !runs(pid, begun)) return `process ${pid}, which has died`;
  const where = host === hostname() ? '' : ` on ${host}`;
  const otherwise = where && `, or if that one has died remove ${path}`;
  throw new TrainingError(
    `${folder}: is in use by process ${pid}${where} since ${since}; wait for its end or choose another folder${otherwise}`,
  );
}

function parsed(text: string, path: string): Holder | undefined {
  try {
    const holder: unknown = parseJsonObject(Buffer.from(text), path);
    if (!isObject(holder) || !Number.isSafeInteger(holder['pid'])) return undefined;
    return holder as unknown as Holder;
  } catch (error) {
    if (error instanceof FormatError) return undefined; // a power cut may leave it empty
    throw error;
  }
}

/** Whether a process runs, and not another with its number: one that was `begun` when it is known. */
export function runs(pid: number, begun: string | null): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false;
  }
  const now = begunAt(pid);
  return begun === null || now === null || now === begun;
}

/** When a process began, where /proc tells: the 22nd field, counted from behind its name in parentheses. */
function begunAt(pid: number): string | null {
  try {
    const line = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return line.slice(line.lastIndexOf(')') + 2).split(' ')[19] ?? null;
  } catch {
    return null;
  }
}

/**
 * Removes a lock that says `text`. Another process may have done so and made its own since: that one is put
 * back, unless a third was quicker.
 */
async function takeAway(path: string, text: string): Promise<boolean> {
  const aside = `${path}.${randomBytes(4).toString('hex')}`;
  try {
    await rename(path, aside);
  } catch (error) {
    absent(error as NodeJS.ErrnoException);
    return false;
  }
  try {
    if ((await readFile(aside, 'utf8')) === text) return true;
    await link(aside, path).catch(() => {});
    return false;
  } finally {
    await rm(aside, { force: true });
  }
}
