import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import {
  copyFileSync,
  lstatSync,
  readFileSync,
  readdirSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { temporaryFolder } from '../io/folder';
import { ended, IDS_MODEL, run, start, TEXT_MODEL } from './run';

const folder = temporaryFolder();
const generate = (...args: string[]) => run(['generate', TEXT_MODEL, ...args]);
const greedy = JSON.parse(readFileSync(`${TEXT_MODEL}/greedy.json`, 'utf8')) as {
  prompt: string;
  ids: number[];
  text: string;
};
const promptIds = greedy.ids.slice(0, 10);
const answer = greedy.text.slice(greedy.prompt.length);
const fine = (stdout: string) => ({ code: 0, stdout, stderr: '' });
const objects = (lines: string) =>
  lines
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>);

describe('generate: prompts', () => {
  it('continues an argument as the reference does', async () => {
    expect(await generate(greedy.prompt, '-n', '24')).toEqual(fine(`${answer}\n`));
  });

  it('writes the prompt too on request', async () => {
    expect(await generate(greedy.prompt, '-n', '24', '--echo')).toEqual(fine(`${greedy.text}\n`));
  });

  it.each([[[]], [['-']]])('reads stdin for %p, without the last line break', async (args) => {
    const ended = await run(['generate', TEXT_MODEL, ...args, '-n', '24'], { input: `${greedy.prompt}\n` });
    expect(ended).toEqual(fine(`${answer}\n`));
  });

  it('reads a file', async () => {
    writeFileSync(folder.at('prompt.txt'), `\uFEFF${greedy.prompt}\r\n`);
    expect(await generate('--file', folder.at('prompt.txt'), '-n', '24')).toEqual(fine(`${answer}\n`));
  });

  it('takes and gives token ids', async () => {
    expect(await generate(promptIds.join(', '), '--ids', '-n', '24')).toEqual(
      fine(`${greedy.ids.slice(10).join(' ')}\n`),
    );
  });

  it('needs no tokenizer for ids', async () => {
    const { code, stdout } = await run(['generate', IDS_MODEL, '1 2 3', '--ids', '-n', '3']);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^\d+ \d+ \d+\n$/);
  });

  it.each<[string, string[], string | Uint8Array, number, string]>([
    ['ids with an empty place', ['1, 2 ,,3', '--ids'], '', 2, 'prompt holds "", expected token ids'],
    ['an empty prompt', [''], '', 2, 'prompt is empty, expected at least one token'],
    ['nothing on stdin', [], '', 2, 'prompt is empty, expected at least one token'],
    [
      'stdin that is no UTF-8',
      [],
      Buffer.from('abc\xff', 'latin1'),
      1,
      'stdin: is not valid UTF-8 at byte 3',
    ],
    [
      'stdin that ends within a character',
      [],
      Buffer.from('é€').subarray(0, 4),
      1,
      'stdin: is not valid UTF-8 at byte 4',
    ],
    ['ids that are no numbers', ['1,x', '--ids'], '', 2, 'prompt holds "x", expected token ids'],
    [
      'an id that the model does not know',
      ['512', '--ids'],
      '',
      2,
      'is 512, expected a whole number from 0 to 511',
    ],
    ['a file that is missing', ['-f', '/no/such/file'], '', 2, '/no/such/file: file does not exist'],
    ['two prompts', ['a', '-f', 'b'], '', 2, 'the prompt is given twice'],
  ])('refuses %s', async (_, args, input, code, message) => {
    const ended = await run(['generate', TEXT_MODEL, ...args], { input });
    expect(ended).toMatchObject({ code, stdout: '' });
    expect(ended.stderr).toMatch(/^error: [^\n]+\n$/);
    expect(ended.stderr).toContain(message);
  });

  it('names the byte of a file that is no UTF-8', async () => {
    const bytes = Buffer.concat([Buffer.from('日本'), Buffer.from([0xc3, 0x28])]);
    writeFileSync(folder.at('bad.txt'), bytes);
    const { code, stderr } = await generate('-f', folder.at('bad.txt'));
    expect({ code, stderr }).toEqual({
      code: 1,
      stderr: `error: ${folder.at('bad.txt')}: is not valid UTF-8 at byte 7\n`,
    });
  });

  it('says what to do without a tokenizer', async () => {
    const { code, stderr } = await run(['generate', IDS_MODEL, 'Hello']);
    expect({ code, stderr }).toEqual({
      code: 2,
      stderr: 'error: prompt is text, but the model has no tokenizer; give token ids with --ids\n',
    });
  });
});

describe('generate: options', () => {
  it.each([
    [['--top-p', '2'], '--top-p is 2, expected a number above 0, at most 1'],
    [['--top-p', 'x'], "option '--top-p <p>' argument 'x' is invalid"],
    [['--seed', '1.5'], "option '--seed <n>' argument '1.5' is invalid"],
    [['--max-new-tokens', '0'], '--max-new-tokens is 0, expected a whole number from 1'],
    [
      ['--min-new-tokens', '10', '-n', '6'],
      '--min-new-tokens is 10, expected at most --max-new-tokens, which is 6',
    ],
    [['--min-p', '-1'], '--min-p is -1, expected a number from 0'],
    [['--threads', '0'], '--threads is 0, expected a whole number from 1 to 256'],
    [['--device', 'tpu'], "--device is 'tpu', expected cpu, cuda or cuda:<index>"],
    [['--dtype', 'f64'], '--dtype is f64, expected auto, f32, bf16 or f16'],
    [['--eos', '512'], '--eos holds 512, expected token ids from 0 to 511'],
    [['--stop', ''], 'stop holds ""'],
    [['--greedy', '--sample'], "option '--greedy' cannot be used with option '--sample'"],
    [['--greedy', '--top-k', '5'], "option '--greedy' cannot be used with option '--top-k <k>'"],
    [['--greedy', '-t', '2'], "option '--greedy' cannot be used with option '-t, --temperature <t>'"],
    [['--seed', '18446744073709551616'], '--seed is 18446744073709551616, expected a whole number of at'],
    [['--load-state', '/dev/zero'], '/dev/zero: is not a regular file, nor a pipe'],
    [['--save-state', tmpdir()], `--save-state: ${tmpdir()} is a folder, expected a file to write`],
    [['--nope'], "unknown option '--nope'"],
  ])('refuses %p', async (args, message) => {
    const { code, stdout, stderr } = await generate('Once', ...args);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain(message);
  });

  it('draws the same text from the same seed', async () => {
    const sampling = ['-t', '9', '--top-k', '400', '--top-p', '0.99', '--min-p', '1e-9'];
    const args = ['Once', '-n', '20', ...sampling, '--seed', '7'];
    const [one, two, other] = await Promise.all([
      generate(...args),
      generate(...args),
      generate(...args, '--seed', '8'),
    ]);
    expect(one.code).toBe(0);
    expect(two).toEqual(one);
    expect(other.stdout).not.toBe(one.stdout);
  });

  it('ends before a stop text, and at an eos token', async () => {
    expect(await generate(greedy.prompt, '-n', '24', '--stop', 'zzz', '--stop', 'TI')).toEqual(fine('eeI\n'));
    const ids = await generate(promptIds.join(' '), '--ids', '-n', '24', '--eos', `${greedy.ids[12]}`);
    expect(ids).toEqual(fine(`${greedy.ids.slice(10, 13).join(' ')}\n`));
  });

  it('gives the same tokens with and without capture, threads and greedy', async () => {
    const args = ['--no-capture', '--threads', '1', '--greedy', '--dtype', 'f32', '--device', 'cpu'];
    expect(await generate(greedy.prompt, '-n', '24', ...args)).toEqual(fine(`${answer}\n`));
  });
});

describe('generate: output', () => {
  it('writes one JSON object for each token, and a summary', async () => {
    const { code, stdout, stderr } = await generate(greedy.prompt, '-n', '24', '--json');
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const lines = objects(stdout);
    const tokens = lines.slice(0, -1);
    expect(tokens.map(({ token }) => token)).toEqual(greedy.ids.slice(10));
    expect(tokens.map(({ text }) => text).join('')).toBe(answer);
    expect(tokens.at(-1)).toMatchObject({
      index: 0,
      finishReason: 'length',
      logprob: expect.any(Number) as unknown,
    });
    expect(lines.at(-1)).toEqual({
      done: true,
      finishReason: 'length',
      promptTokens: 10,
      newTokens: 24,
      seconds: expect.any(Number) as unknown,
      firstTokenSeconds: expect.any(Number) as unknown,
      tokensPerSecond: expect.any(Number) as unknown,
    });
  });

  it('writes the speed to stderr on request', async () => {
    const { stdout, stderr } = await generate(greedy.prompt, '-n', '24', '--stats');
    expect(stdout).toBe(`${answer}\n`);
    expect(stderr).toMatch(/^10 prompt tokens, first new token after [\d.]+ s; 24 new tokens .*tokens\/s\n$/);
  });

  it('streams, and Ctrl-C ends the line and the process', async () => {
    const child = start(['generate', TEXT_MODEL, 'Once', '-n', '100000000', '--ignore-eos']);
    const end = ended(child);
    await once(child.stdout, 'data');
    child.kill('SIGINT');
    const { code, stdout, stderr } = await end;
    expect({ code, stderr }).toEqual({ code: 130, stderr: '' });
    expect(stdout).toMatch(/[^\n]\n$/);
  });

  it('ends quietly when nobody reads on', async () => {
    const child = start(['generate', TEXT_MODEL, 'Once', '-n', '100000000', '--ignore-eos', '--json']);
    const end = ended(child);
    await once(child.stdout, 'data');
    child.stdout.destroy();
    expect(await end).toMatchObject({ code: 0, stderr: '' });
  });
});

describe('generate: state', () => {
  it('continues in another process as if it had never stopped', async () => {
    const sampling = ['-t', '2', '--seed', '3', '--repetition-penalty', '1.2', '--json'];
    const tokens = (lines: string) => objects(lines).flatMap(({ token }) => token ?? []);
    const whole = await generate('Once', '-n', '30', ...sampling);
    const first = await generate('Once', '-n', '12', ...sampling, '--save-state', folder.at('a'));
    const second = await generate(
      '',
      '-n',
      '18',
      ...sampling,
      '--load-state',
      folder.at('a'),
      '--save-state',
      folder.at('a'),
    );
    expect([first.stderr, second.stderr]).toEqual(['', '']);
    expect([...tokens(first.stdout), ...tokens(second.stdout)]).toEqual(tokens(whole.stdout));
    expect(readdirSync(folder.path)).toEqual(['a']);
  });

  it('saves after Ctrl-C what was said until then', async () => {
    const ids = ['--ids', '--ignore-eos'];
    const args = [...ids, '-n', '100000000', '--save-state', folder.at('a')];
    const child = start(['generate', TEXT_MODEL, '1,2,3', ...args]);
    const end = ended(child);
    await once(child.stdout, 'data');
    child.kill('SIGINT');
    const { code, stdout: said } = await end;
    expect(code).toBe(130);
    const { stdout: more } = await generate('', ...ids, '-n', '4', '--load-state', folder.at('a'));
    const all = `${said.trim()} ${more.trim()}`;
    const whole = await generate('1,2,3', ...ids, '-n', String(all.split(' ').length));
    expect(all).toBe(whole.stdout.trim());
  });

  it('takes a prompt in the middle', async () => {
    const [a, b] = [promptIds.slice(0, 4), promptIds.slice(4)].map((ids) => ids.join(' ')) as [
      string,
      string,
    ];
    await generate(a, '--ids', '-n', '1', '--save-state', folder.at('a'));
    const { code, stdout } = await generate(b, '--ids', '-n', '5', '--load-state', folder.at('a'));
    expect(code).toBe(0);
    expect(stdout).toMatch(/^\d+( \d+){4}\n$/);
  });

  it('refuses bytes that are no state, or altered, or of another model', async () => {
    await generate('Once', '-n', '1', '--save-state', folder.at('a'));
    copyFileSync(folder.at('a'), folder.at('altered'));
    const bytes = readFileSync(folder.at('a'));
    bytes[bytes.length >> 1]! ^= 1;
    writeFileSync(folder.at('altered'), bytes);
    writeFileSync(folder.at('text'), 'hello');
    const altered = await generate('', '--load-state', folder.at('altered'));
    const text = await generate('', '--load-state', folder.at('text'));
    const other = await run(['generate', IDS_MODEL, '1', '--ids', '--load-state', folder.at('a')]);
    for (const { code, stdout } of [altered, text, other])
      expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(altered.stderr).toBe(
      'error: --load-state: bytes are truncated or altered; the checksum differs\n',
    );
    expect(text.stderr).toContain('error: --load-state: bytes are no snapshot');
    expect(other.stderr).toContain('error: --load-state: bytes are the state of another model');
  });

  it('saves through a link, and replaces nothing that is no file', async () => {
    symlinkSync('b', folder.at('link'));
    for (const round of ['new', 'old']) {
      const saved = await generate('Once', '-n', '1', '--save-state', folder.at('link'));
      expect([round, saved.code]).toEqual([round, 0]);
      expect(readlinkSync(folder.at('link'))).toBe('b');
      expect(lstatSync(folder.at('b')).isFile()).toBe(true);
    }
    expect(readdirSync(folder.path).sort()).toEqual(['b', 'link']);
    execFileSync('mkfifo', [folder.at('pipe')]);
    symlinkSync('pipe', folder.at('to-pipe'));
    for (const name of ['pipe', 'to-pipe']) {
      const { code, stdout, stderr } = await generate('Once', '--save-state', folder.at(name));
      expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
      expect(stderr).toBe(`error: --save-state: ${folder.at(name)} is a pipe, expected a file to write\n`);
    }
    expect(lstatSync(folder.at('pipe')).isFIFO()).toBe(true);
  });

  it('knows before the text whether it can save', async () => {
    const { code, stdout, stderr } = await generate('Once', '--save-state', folder.at('none', 'a'));
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toBe(
      `error: --save-state: folder ${folder.at('none')} does not exist or cannot be written\n`,
    );
  });
});

describe('generate: models', () => {
  it.each([
    ['/no/such/folder', [], 2, 'model is "/no/such/folder", expected a folder that exists'],
    ['nothing', [], 2, 'expected a folder that exists or a hub id of the form owner/name'],
    ['owner/name', ['--offline', '--cache-dir', '/no/cache'], 1, 'offline mode forbids a download'],
  ])('refuses %s', async (model, args, code, message) => {
    const ended = await run(['generate', model, 'Once', ...args]);
    expect(ended).toMatchObject({ code, stdout: '' });
    expect(ended.stderr).toMatch(/^error: [^\n]+\n$/);
    expect(ended.stderr).toContain(message);
  });

  it('shows stack traces when they are asked for', async () => {
    const { stderr } = await run(['generate', '/no/such/folder', 'a'], {
      env: { SELECTIVE_SCAN_DEBUG: '1' },
    });
    expect(stderr).toContain('\n    at ');
  });
});
