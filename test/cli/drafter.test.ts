import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { noisy } from '../generation/drafters';
import { IDS_MODEL, run, TEXT_MODEL } from './run';

const folder = mkdtempSync(join(tmpdir(), 'selective-scan-'));
beforeAll(async () => {
  const config = { model_type: 'mambabyte', hidden_size: 32, num_hidden_layers: 2, initializer_range: 0.4 };
  const bytes = await noisy(0, config, { device: 'cpu' });
  await bytes.savePretrained(folder);
  bytes.dispose();
});
afterAll(() => rmSync(folder, { recursive: true }));

describe('generate --drafter', () => {
  it('writes what the model writes without one, and tells how much was accepted', async () => {
    const plain = await run(['generate', TEXT_MODEL, 'Once', '-n', '20']);
    const args = ['generate', TEXT_MODEL, 'Once', '-n', '20', '--drafter', TEXT_MODEL, '--draft-tokens', '3'];
    const drafted = await run([...args, '--stats']);
    expect([drafted.code, drafted.stdout]).toEqual([0, plain.stdout]);
    expect(drafted.stderr).toMatch(/; 15 of 15 drafted tokens accepted, 5 calls\n$/);
    const json = await run([...args, '--json']);
    const last = JSON.parse(json.stdout.trimEnd().split('\n').at(-1)!) as { speculation: object };
    expect(last.speculation).toEqual({ drafted: 15, accepted: 15, calls: 5, blocks: 5, meanAccepted: 3 });
  });

  it('takes a model of words for one of bytes', async () => {
    const plain = await run(['generate', folder, 'Once', '-n', '30']);
    const drafted = await run(['generate', folder, 'Once', '-n', '30', '--drafter', TEXT_MODEL]);
    expect(drafted).toEqual({ ...plain, code: 0 });
    const beta = await run([
      'generate',
      folder,
      'Once',
      '-n',
      '30',
      '--drafter',
      TEXT_MODEL,
      '--beta',
      '256',
    ]);
    expect(beta.code).toBe(0);
    expect(beta.stdout).not.toBe(plain.stdout);
  });

  it.each<[string, string[], string]>([
    ['a beta alone', ['--beta', '2'], '--beta needs a drafter, which is missing'],
    ['a beta of 0', ['--beta', '0', '--drafter', TEXT_MODEL], '--beta is 0, expected a whole number from 1'],
    ['no tokens', ['--draft-tokens', '0', '--drafter', TEXT_MODEL], '--draft-tokens is 0, expected'],
    ['other tokens', ['--drafter', IDS_MODEL], '--drafter has a vocabulary of'],
    [
      'a model that is none',
      ['--drafter', 'none'],
      '--drafter: model is "none", expected a folder that exists',
    ],
  ])('refuses %s', async (_, args, message) => {
    const ended = await run(['generate', TEXT_MODEL, 'Once', ...args]);
    expect([ended.code, ended.stdout]).toEqual([2, '']);
    expect(ended.stderr).toContain(`error: ${message}`);
  });
});
