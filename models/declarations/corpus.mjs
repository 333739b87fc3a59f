/**
 * Cuts TypeScript's own lib/*.d.ts into files to train on, to choose by (validation) and to be measured on
 * (test), such that those of one kind share no passage of 200 bytes with those of another:
 *   node models/declarations/corpus.mjs <folder>    writes <folder>/{training,validation,test}/*.d.ts
 */
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';

/** Bytes of a passage that must not be in files of two kinds. */
export const passage = 200;
/** What is written of the training's files: most of this one is in lib.dom.d.ts word by word. */
const leftOut = 'lib.webworker.d.ts';
/** So often are the training's files written that are smaller than `small`, so that the largest do not drown them. */
const copies = 4;
const small = 300_000;
/** Bytes that are held out. */
const wanted = { test: 64_000, validation: 32_000 };
/** Groups of files that are larger than this are for training: none is more than a quarter of a test. */
const mostHeldOut = wanted.test / 4;

/** TypeScript's folder of declarations. */
const typescript = dirname(createRequire(import.meta.url).resolve('typescript'));

/** The files by name, without the licence's header that all of them begin with. */
export function declarations(folder = typescript) {
  const names = readdirSync(folder).filter((name) => name.endsWith('.d.ts'));
  const header = /^\/\*! \*+\n[^]*?\n\*+ \*\/\s*/;
  return new Map(
    names.sort().map((name) => [name, readFileSync(join(folder, name), 'latin1').replace(header, '')]),
  );
}

/** Files in groups: two that share a passage are in the same one. */
export function groupsOf(files) {
  const parent = new Map([...files.keys()].map((name) => [name, name]));
  const root = (name) => {
    while (parent.get(name) !== name) name = parent.get(name);
    return name;
  };
  // Every passage holds a whole block of half its length that begins at a multiple of that: those are looked for.
  const half = passage / 2;
  const blocks = new Map();
  for (const [name, text] of files)
    for (let at = 0; at + half <= text.length; at += half) {
      const block = text.slice(at, at + half);
      if (!blocks.has(block)) blocks.set(block, []);
      blocks.get(block).push({ name, text, at });
    }
  for (const [name, text] of files)
    for (let at = 0; at + half <= text.length; at++)
      for (const other of blocks.get(text.slice(at, at + half)) ?? [])
        if (root(other.name) !== root(name) && commonAround(text, at, other.text, other.at) >= passage)
          parent.set(root(other.name), root(name));
  const groups = new Map();
  for (const name of files.keys()) groups.set(root(name), [...(groups.get(root(name)) ?? []), name]);
  return [...groups.values()];
}

/** Bytes that two texts have in common around these places. */
function commonAround(a, i, b, j) {
  let [before, after] = [0, 0];
  while (before < passage && i > before && j > before && a[i - before - 1] === b[j - before - 1]) before++;
  while (after < passage && i + after < a.length && j + after < b.length && a[i + after] === b[j + after])
    after++;
  return before + after;
}

/** Which files are for what: groups in the order of a hash of their names, until there is enough held out. */
export function split(files) {
  const bytes = (group) => group.reduce((sum, name) => sum + files.get(name).length, 0);
  const hash = (group) => createHash('sha256').update(group.join()).digest('hex');
  const groups = groupsOf(files).sort((a, b) => (hash(a) < hash(b) ? -1 : 1));
  const parts = { training: [], validation: [], test: [] };
  for (const group of groups) {
    const kind =
      bytes(group) > mostHeldOut
        ? 'training'
        : (Object.keys(wanted).find((kind) => bytes(parts[kind]) < wanted[kind]) ?? 'training');
    parts[kind].push(...group);
  }
  for (const names of Object.values(parts)) names.sort();
  return parts;
}

function write(folder) {
  const files = declarations();
  for (const [kind, names] of Object.entries(split(files))) {
    const to = join(folder, kind);
    rmSync(to, { recursive: true, force: true });
    mkdirSync(to, { recursive: true });
    const bytes = names.reduce((sum, name) => sum + files.get(name).length, 0);
    console.log(`${kind}: ${names.length} files, ${bytes} bytes`);
    for (const name of names) {
      const text = files.get(name);
      const times = kind !== 'training' ? 1 : name === leftOut ? 0 : text.length < small ? copies : 1;
      for (let i = 1; i <= times; i++)
        writeFileSync(join(to, i === 1 ? name : `${name}.${i}`), text, 'latin1');
    }
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  if (process.argv[2] === undefined) throw new Error('give the folder that the files go to');
  write(process.argv[2]);
}
