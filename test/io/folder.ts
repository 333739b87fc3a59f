import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export const FIXTURES = join(__dirname, '..', 'fixtures');

/** A fresh folder for each test of the calling file; read the path inside of a test. */
export function temporaryFolder(): { readonly path: string; at(...names: string[]): string } {
  const folder = { path: '', at: (...names: string[]) => join(folder.path, ...names) };
  beforeEach(() => {
    folder.path = mkdtempSync(join(tmpdir(), 'selective-scan-'));
  });
  afterEach(() => rmSync(folder.path, { recursive: true, force: true }));
  return folder;
}
