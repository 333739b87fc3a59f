import { execFileSync } from 'node:child_process';
import {
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { writeAtomically, writeFully } from '../../lib/io/atomic';
import { temporaryFolder } from './folder';

const folder = temporaryFolder();
const write = (name: string, text: string) =>
  writeAtomically(folder.at(name), (file) => writeFully(file, Buffer.from(text)));

describe('writeAtomically', () => {
  it('replaces what a link leads to, and keeps the link', async () => {
    mkdirSync(folder.at('far'));
    symlinkSync('far/file', folder.at('inner'));
    symlinkSync('inner', folder.at('outer'));
    for (const text of ['first', 'second']) {
      await write('outer', text);
      expect(readFileSync(folder.at('far', 'file'), 'utf8')).toBe(text);
    }
    expect(readlinkSync(folder.at('outer'))).toBe('inner');
    expect(readlinkSync(folder.at('inner'))).toBe('far/file');
    expect(readdirSync(folder.at('far'))).toEqual(['file']);
  });

  it('replaces a link where it is asked to, whatever it leads to', async () => {
    writeFileSync(folder.at('file'), 'old');
    symlinkSync('file', folder.at('link'));
    symlinkSync('nowhere', folder.at('dangling'));
    for (const name of ['link', 'dangling', 'new']) {
      await writeAtomically(folder.at(name), (file) => writeFully(file, Buffer.from('new')), {
        links: 'replace',
      });
      expect(lstatSync(folder.at(name)).isFile()).toBe(true);
      expect(readFileSync(folder.at(name), 'utf8')).toBe('new');
    }
    expect(readFileSync(folder.at('file'), 'utf8')).toBe('old');
    expect(readdirSync(folder.path).sort()).toEqual(['dangling', 'file', 'link', 'new']);
  });

  it('takes `..` of a link from where the link lies', async () => {
    mkdirSync(folder.at('a', 'b'), { recursive: true });
    symlinkSync('a/b', folder.at('b'));
    symlinkSync('../file', folder.at('a', 'b', 'link'));
    await write('b/link', 'text');
    expect(readFileSync(folder.at('a', 'file'), 'utf8')).toBe('text');
  });

  it('refuses what is no regular file, and leaves it', async () => {
    execFileSync('mkfifo', [folder.at('pipe')]);
    symlinkSync('pipe', folder.at('link'));
    for (const name of ['pipe', 'link'])
      await expect(write(name, 'x')).rejects.toThrow(
        `${folder.at(name)}: is a pipe, expected a file to write`,
      );
    await expect(write('.', 'x')).rejects.toThrow('is a folder, expected a file to write');
    expect(lstatSync(folder.at('pipe')).isFIFO()).toBe(true);
    expect(lstatSync(folder.at('link')).isSymbolicLink()).toBe(true);
  });

  it('refuses a ring of links, and a folder that is none', async () => {
    symlinkSync('b', folder.at('a'));
    symlinkSync('a', folder.at('b'));
    writeFileSync(folder.at('file'), '');
    await expect(write('a', 'x')).rejects.toThrow(/ELOOP/);
    await expect(write('file/x', 'x')).rejects.toThrow(/ENOTDIR/);
    expect(readdirSync(folder.path).sort()).toEqual(['a', 'b', 'file']);
  });
});
