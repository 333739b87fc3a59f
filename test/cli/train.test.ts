import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { symlinkSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AutoModelForCausalLM, Corpus, train, Trainer, Windows } from '../../lib';
import { exitCodeOf, inFlags, interruption } from '../../lib/cli/exit';
import { trainCommand } from '../../lib/cli/train';
import { ended, run, start, TEXT_MODEL } from './run';

const root = mkdtempSync(join(tmpdir(), 'train-'));
const at = (...names: string[]) => join(root, ...names);
const text = Array.from({ length: 300 }, (_, i) => `line ${i} of ${(i * 7) % 13}, and so on\n`).join('');

beforeAll(() => {
  writeFileSync(at('text.txt'), text);
  mkdirSync(at('folder', 'below'), { recursive: true });
  writeFileSync(at('folder', 'a.txt'), text);
  writeFileSync(at('folder', 'below', 'b.txt'), text.toUpperCase());
  writeFileSync(at('folder', '.hidden'), 'hidden');
});
afterAll(() => rmSync(root, { recursive: true }));

/** A model that trains in a moment. */
const small = ['--width', '16', '--layers', '2', '--state-size', '4', '--length', '32', '--batch', '4'];
const training = (out: string, ...args: string[]) => [
  'train',
  at('text.txt'),
  '--out',
  at(out),
  ...small,
  ...args,
];
const sinceOf = (out: string) => String(json(at(out, '.lock'))['since']);
const json = (path: string) => JSON.parse(readFileSync(path, 'utf8')) as Record<string, unknown>;

describe('train', () => {
  it('makes a folder that generate loads, and says what it does', async () => {
    const { code, stdout, stderr } = await run(
      training('first', '--steps', '12', '--keep-best', '--ema', '0.5'),
    );
    expect(code).toBe(0);
    expect(stderr).toMatch(/model +mambabyte, 2 layers of 16, vocabulary 256: 8,\d+ parameters/);
    expect(stderr).toMatch(/data +7,\d+ bytes of 1 file, \d+ bytes held out/);
    expect(stderr).toMatch(/plan +12 steps, 0\.\d+ times through the data/);
    expect(stderr).toMatch(/memory +[\d.]+ MiB: parameters/);
    expect(stderr).toMatch(/step 12: held-out loss [\d.]+ \([\d.]+ bits per byte\), the lowest so far/);
    expect(stderr).not.toContain('tokens/s'); // no bar where nobody looks
    expect(stdout).toMatch(/steps +12, 1,536 bytes\n +loss +[\d.]+ .*\n +held out .*\n +model +.*first\n/);
    expect(readdirSync(at('first')).sort()).toEqual([
      'best',
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'training',
    ]);
    expect(readdirSync(at('first', 'training')).sort()).toEqual([
      'curves.html',
      'log.jsonl',
      'settings.json',
      'step-00000010',
      'step-00000012',
    ]);
    expect(json(at('first', 'config.json'))).toMatchObject({ model_type: 'mambabyte', vocab_size: 256 });
    for (const model of [at('first'), at('first', 'best')]) {
      const generated = await run(['generate', model, 'line', '-n', '4']);
      expect([generated.code, generated.stderr]).toEqual([0, '']);
    }
  });

  it('goes on after Ctrl-C to the same bits, on other terms that do not matter', async () => {
    const args = ['--steps', '60', '--save-every', '1000', '--dtype', 'bf16', '--seed', '4'];
    expect((await run(training('whole', ...args))).code).toBe(0);
    const child = start(training('parts', ...args, '--json'));
    const end = ended(child);
    await once(child.stdout, 'data');
    child.kill('SIGINT');
    const { code, stdout, stderr } = await end;
    expect(code).toBe(130);
    expect(stderr).toContain(`stopped; go on with: selective-scan train --resume ${at('parts')}`);
    const last = JSON.parse(stdout.trimEnd().split('\n').at(-1)!) as { steps: number; stopped: boolean };
    expect(last).toMatchObject({ stopped: true });
    expect(last.steps).toBeLessThan(60);
    const resumed = await run(['train', '--resume', at('parts'), '--keep', '5', '--save-every', '7']);
    expect(resumed.code).toBe(0);
    for (const file of ['model.safetensors', 'config.json'])
      expect(readFileSync(at('parts', file)).equals(readFileSync(at('whole', file)))).toBe(true);
    expect(readdirSync(at('parts', 'training')).filter((name) => name.startsWith('step-'))).toHaveLength(5);
  });

  it('goes on where its own folder is in that of the data, which it does not learn from', async () => {
    mkdirSync(at('around', 'mine'), { recursive: true });
    writeFileSync(at('around', 'a.txt'), text);
    writeFileSync(at('around', 'mine', 'b.txt'), text); // not the training's
    const child = start([
      ...['train', at('around'), '--out', at('around', 'model'), ...small],
      ...['--steps', '100000', '--json'],
    ]);
    const end = ended(child);
    await once(child.stdout, 'data');
    child.kill('SIGINT');
    expect((await end).code).toBe(130);
    const again = await run(['train', '--resume', at('around', 'model'), '--dry-run']);
    expect([again.code, again.stderr]).toEqual([0, expect.stringContaining(' bytes of 2 files')]);
    const resumed = start(['train', '--resume', at('around', 'model'), '--json']);
    const last = ended(resumed);
    await once(resumed.stdout, 'data');
    resumed.kill('SIGINT');
    expect((await last).code).toBe(130);
    // One of the two is held out as a whole.
    for (const names of [['a.txt'], ['mine', 'b.txt']]) writeFileSync(at('around', ...names), `${text}more`);
    const changed = await run(['train', '--resume', at('around', 'model')]);
    expect([changed.code, changed.stderr]).toEqual([
      1,
      expect.stringMatching(
        /error: --resume: the data have changed since; file [ab]\.txt has \d+ tokens, and had \d+\n$/,
      ),
    ]);
    const same = await refused(['train', at('around', 'model'), '--out', at('around', 'model')]);
    expect(same.message).toContain('model has a training already');
  });

  it('does not go on with data that were edited since', async () => {
    writeFileSync(at('text.txt'), text.replace('line 7', 'LINE 7'));
    const { code, stderr } = await run(['train', '--resume', at('first')]);
    writeFileSync(at('text.txt'), text);
    expect([code, stderr]).toEqual([
      1,
      expect.stringMatching(
        /error: --resume: the data have changed since; file text\.txt has other content than before\n$/,
      ),
    ]);
    expect(readdirSync(at('first'))).not.toContain('.lock');
  });

  it.each([
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const)('ends in order on %s', async (signal, status) => {
    const first = start(training(signal, '--steps', '100000', '--json'));
    const end = ended(first);
    await once(first.stdout, 'data');
    first.kill(signal);
    expect((await end).code).toBe(status);
    expect(existsSync(at(signal, 'model.safetensors'))).toBe(true);
  });

  it('has its folder for itself, and takes it over from one that has died', async () => {
    const first = start(training('shared', '--steps', '100000', '--save-every', '1', '--json'));
    const end = ended(first);
    await once(first.stdout, 'data');
    for (const args of [training('shared', '--tokenizer', TEXT_MODEL), ['train', '--resume', at('shared')]]) {
      const { code, stderr } = await run(args);
      expect([code, stderr]).toEqual([
        1,
        `error: ${at('shared')}: is in use by process ${first.pid} since ${sinceOf('shared')}; wait for its end or choose another folder\n`,
      ]);
    }
    first.kill('SIGKILL');
    await end;
    const resumed = start(['train', '--resume', at('shared'), '--json']);
    const last = ended(resumed);
    await once(resumed.stdout, 'data');
    resumed.kill('SIGINT');
    const { code, stderr } = await last;
    expect(code).toBe(130);
    for (const folder of [at('shared'), at('shared', 'training')])
      expect(stderr).toContain(
        `warning: ${folder}: was left locked by process ${first.pid}, which has died; going on\n`,
      );
    expect([...readdirSync(at('shared')), ...readdirSync(at('shared', 'training'))]).not.toContain('.lock');
  });

  it('leaves a second signal to the system, which ends the process at once', () => {
    const count = () => process.listenerCount('SIGINT') + process.listenerCount('SIGTERM');
    const before = count();
    const signal = interruption(['SIGINT', 'SIGTERM']);
    expect([signal.aborted, count()]).toEqual([false, before + 2]);
    process.emit('SIGTERM', 'SIGTERM');
    expect([signal.aborted, count()]).toEqual([true, before]);
  });

  it('uses the checkpoint before a damaged one, and says so', async () => {
    expect((await run(training('damaged', '--steps', '8', '--save-every', '4'))).code).toBe(0);
    const newest = at('damaged', 'training', 'step-00000008');
    truncateSync(join(newest, 'training.safetensors'), 5000);
    const before = readFileSync(at('damaged', 'model.safetensors'));
    const { code, stderr } = await run(['train', '--resume', at('damaged')]);
    expect(code).toBe(0);
    expect(stderr).toContain(`warning: ${newest} is damaged and passed over`);
    expect(readFileSync(at('damaged', 'model.safetensors')).equals(before)).toBe(true);
  });

  it('takes a config, whose paths are from its folder, and flags over it', async () => {
    const config = {
      data: ['folder'],
      validation: ['folder/below/b.txt'],
      out: 'configured',
      epochs: 3,
      length: 32,
      batch: 4,
      microBatches: 2,
      learningRate: 0.01,
      schedule: 'constant',
      model: { model_type: 'mamba', hidden_size: 16, num_hidden_layers: 1 },
    };
    writeFileSync(at('config.json'), JSON.stringify(config));
    const { code, stderr } = await run(['train', '-c', at('config.json'), '--steps', '3', '--warmup', '0']);
    expect(code).toBe(0);
    expect(stderr).toMatch(/data +7,\d+ bytes of 1 file, 7,\d+ bytes held out/);
    expect(stderr).toMatch(/plan +3 steps/);
    expect(stderr).toMatch(/learning rate +0.01, after 0 steps of warm-up/);
    expect(json(at('configured', 'training', 'settings.json'))).toMatchObject({ steps: 3, warmup: 0 });
    // A Mamba of bytes has a tokenizer of bytes, with which transformers loads it too.
    const { code: loads, stdout } = await run(['generate', at('configured'), 'Zoë', '-n', '3', '--json']);
    expect(loads).toBe(0);
    expect(stdout).toContain('"token"');
    const model = await AutoModelForCausalLM.fromPretrained(at('configured'), { device: 'cpu' });
    expect(model.tokenizer!.encode('Zoë')).toEqual([...Buffer.from('Zoë')]);
    model.dispose();
  });

  it('gives the bits that train gives from code', async () => {
    const args = ['--steps', '7', '--warmup', '2', '--ema', '0.9', '--dtype', 'bf16', '--seed', '3'];
    const held = ['--validation', at('folder', 'a.txt'), '--keep-best', '--weight-decay', '1.5'];
    expect((await run(training('command', ...args, ...held))).code).toBe(0);
    const config = { model_type: 'mambabyte', hidden_size: 16, num_hidden_layers: 2, state_size: 4 };
    const options = { steps: 7, warmup: 2, average: 0.9, precision: 'bf16', seed: 3 } as const;
    const trainer = await Trainer.fromConfig(
      { ...config, initializer_range: 0.02 },
      { ...options, learningRate: 1e-3, weightDecay: 1.5, device: 'cpu' },
    );
    const windows = { length: 32, rows: 4 };
    const source = new Windows(await Corpus.open([at('text.txt')]), { ...windows, seed: 3 });
    const validation = await Corpus.open([at('folder', 'a.txt')]);
    await train(trainer, {
      source,
      folder: at('code'),
      best: at('code', 'best'),
      validation: () => new Windows(validation, { ...windows, shuffle: false }),
    });
    trainer.dispose();
    const bits = (...names: string[]) => readFileSync(at(...names, 'model.safetensors'));
    expect(bits('command', 'best').equals(bits('code', 'best'))).toBe(true);
    const records = (...names: string[]) =>
      readFileSync(at(...names, 'log.jsonl'), 'utf8')
        .split('\n')
        .map((line) => line.replace(/"time":"[^"]*",|"(tokensPerSecond|memory)":\d+,?/g, ''));
    expect(records('command', 'training')).toEqual(records('code'));
  });

  it('goes on from a model with its tokenizer', async () => {
    const tuned = ['train', at('text.txt'), '--out', at('tuned'), '--from', TEXT_MODEL, '--length', '16'];
    const { code, stderr } = await run([...tuned, '--steps', '2', '--batch', '2']);
    expect(stderr).toMatch(/model +mamba from .*mamba-text, 4 layers of 64/);
    expect(code).toBe(0);
    expect(json(at('tuned', 'config.json'))).toMatchObject({ model_type: 'mamba', eos_token_id: 0 });
    expect(json(at('tuned', 'generation_config.json'))).toMatchObject({ eos_token_id: 0, pad_token_id: 1 });
    expect(existsSync(at('tuned', 'tokenizer.json'))).toBe(true);
    const resumed = await run(['train', '--resume', at('tuned')]);
    expect(resumed.code).toBe(0);
    const tokens = at('tuned', 'training', 'tokens.bin');
    for (const [size, what] of [
      [2000, '--resume: the data have changed since; file tokens.bin has 1000 tokens, and had '],
      [1999, `${tokens}: file has 1999 bytes, expected tokens of 2 bytes each`],
    ] as const) {
      truncateSync(tokens, size);
      const cut = await run(['train', '--resume', at('tuned')]);
      expect([cut.code, cut.stderr]).toEqual([1, expect.stringContaining(`error: ${what}`)]);
      expect(cut.stderr).toMatch(/; remove \S+tokens\.bin, and it is made again from the data\n$/);
    }
    rmSync(tokens);
    expect((await run(['train', '--resume', at('tuned')])).code).toBe(0);
  });

  it.each([
    [['train', ''], 'data'],
    [['train', 'text.txt', '--out', ''], '--out'],
    [['train', 'text.txt', '--out', 'x', '--validation', ''], '--validation'],
    [['train', '--resume', ''], '--resume'],
    [['generate', '', 'hello'], 'model'],
    [['eval', TEXT_MODEL, ''], 'file'],
    [['convert', TEXT_MODEL, ''], 'folder'],
    [['reproduce', 'induction-heads', '--output', ''], '--output'],
  ])('refuses the empty path of %p', async (args, name) => {
    const { code, stderr } = await run(args);
    expect([code, stderr]).toEqual([2, `error: ${name} is empty, expected a path\n`]);
  });

  it('says what it would do, and does nothing', async () => {
    const { code, stdout, stderr } = await run(training('dry', '--dry-run', '--tokenizer', TEXT_MODEL));
    expect([code, stdout]).toEqual([0, '']);
    expect(stderr).toMatch(/model +mamba, 2 layers of 16, vocabulary 512/);
    expect(existsSync(at('dry'))).toBe(false);
  });

  it('counts as many epochs as there are steps for', async () => {
    const { code, stderr } = await run(training('dry', '--dry-run', '--epochs', '1000000'));
    expect([code, stderr]).toEqual([0, expect.stringMatching(/plan +5\d,\d+,000 steps, /)]);
  });

  it('says what does not fit, and how it might', async () => {
    const args = ['--dry-run', '--batch', '100000', '--length', '256', '--width', '4096'];
    const { code, stderr } = await run(training('dry', ...args));
    expect(code).toBe(2);
    expect(stderr).toMatch(
      /error: this model and a pass over 100000 rows of 256 tokens do not fit, expected a smaller model, --batch or .*out of memory: /,
    );
  });

  it('fails where what it made is no use', async () => {
    const wild = ['--learning-rate', '1000', '--warmup', '0', '--clip', '0'];
    const { code, stderr } = await run(training('wild', '--steps', '1', ...wild));
    expect([code, stderr]).toEqual([1, expect.stringContaining('the held-out loss is NaN')]);
  });

  it('refuses what the system would grant and this machine has not', async () => {
    const args = ['--dry-run', '--batch', '1000000', '--length', '64', '--width', '64'];
    const { code, stderr } = await run(training('dry', ...args));
    expect(code).toBe(2);
    expect(stderr).toMatch(
      /over 1000000 rows of 64 tokens do not fit, .*(they take .*iB, and this machine has|out of memory)/,
    );
  });

  it('records no step beside parameters that are too many for this machine', async () => {
    const memory = jest
      .spyOn(jest.requireActual<typeof import('node:os')>('node:os'), 'totalmem')
      .mockReturnValue(1 << 20);
    const args = ['--dry-run', '--width', '64'];
    expect((await refused(training('dry', ...args))).message).toMatch(
      /; parameters and optimizer alone take .*MiB, and this machine has 1\.0+ MiB$/,
    );
    memory.mockRestore();
  });

  it.each(['moe-mamba', 'blackmamba', 's4d'])('trains %s', async (family) => {
    const { code, stderr } = await run(training(family, '--family', family, '--steps', '2'));
    expect([code, stderr]).toEqual([0, expect.stringContaining('held-out loss')]);
    expect((await run(['generate', at(family), 'line', '-n', '2'])).code).toBe(0);
  });

  it('tells of a folder that cannot be made', async () => {
    const { code, stderr } = await run(['train', at('text.txt'), '--out', '/proc/x', ...small]);
    expect([code, stderr]).toEqual([
      1,
      expect.stringMatching(/error: \/proc\/x: folder cannot be made; ENOENT: .*mkdir '\/proc\/x'\n$/),
    ]);
  });

  it('tells of a full disk', async () => {
    mkdirSync(at('full', 'training'), { recursive: true });
    symlinkSync('/dev/full', at('full', 'training', 'log.jsonl'));
    const { code, stderr } = await run(training('full', '--steps', '4'));
    expect(code).toBe(1);
    expect(stderr).toMatch(/error: .*log\.jsonl: cannot be written, the disk is full/);
  });
});

describe('train refuses', () => {
  const config = (settings: object) => {
    const path = at('bad.json');
    writeFileSync(path, JSON.stringify(settings));
    return ['train', '--config', path];
  };
  const plain = (...args: string[]) => ['train', at('text.txt'), '--out', at('none'), ...args];
  const model = { model_type: 'mamba', hidden_size: 16, num_hidden_layers: 1 };
  const wanted = { data: ['text.txt'], out: 'none' };

  it.each<[string, () => string[], number, string]>([
    [
      'nothing to learn from',
      () => ['train', '--out', at('none')],
      2,
      'data is missing, expected files or folders',
    ],
    ['no place for the model', () => ['train', at('text.txt')], 2, '--out is missing, expected a folder'],
    [
      'a file that is not there',
      () => ['train', at('no.txt'), '--out', at('none')],
      2,
      'no.txt does not exist',
    ],
    [
      'the folder of the data for the model',
      () => ['train', at('folder'), '--out', at('folder')],
      2,
      'folder is the folder of --out, expected another',
    ],
    ['data shorter than a sequence', () => plain('--length', '100000'), 2, 'data has 7'],
    [
      'a training that is there already',
      () => training('first'),
      2,
      'first has a training already; go on with it by --resume',
    ],
    ['a resumed training that is none', () => ['train', '--resume', at('folder')], 2, '--resume: '],
    [
      'another learning rate for a resumed training',
      () => ['train', '--resume', at('first'), '--learning-rate', '1'],
      2,
      '--learning-rate is given with --resume, which goes on with what was',
    ],
    [
      'steps and epochs',
      () => plain('--steps', '3', '--epochs', '1'),
      2,
      '--epochs is given beside --steps; both say when to end',
    ],
    [
      'a model twice',
      () => plain('--from', TEXT_MODEL, '--layers', '2'),
      2,
      '--layers is given beside --from',
    ],
    [
      'micro-batches that do not divide',
      () => plain('--micro-batches', '3'),
      2,
      '--micro-batches is 3, expected a divisor of --batch, which is 8',
    ],
    [
      'a file for the model',
      () => ['train', at('text.txt'), '--out', at('text.txt')],
      2,
      'text.txt is a file, expected a folder',
    ],
    [
      'more epochs than there may be steps',
      () => plain('--epochs', '1e9', '--batch', '1'),
      2,
      '--epochs is 1000000000, which is 2',
    ],
    ['a width that is none', () => plain('--width', '1.5'), 2, '--width is 1.5, expected a whole number'],
    [
      'more layers than there may be, by the name of the flag',
      () => plain('--layers', '10001'),
      2,
      '--layers is 10001, expected at most 10000 layers',
    ],
    [
      'an odd state of s4d, by the name of the flag',
      () => plain('--family', 's4d', '--state-size', '3'),
      2,
      '--state-size is 3, expected an even number',
    ],
    [
      'a batch that no memory is for',
      () => plain('--batch', '1000000', '--dry-run'),
      2,
      '--batch is 1000000, expected at most 67108864 tokens in a batch; rows of 256 can be 262144',
    ],
    [
      'rows without number',
      () => plain('--batch', '1e9', '--length', '1', '--micro-batches', '2'),
      2,
      '--batch over --micro-batches is 500000000, expected at most 1048576',
    ],
    [
      'a loss scale that nothing uses',
      () => plain('--loss-scale', '8'),
      2,
      '--loss-scale is given, but it is for --dtype f16 alone',
    ],
    [
      'experts of a model without',
      () => plain('--experts', '4'),
      2,
      '--experts is given, but --family has no experts',
    ],
    ['a learning rate below 0', () => plain('--learning-rate', '-1'), 2, '--learning-rate is -1'],
    [
      'a smallest learning rate above the largest',
      () => plain('--learning-rate', '0.001', '--minimum-learning-rate', '0.01'),
      2,
      '--minimum-learning-rate is 0.01, expected at most --learning-rate, which is 0.001',
    ],
    ['a decay of averages above 1', () => plain('--ema', '1.5'), 2, '--ema is 1.5'],
    [
      'a warm-up beyond the end',
      () => plain('--steps', '3', '--warmup', '4'),
      2,
      '--warmup is 4, expected at most --steps, which is 3',
    ],
    [
      'no checkpoint at all',
      () => plain('--keep', '0'),
      2,
      '--keep is 0, expected a whole number, 1 or more',
    ],
    ['a share above 1', () => plain('--validation-share', '2'), 2, '--validation-share is 2'],
    [
      'a preset that is none',
      () => plain('--model', 'mamba-9b'),
      2,
      '--model is mamba-9b, expected a config.json, or one of mambabyte-353m',
    ],
    ['a tokenizer that is none', () => plain('--tokenizer', root), 2, 'has no tokenizer.json'],
    [
      'an unknown field',
      () => config({ ...wanted, learningrate: 1 }),
      2,
      'bad.json: there is no field learningrate',
    ],
    [
      'a field of another kind',
      () => config({ ...wanted, steps: '3' }),
      2,
      'bad.json: steps is "3", expected a number',
    ],
    [
      'a choice that is none',
      () => config({ ...wanted, dtype: 'fp8' }),
      2,
      'bad.json: dtype is "fp8", expected "f32" or "bf16" or "f16"',
    ],
    [
      'an unknown field of the model',
      () => config({ ...wanted, model: { ...model, heads: 3 } }),
      2,
      'config.json: there is no field heads in this kind of model',
    ],
    [
      'a model for which bytes are too many',
      () => config({ ...wanted, model: { ...model, vocab_size: 99 } }),
      2,
      'vocab_size of the model is 99, expected 256 or more for bytes',
    ],
    ['a config that is no JSON', () => ['train', '-c', at('text.txt')], 2, 'text.txt: is not valid JSON'],
    ['a config that is not there', () => ['train', '-c', at('no.json')], 2, 'no.json: file does not exist'],
    ['a model that is no JSON', () => plain('--model', at('text.txt')), 2, 'text.txt: is not valid JSON'],
    [
      'another folder for a resumed training',
      () => ['train', '--resume', at('first'), '--out', at('none')],
      2,
      `--out is ${at('none')}, but --resume goes on in ${at('first')}; leave --out away, or begin another training by --from`,
    ],
  ])('%s', async (_, args, code, message) => {
    const error = await refused(args());
    expect(inFlags(error.message)).toContain(message);
    expect(exitCodeOf(error)).toBe(code);
    expect(existsSync(at('none'))).toBe(false);
  });
});

/** What `train` throws: without a process of its own, for these are many. */
async function refused(args: readonly string[]): Promise<Error> {
  const before = ['SIGINT', 'SIGTERM', 'SIGHUP'].map(
    (signal) => [signal, process.listeners(signal as NodeJS.Signals)] as const,
  );
  try {
    await trainCommand().exitOverride().parseAsync(args.slice(1), { from: 'user' });
  } catch (error) {
    return error as Error;
  } finally {
    for (const [signal, listeners] of before)
      for (const listener of process.listeners(signal as NodeJS.Signals))
        if (!listeners.includes(listener)) process.off(signal, listener);
  }
  throw new Error('it was not refused');
}
