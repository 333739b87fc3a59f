/** One process at a time in a folder, and none that has died. */
import { execFileSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { hostname } from 'node:os';
import { lockFolder } from '../../lib/io/lock';
import { child } from '../child';
import { temporaryFolder } from './folder';

const folder = temporaryFolder();
const at = (...names: string[]) => folder.at('out', ...names);

/** What `lockFolder` of another process would have written. */
function leave(holder: object | string): void {
  mkdirSync(at(), { recursive: true });
  writeFileSync(at('.lock'), typeof holder === 'string' ? holder : JSON.stringify(holder));
}
const own = { pid: process.pid, begun: null, host: hostname(), since: '2026-01-01T00:00:00.000Z' };

it('lets in one at a time', async () => {
  const lock = await lockFolder(at());
  await expect(lockFolder(at())).rejects.toThrow(
    new RegExp(
      `^${at()}: is in use by process ${process.pid} since 20\\S+; wait for its end or choose another folder$`,
    ),
  );
  await lock.release();
  expect(existsSync(at())).toBe(false); // it was made for the lock alone
  mkdirSync(at());
  await (await lockFolder(at())).release();
  expect(readdirSync(at())).toEqual([]);
});

it('lets in one of many that come at once', async () => {
  leave({ ...own, pid: 2 ** 30 }); // and finds that the one before has died
  const all = await Promise.allSettled(Array.from({ length: 20 }, () => lockFolder(at())));
  const locks = all.flatMap((each) => (each.status === 'fulfilled' ? [each.value] : []));
  expect(locks).toHaveLength(1);
  await locks[0]!.release();
  expect(readdirSync(at())).toEqual([]);
});

it('tells of a folder that cannot be made or written', async () => {
  writeFileSync(folder.at('file'), '');
  await expect(lockFolder(folder.at('file', 'x'))).rejects.toThrow(
    /file\/x: folder cannot be made; ENOTDIR: /,
  );
  const full = jest
    .spyOn(jest.requireActual<typeof import('node:fs/promises')>('node:fs/promises'), 'open')
    .mockRejectedValueOnce(Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' }));
  await expect(lockFolder(at())).rejects.toThrow(/out: folder cannot be written; the disk is full$/);
  full.mockRestore();
  expect(readdirSync(folder.path)).toEqual(['file']);
});

it.each([
  ['a folder', () => mkdirSync(at('.lock'))],
  ['a link', () => symlinkSync('nowhere', at('.lock'))],
  ['a pipe', () => execFileSync('mkfifo', [at('.lock')])],
])('names %s in place of the lock', async (what, make) => {
  mkdirSync(at());
  make();
  await expect(lockFolder(at())).rejects.toThrow(
    `${at('.lock')}: is ${what}, expected the file that says who uses the folder; remove it`,
  );
});

it('keeps folders that it made and in which something is', async () => {
  const lock = await lockFolder(at('deep'));
  writeFileSync(at('deep', 'file'), '');
  await lock.release();
  expect(readdirSync(at('deep'))).toEqual(['file']);
});

it('takes over from a process that has died', async () => {
  const script = `require('./lib/io/lock').lockFolder(${JSON.stringify(at())}).then(() => process.kill(process.pid, 'SIGKILL'))`;
  expect(await child(['-e', script])).toMatchObject({ code: null, signal: 'SIGKILL', stderr: '' });
  const { pid } = JSON.parse(readFileSync(at('.lock'), 'utf8')) as { pid: number };
  const warnings: string[] = [];
  const lock = await lockFolder(at(), (message) => warnings.push(message));
  expect(warnings).toEqual([`${at()}: was left locked by process ${pid}, which has died; going on`]);
  expect(JSON.parse(readFileSync(at('.lock'), 'utf8'))).toMatchObject({ pid: process.pid });
  await lock.release();
});

it('knows another process that has got the number of one that has died', async () => {
  leave({ ...own, begun: '1' });
  const taken = lockFolder(at());
  if (existsSync('/proc/self/stat')) await (await taken).release();
  else await expect(taken).rejects.toThrow('is in use');
});

it('does not judge of processes of other machines', async () => {
  leave({ ...own, pid: 2 ** 30, host: 'elsewhere' });
  await expect(lockFolder(at())).rejects.toThrow(
    /is in use by process \d+ on elsewhere since .* or if that one has died remove .*\.lock$/,
  );
});

it.each(['', '{"pid":', '{"pid":"x"}', 'null'])(
  'takes a lock that says %p for a left one in time',
  async (text) => {
    leave(text);
    await expect(lockFolder(at())).rejects.toThrow('is in use by a process that began just now');
    utimesSync(at('.lock'), 1e9, 1e9);
    const warnings: string[] = [];
    await (await lockFolder(at(), (message) => warnings.push(message))).release();
    expect(warnings).toEqual([expect.stringContaining('by a process that did not get to say which')]);
  },
);
