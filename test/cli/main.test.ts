import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { run } from './run';

const read = (...names: string[]) => readFileSync(join(__dirname, '..', '..', ...names), 'utf8');

describe('selective-scan', () => {
  it('prints its version', async () => {
    const { version } = JSON.parse(read('package.json')) as { version: string };
    expect(await run(['--version'])).toEqual({ code: 0, stdout: `${version}\n`, stderr: '' });
  });

  it('explains itself', async () => {
    const { code, stdout, stderr } = await run(['--help']);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    for (const command of ['generate', 'inspect', 'doctor'])
      expect(stdout).toContain(`$ selective-scan ${command}`);
  });

  it.each(['generate', 'inspect', 'doctor', 'verify', 'bench'])(
    'explains %s, with examples',
    async (command) => {
      const { code, stdout, stderr } = await run([command, '--help']);
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
      expect(stdout).toContain(`Usage: selective-scan ${command}`);
      expect(stdout.match(new RegExp(`\\$ .*selective-scan ${command}`, 'g'))!.length).toBeGreaterThan(1);
    },
  );

  it('has a help command', async () => {
    expect(await run(['help', 'doctor'])).toEqual(await run(['doctor', '--help']));
  });

  it('gives its help to stderr, and fails, when there is no command', async () => {
    const { code, stdout, stderr } = await run([]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain('Usage: selective-scan');
  });

  it.each([
    [['generat'], "unknown command 'generat'\n(Did you mean generate?)"],
    [['help', 'nope'], "unknown command 'nope'"],
    [['help', 'generat'], "unknown command 'generat'\n(Did you mean generate?)"],
    [['generate'], "missing required argument 'model'"],
    [['inspect', 'a', 'b'], 'too many arguments'],
    [['doctor', '--nope'], "unknown option '--nope'"],
  ])('ends with 2 for %p', async (args, message) => {
    const { code, stdout, stderr } = await run(args);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain(message);
  });

  it('is a program that the system can start', () => {
    expect(read('lib', 'cli', 'main.ts')).toMatch(/^#!\/usr\/bin\/env node\n/);
    expect(JSON.parse(read('package.json'))).toMatchObject({
      bin: { 'selective-scan': './dist/cli/main.js' },
    });
  });
});
