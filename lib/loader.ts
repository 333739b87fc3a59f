import { existsSync } from 'node:fs';
import { join } from 'node:path';
import nodeGypBuild = require('node-gyp-build');
import { LoadError } from './errors';

/** The folder that holds package.json: one up from `lib/` and from `dist/` alike. */
export const packageRoot = join(__dirname, '..');
export const packageVersion = (): string =>
  (require(join(packageRoot, 'package.json')) as { version: string }).version;

const what = `${process.platform}-${process.arch}, Node ${process.versions.node}`;

/** Where the addon was found; throws a `LoadError` that lists the places when there is none. */
export function addonPath(root = packageRoot): string {
  try {
    return nodeGypBuild.resolve(root);
  } catch {
    const tried = [
      join(root, 'build', 'Release'),
      join(root, 'prebuilds', `${process.platform}-${process.arch}`),
    ];
    const lines = tried.map(
      (path) => `  ${path}: ${existsSync(path) ? 'no binary for this platform' : 'does not exist'}`,
    );
    throw new LoadError(
      `selective-scan: no native binary for ${what}. Tried:\n${lines.join('\n')}\n` +
        'Build it with `npm rebuild selective-scan`: that needs CMake and a C++20 compiler ' +
        '(on Debian: apt-get install cmake g++).',
    );
  }
}

/** Loads the addon at `path`; throws a `LoadError` with the system's reason when it does not load. */
export function loadAddon(path: string): unknown {
  try {
    return require(path);
  } catch (error) {
    throw new LoadError(
      `selective-scan: the native binary does not load on ${what}. Tried:\n  ${path}: ` +
        `${error instanceof Error ? error.message : String(error)}\n` +
        'Rebuild it for this machine with `npm rebuild selective-scan --build-from-source`: that needs CMake ' +
        'and a C++20 compiler (on Debian: apt-get install cmake g++).',
      { cause: error },
    );
  }
}
