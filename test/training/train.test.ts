/** The loop around the steps: its checkpoints, log and curves, and what it does when things go wrong. */
import { access, mkdir, mkdtemp, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  AutoModelForCausalLM,
  Corpus,
  device,
  train,
  Trainer,
  Windows,
  type BatchSource,
  type TrainerOptions,
  type TrainOptions,
} from '../../lib';
import { chartsOf } from '../../lib/training/curves';
import { Log, readLog } from '../../lib/training/log';

const config = {
  model_type: 'mambabyte',
  hidden_size: 16,
  num_hidden_layers: 2,
  state_size: 4,
  initializer_range: 0.02,
};
const options: TrainerOptions = { steps: 20, learningRate: 5e-3, seed: 3, average: 0.9 };

let folder: string;
let corpus: ReturnType<Corpus['split']>;
const trainers: Trainer[] = [];

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'train-'));
  const text = Array.from({ length: 200 }, (_, i) => `line ${i} of ${(i * 7) % 13}\n`).join('');
  await writeFile(join(folder, 'text'), text);
  corpus = (await Corpus.open([join(folder, 'text')])).split({ share: 0.1 });
});
afterAll(() => rm(folder, { recursive: true }));
afterEach(() => {
  for (const trainer of trainers.splice(0)) trainer.dispose();
  expect(device().memoryUsage().tensors).toBe(0);
});

async function make(more: Partial<TrainerOptions> = {}): Promise<Trainer> {
  const trainer = await Trainer.fromConfig(config, { ...options, ...more });
  trainers.push(trainer);
  return trainer;
}
const source = () => new Windows(corpus.training, { length: 32, rows: 2, seed: 5 });
const held = new Map<string, Windows>();
const validation = () => {
  if (!held.has(folder))
    held.set(folder, new Windows(corpus.validation, { length: 32, rows: 4, shuffle: false }));
  return held.get(folder)!;
};
const parametersOf = async (trainer: Trainer) =>
  Buffer.concat(
    await Promise.all(
      trainer.parameters.blocks.map(async ({ parameter }) => Buffer.from((await parameter.data()).buffer)),
    ),
  );

it('trains with evaluations, checkpoints, a log and curves', async () => {
  const trainer = await make();
  const at = join(folder, 'whole');
  const seen: number[] = [];
  const saved: string[] = [];
  const result = await train(trainer, {
    source: source(),
    microBatches: 2,
    folder: at,
    title: 'A <test>',
    validation,
    evaluateEvery: 5,
    saveEvery: 4,
    keep: 3,
    best: join(at, 'best'),
    onStep: ({ step }) => seen.push(step),
    onCheckpoint: (path) => saved.push(path),
  });
  expect(seen).toEqual(Array.from({ length: 20 }, (_, i) => i + 1));
  expect(result).toMatchObject({ steps: 20, tokens: 20 * 2 * 64, stopped: false, checkpoint: saved.at(-1) });
  expect(result.best).toEqual({ step: 20, validation: result.validation });
  expect((await readdir(at)).sort()).toEqual([
    'best',
    'curves.html',
    'log.jsonl',
    'step-00000012',
    'step-00000016',
    'step-00000020',
  ]);
  const { steps, evaluations } = await readLog(join(at, 'log.jsonl'));
  expect(steps.map(({ step }) => step)).toEqual(seen);
  expect(steps.at(-1)!.loss).toBeLessThan(steps[0]!.loss);
  expect(steps[3]).toEqual({
    time: expect.any(String),
    step: 4,
    tokens: 4 * 128,
    loss: expect.any(Number),
    learningRate: expect.any(Number),
    gradientNorm: expect.any(Number),
    tokensPerSecond: expect.any(Number),
    memory: expect.any(Number),
  });
  expect(evaluations.map(({ step, best }) => [step, best])).toEqual([5, 10, 15, 20].map((n) => [n, true]));

  const page = await readFile(join(at, 'curves.html'), 'utf8');
  expect(page).toContain('<title>A &lt;test&gt;</title>');
  expect(page).not.toMatch(/http-equiv|<script|(src|href)=/);
  expect(page.match(/<svg /g)).toHaveLength(4);
  expect(chartsOf(steps, evaluations).map(({ series }) => series.map(({ points }) => points.length))).toEqual(
    [[20, 20, 4], [20], [20], [20]],
  );

  // The best model is that of the averages, and it is one that loads.
  const model = await AutoModelForCausalLM.fromPretrained(join(at, 'best'));
  const mean = (await model.parameters.get('backbone.norm_f.weight')!.data()) as Float32Array;
  await trainer.withAverages(async () => {
    expect(await trainer.model.parameters.get('backbone.norm_f.weight')!.data()).toEqual(mean);
  });
  model.dispose();
});

it('goes on to the same bits after it was stopped, and after its process was', async () => {
  const whole = await make();
  const all: TrainOptions = { source: source(), validation, evaluateEvery: 6, saveEvery: 5 };
  const first = await train(whole, { ...all, folder: join(folder, 'a') });

  const at = join(folder, 'b');
  const controller = new AbortController();
  const stopped = await train(await make(), {
    ...all,
    source: source(),
    folder: at,
    signal: controller.signal,
    onStep: ({ step }) => step === 7 && controller.abort(),
  });
  expect(stopped).toMatchObject({ steps: 8, stopped: true, checkpoint: join(at, 'step-00000008') });
  // What a process that died may leave: half a checkpoint, and half a line.
  await writeFile(join(at, 'log.jsonl'), '{"step":9,"lo', { flag: 'a' });
  const again = await make({ seed: 9 });
  const warnings: string[] = [];
  await truncate(join(at, 'step-00000008', 'training.safetensors'), 1000);
  const resumed = { ...all, source: source(), folder: at, resume: true };
  const last = await train(again, { ...resumed, onWarning: (message) => warnings.push(message) });
  expect(warnings).toEqual([expect.stringMatching(/step-00000008 is damaged and passed over: .*truncated/)]);
  expect(last.steps).toBe(20);
  expect([last.loss, last.validation, last.tokens]).toEqual([first.loss, first.validation, first.tokens]);
  expect((await parametersOf(again)).equals(await parametersOf(whole))).toBe(true);
  const logged = async () => {
    const lines = (await readFile(join(at, 'log.jsonl'), 'utf8')).trimEnd().split('\n');
    const records = lines.map(
      (line) => JSON.parse(line) as { step: number; loss?: number; validation?: number },
    );
    return (['loss', 'validation'] as const).map((name) =>
      records.flatMap((r) => (name in r ? [r.step] : [])),
    );
  };
  const once = [Array.from({ length: 20 }, (_, i) => i + 1), [6, 12, 18, 20]];
  expect(await logged()).toEqual(once);
  for (let i = 0; i < 2; i++) {
    const ended = await train(await make({ seed: 9 }), resumed); // nothing is left but to say how it ended
    expect([ended.steps, ended.validation]).toEqual([20, first.validation]);
    expect(await logged()).toEqual(once);
  }
});

it('ends with the data', async () => {
  const ended = new Windows(corpus.training, { length: 32, rows: 16, epochs: 1 });
  const result = await train(await make(), { source: ended });
  expect(result).toMatchObject({ steps: ended.batchesPerEpoch, stopped: false, checkpoint: undefined });
});

it('stops at a loss that is not finite, with the tensor and the state before it', async () => {
  const trainer = await make();
  const at = join(folder, 'nan');
  const name = 'backbone.layers.0.mixer.D';
  const good = source();
  const poisoned: BatchSource = {
    state: () => good.state(),
    restore: (state) => good.restore(state),
    next: () => {
      if (trainer.steps === 4) trainer.model.parameters.get(name)!.set(new Float32Array(32).fill(Infinity));
      return good.next();
    },
  };
  const failed = join(at, 'failed', 'step-00000004');
  await expect(train(trainer, { source: poisoned, folder: at, saveEvery: 2 })).rejects.toThrow(
    `train: loss is NaN at step 5; the first tensor that is not finite is parameter ${name}; the state before the step is saved in ${failed}`,
  );
  await access(join(failed, 'training.json'));
  const log = await readFile(join(at, 'log.jsonl'), 'utf8');
  expect(log).toContain(`"event":"failed","at":5,"why":"loss is NaN","tensor":"parameter ${name}"`);
  await access(join(at, 'curves.html'));
  // The checkpoint before it is a good one.
  const again = await make();
  const result = await train(again, { source: source(), folder: at, resume: true });
  expect(result.steps).toBe(20);
});

it('takes a held-out loss that is not a number for no best one', async () => {
  const [at, best] = [join(folder, 'wild'), join(folder, 'wild', 'best')];
  const { average: _, ...plain } = options;
  const trainer = await Trainer.fromConfig(config, { ...plain, learningRate: 1e3, warmup: 0 });
  trainers.push(trainer);
  const seen: (readonly [number, boolean])[] = [];
  await expect(
    train(trainer, {
      ...{ source: source(), validation, folder: at, best, evaluateEvery: 1 },
      onEvaluation: ({ validation, best }) => seen.push([validation, best]),
    }),
  ).rejects.toThrow(/^train: loss is NaN at step 2;/);
  expect(seen).toEqual([[NaN, false]]);
  await expect(access(best)).rejects.toThrow('ENOENT');
});

it('says how to begin anew where all checkpoints are damaged', async () => {
  const at = join(folder, 'damaged');
  await mkdir(join(at, 'step-00000003'), { recursive: true });
  await expect(train(await make(), { source: source(), folder: at, resume: true })).rejects.toThrow(
    /damaged holds no checkpoint that could be gone on from; to begin the training anew, move that folder away first$/,
  );
});

it('refuses what cannot be meant, before any work', async () => {
  const trainer = await make();
  const refused = (bad: object, message: string | RegExp) =>
    expect(train(trainer, { source: source(), ...bad } as TrainOptions)).rejects.toThrow(message);
  await refused({ source: 3 }, 'train: source is number, expected a BatchSource');
  await refused({ keep: 0, folder }, 'train: keep is 0, expected a whole number, 1 or more');
  await refused({ saveEvery: 5 }, 'train: saveEvery is given, but no folder for checkpoints');
  await refused({ best: folder }, 'train: best is given, but no validation to go by');
  await refused({ evalEvery: 1 }, 'train: there is no option evalEvery');
  await refused({ folder: join(folder, 'a') }, /a has checkpoints of a training already; go on with it/);
  await refused(
    { folder: join(folder, 'none'), resume: true },
    /none holds no checkpoint that could be gone on from; the command that began the training begins it anew$/,
  );
  await mkdir(join(folder, 'lost', 'failed', 'step-00000003'), { recursive: true });
  await refused(
    { folder: join(folder, 'lost'), resume: true },
    /anew; .*lost\/failed\/step-00000003 has the state before a step that failed$/,
  );
  expect(trainer.steps).toBe(0);
});

describe('a log', () => {
  it('tells of a full disk', async () => {
    const log = new Log('/dev/full', 0);
    log.write({ step: 1 });
    await expect(log.close()).rejects.toThrow('/dev/full: cannot be written, the disk is full');
    expect(() => log.write({ step: 2 })).toThrow('/dev/full: cannot be written, the disk is full');
  });

  it('goes on behind the steps that count, on a whole line', async () => {
    const path = join(folder, 'cut.jsonl');
    const lines = ['{"event":"started","at":0}', ...[1, 2, 3].map((step) => `{"step":${step},"loss":1}`)];
    const before = [...lines.slice(0, 3), '{"event":"failed","at":9}', ...lines.slice(3), '{"step":4,"lo'];
    for (const [steps, kept] of [
      [2, 3],
      [0, 1],
    ] as const) {
      await writeFile(path, before.join('\n'));
      const log = new Log(path, steps);
      log.write({ step: steps + 1, loss: 2 });
      await log.close();
      const now = (await readFile(path, 'utf8')).split('\n');
      expect(now.slice(0, kept)).toEqual(lines.slice(0, kept));
      expect(now.slice(kept)).toEqual([expect.stringMatching(/^\{"time":.*"loss":2\}$/), '']);
    }
  });

  it('keeps whole lines when one cannot be written', async () => {
    const path = join(folder, 'torn.jsonl');
    const log = new Log(path, 0);
    log.write({ step: 1 });
    await log.close();
    const whole = await readFile(path, 'utf8');
    const { appendFile } = jest.requireActual<typeof import('node:fs/promises')>('node:fs/promises');
    const torn = jest
      .spyOn(jest.requireActual<typeof import('node:fs/promises')>('node:fs/promises'), 'appendFile')
      .mockImplementationOnce(async () => {
        await appendFile(path, '{"ti');
        throw Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' });
      });
    log.write({ step: 2 });
    await expect(log.close()).rejects.toThrow('torn.jsonl: cannot be written, the disk is full');
    torn.mockRestore();
    expect(await readFile(path, 'utf8')).toBe(whole);
  });

  it('has steps that were done twice once', async () => {
    const path = join(folder, 'twice.jsonl');
    const line = (step: number, loss: number) => `${JSON.stringify({ step, loss })}\n`;
    await writeFile(path, `${line(1, 4) + line(2, 3) + line(3, 2)}{"event":"resumed","at":1}\n${line(2, 5)}`);
    expect((await readLog(path)).steps.map(({ step, loss }) => [step, loss])).toEqual([
      [1, 4],
      [2, 5],
    ]);
  });
});
