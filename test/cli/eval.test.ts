import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AutoModelForCausalLM, evaluate, type CausalLM, type Evaluation } from '../../lib';
import { run, TEXT_MODEL } from './run';

const path = mkdtempSync(join(tmpdir(), 'selective-scan-'));
const folder = { path, at: (name: string) => join(path, name) };
const text = 'Once upon a time, naïve 😀.\n';
const binary = Uint8Array.from({ length: 300 }, (_, i) => (i * 91) & 255);
const latin1 = (bytes: Uint8Array) => Buffer.from(bytes).toString('latin1');
let bytes: CausalLM;
let model: string;

beforeAll(async () => {
  model = folder.at('model');
  const config = { model_type: 'mambabyte', hidden_size: 32, num_hidden_layers: 2, initializer_range: 0.3 };
  bytes = await AutoModelForCausalLM.fromConfig(config, { seed: 4, device: 'cpu' });
  await bytes.savePretrained(model);
  writeFileSync(folder.at('text.txt'), text);
  writeFileSync(folder.at('binary.bin'), binary);
});
afterAll(() => {
  bytes.dispose();
  rmSync(path, { recursive: true });
});

const jsonLines = (stdout: string) =>
  stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Evaluation & { file?: string; total?: boolean });

describe('eval', () => {
  it('shows bits per byte of each file and of all', async () => {
    const { code, stdout, stderr } = await run([
      'eval',
      model,
      folder.at('text.txt'),
      folder.at('binary.bin'),
    ]);
    expect([code, stderr]).toEqual([0, '']);
    const first = await evaluate(bytes, text);
    const second = await evaluate(bytes, binary);
    const all = (first.nats + second.nats) / Math.LN2 / (first.predictedBytes + second.predictedBytes);
    const [head, ...rows] = stdout.trimEnd().split('\n');
    expect(head).toMatch(/file +bytes +tokens +bits per byte +perplexity/);
    expect(rows.map((row) => row.trim().split(/ +/))).toEqual([
      [folder.at('text.txt'), '31', '31', first.bitsPerByte.toFixed(4), first.perplexity.toFixed(3)],
      [folder.at('binary.bin'), '300', '300', second.bitsPerByte.toFixed(4), second.perplexity.toFixed(3)],
      ['all', '331', '331', all.toFixed(4), expect.any(String)],
    ]);
  });

  it('writes JSON lines, and reads stdin', async () => {
    const { code, stdout } = await run(['eval', model, '-', '--json', '--context', '20', '--stride', '5'], {
      input: binary,
    });
    expect(code).toBe(0);
    const result = await evaluate(bytes, binary, { context: 20, stride: 5 });
    const [file, total] = jsonLines(stdout);
    expect(file).toEqual({ file: '-', ...result });
    expect(total).toEqual({ total: true, ...result });
  });

  it('takes any model with a tokenizer', async () => {
    const { code, stdout } = await run(['eval', TEXT_MODEL, folder.at('text.txt'), '--json']);
    expect(code).toBe(0);
    expect(jsonLines(stdout)[0]).toMatchObject({ bytes: 31, predictedBytes: 31 });
  });

  it.each<[string, string[], number, string]>([
    ['a file that is not there', ['nowhere.txt'], 2, 'nowhere.txt: file does not exist'],
    ['a folder', ['.'], 2, '.: is a folder, expected a file'],
    ['a stride alone', ['$text', '--stride', '4'], 2, '--stride needs --context, which is missing'],
    ['a context of 0', ['$text', '--context', '0'], 2, '--context is 0, expected a whole number, 1 or more'],
    ['stdin twice', ['-', '-'], 2, 'stdin (-) can be read once only'],
    ['nothing', ['-'], 1, '-: text is empty, expected something to predict'],
  ])('refuses %s', async (_, args, code, message) => {
    const files = args.map((arg) => (arg === '$text' ? folder.at('text.txt') : arg));
    const ended = await run(['eval', model, ...files]);
    expect(ended).toEqual({ code, stdout: '', stderr: expect.stringContaining(`error: ${message}`) });
  });

  it('finds an empty file before it scores another', async () => {
    writeFileSync(folder.at('empty'), '');
    const { code, stdout, stderr } = await run([
      ...['eval', model, folder.at('text.txt'), folder.at('empty'), '--json'],
    ]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toBe(`error: ${folder.at('empty')}: text is empty, expected something to predict\n`);
  });

  it('refuses a device, which may have no end', async () => {
    const { code, stderr } = await run(['eval', model, '/dev/zero']);
    expect([code, stderr]).toEqual([2, 'error: /dev/zero: is not a regular file, nor a pipe\n']);
  });

  it('refuses bytes for a model of text, by the name of their file', async () => {
    const { code, stderr } = await run(['eval', TEXT_MODEL, folder.at('binary.bin')]);
    expect(code).toBe(1);
    expect(stderr).toContain(
      `error: ${folder.at('binary.bin')}: text is not valid UTF-8 between bytes 0 and 300`,
    );
  });

  it('looks at all files before it scores the first', async () => {
    const files = [folder.at('text.txt'), folder.at('binary.bin')];
    const { code, stdout, stderr } = await run(['eval', TEXT_MODEL, ...files, '--json']);
    expect([code, stdout]).toEqual([1, '']);
    expect(stderr).toContain(`error: ${files[1]}: text is not valid UTF-8`);
  });
});

describe('generate for a model of bytes', () => {
  it('writes text', async () => {
    const { code, stdout } = await run(['generate', model, 'Zoë', '-n', '9']);
    const wanted = await bytes.generate('Zoë', { maxNewTokens: 9 }).text();
    expect([code, stdout.replace(/\n$/, '')]).toEqual([0, wanted.replace(/\n$/, '')]);
  });

  it('takes no byte of a text for padding', async () => {
    const padded = folder.at('padded');
    await bytes.savePretrained(padded);
    const config = JSON.parse(readFileSync(`${padded}/config.json`, 'utf8')) as object;
    writeFileSync(`${padded}/config.json`, JSON.stringify({ ...config, pad_token_id: 0x5a }));
    const [plain, same] = await Promise.all(
      [model, padded].map((name) => run(['generate', name, 'ZoëZ', '-n', '9'])),
    );
    expect(same).toEqual(plain);
  });

  it('reads and writes raw bytes, none more and none less', async () => {
    const out = folder.at('out.bin');
    const args = ['--raw', '-n', '40', '-t', '2', '--seed', '1'];
    const [row] = await bytes.generate(binary, { maxNewTokens: 40, temperature: 2, seed: 1 }).completions();
    expect(row!.bytes!.length).toBe(40);
    const shell = `"$0" "$@" < ${folder.at('binary.bin')} > ${out}`;
    expect(raw(shell, [model, ...args])).toBe(0);
    expect(latin1(readFileSync(out))).toBe(latin1(row!.bytes!));
    expect(raw(`"$0" "$@" > ${out}`, [model, '-f', folder.at('binary.bin'), '--echo', ...args])).toBe(0);
    expect(latin1(readFileSync(out))).toBe(latin1(binary) + latin1(row!.bytes!));
  });

  it('writes bytes as numbers in JSON', async () => {
    const { stdout } = await run(['generate', model, 'a', '-n', '2', '--json']);
    const [first] = jsonLines(stdout) as unknown as { token: number; bytes: number[] }[];
    expect(first!.bytes).toEqual([first!.token]);
  });

  it('takes --bytes for a Mamba that does not say so; convert --bytes says it for good', async () => {
    const plain = folder.at('plain');
    await bytes.savePretrained(plain);
    const config = JSON.parse(readFileSync(`${plain}/config.json`, 'utf8')) as object;
    writeFileSync(
      `${plain}/config.json`,
      JSON.stringify({ ...config, model_type: 'mamba', vocab_size: 256 }),
    );
    const wanted = (await bytes.generate('a', { maxNewTokens: 5 }).text()).replace(/\n$/, '');
    const said = await run(['generate', plain, 'a', '-n', '5', '--bytes']);
    expect(said.stdout.replace(/\n$/, '')).toBe(wanted);
    expect((await run(['generate', plain, 'a', '--raw'])).stderr).toContain(
      '--raw is for models of bytes; if this is one that does not say so, add --bytes',
    );
    expect((await run(['convert', plain, folder.at('made'), '--bytes'])).code).toBe(0);
    const again = await run(['generate', folder.at('made'), 'a', '-n', '5']);
    expect(again.stdout.replace(/\n$/, '')).toBe(wanted);
    const { code } = await run(['eval', plain, folder.at('text.txt'), '--bytes']);
    expect(code).toBe(0);
  });
});

/** `run`, with the pipes of a shell around the command. */
function raw(shell: string, args: readonly string[]): number {
  const wrapper = folder.at('selective-scan');
  const main = join(__dirname, '..', '..', 'lib', 'cli', 'main.ts');
  const typescript = join(__dirname, 'typescript.cjs');
  writeFileSync(
    wrapper,
    `#!/bin/sh\nexec "${process.execPath}" -r "${typescript}" "${main}" generate "$@"\n`,
    {
      mode: 0o755,
    },
  );
  const { SELECTIVE_SCAN_DEVICE: _, ...env } = process.env;
  return spawnSync('sh', ['-c', shell, wrapper, ...args], { env }).status ?? -1;
}
