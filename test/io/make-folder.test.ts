import { statSync, symlinkSync, writeFileSync } from 'node:fs';
import { makeFolder } from '../../lib/io/folder';
import { temporaryFolder } from './folder';

const folder = temporaryFolder();

it('makes folders that are missing, and leaves those that are there', async () => {
  await Promise.all([1, 2, 3].map(() => makeFolder(folder.at('a', 'b', 'c'))));
  await makeFolder(folder.at('a', 'b'));
  expect(statSync(folder.at('a', 'b', 'c')).isDirectory()).toBe(true);
  symlinkSync(folder.at('a'), folder.at('link'));
  await makeFolder(folder.at('link'));
  await makeFolder(folder.at('link', 'd'));
  expect(statSync(folder.at('a', 'd')).isDirectory()).toBe(true);
});

it('fails where the system makes none, without trying for ever', async () => {
  await expect(makeFolder('/proc/none/below')).rejects.toThrow(/^ENOENT: .*mkdir '\/proc\/none'/);
  writeFileSync(folder.at('file'), '');
  await expect(makeFolder(folder.at('file'))).rejects.toThrow(/^EEXIST: .*file'/);
  await expect(makeFolder(folder.at('file', 'below'))).rejects.toThrow(/^ENOTDIR: /);
  symlinkSync(folder.at('nowhere'), folder.at('dangling'));
  await expect(makeFolder(folder.at('dangling', 'below'))).rejects.toThrow(/^EEXIST: .*dangling'/);
});
