/** Training as a whole, on a small model and a task that it can learn. */
import { mkdir, mkdtemp, readdir, readFile, rename, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AutoModelForCausalLM, device, Trainer, type TrainerOptions, type TrainingBatch } from '../../lib';
import { rowsToBatch } from '../../lib/training/batch';
import { loadCheckpoint, saveCheckpoint } from '../../lib/training/checkpoints';
import { Parameters } from '../../lib/training/parameters';
import { randomFrom } from '../../lib/verify/cases';
import { relativeError } from '../same';

const config = {
  model_type: 'mamba',
  vocab_size: 17,
  hidden_size: 32,
  num_hidden_layers: 2,
  state_size: 8,
  initializer_range: 0.02,
};
const options: TrainerOptions = { steps: 40, learningRate: 5e-3, warmup: 4, weightDecay: 0.01, seed: 3 };

/** Rows that count upwards from anywhere, by 1 or 2. */
function batchOf(step: number, rows = 8, length = 24): TrainingBatch {
  const random = randomFrom(step + 1);
  return rowsToBatch(
    Array.from({ length: rows }, () => {
      const [from, by] = [Math.floor(17 * random()), 1 + Math.floor(2 * random())];
      return Array.from({ length: length + 1 }, (_, i) => (from + by * i) % 17);
    }),
  );
}

/** Losses of steps `from` to `to`. */
async function run(trainer: Trainer, from: number, to: number): Promise<number[]> {
  const reports = [];
  for (let i = from; i < to; i++) reports.push(trainer.step(batchOf(i)));
  return (await Promise.all(reports)).map(({ loss }) => loss);
}

const parametersOf = async (trainer: Trainer) =>
  Buffer.concat(
    await Promise.all(
      trainer.parameters.blocks.map(async ({ parameter }) => Buffer.from((await parameter.data()).buffer)),
    ),
  );

describe('a trainer', () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'training-'));
  });
  afterEach(async () => {
    await rm(folder, { recursive: true });
    expect(device().memoryUsage().tensors).toBe(0);
  });

  it('learns, and in bf16 to the same loss within 1 %', async () => {
    const last: number[] = [];
    for (const precision of ['f32', 'bf16'] as const) {
      const trainer = await Trainer.fromConfig(config, { ...options, steps: 80, precision });
      const losses = await run(trainer, 0, 80);
      expect(losses[0]).toBeGreaterThan(2.5);
      last.push(losses.slice(-10).reduce((a, b) => a + b) / 10);
      trainer.dispose();
    }
    expect(last[0]).toBeLessThan(1);
    expect(Math.abs(last[1]! - last[0]!)).toBeLessThan(0.01 * last[0]!);
  });

  it('takes micro-batches together', async () => {
    const [whole, parts] = await Promise.all([0, 1].map(() => Trainer.fromConfig(config, options)));
    const half = ({ ids, labels }: TrainingBatch, begin: number): TrainingBatch => ({
      ids: ids.slice(begin * 24, (begin + 4) * 24),
      labels: labels.slice(begin * 24, (begin + 4) * 24),
      offsets: Int32Array.from([0, 24, 48, 72, 96]),
    });
    const halves = (step: number) => [half(batchOf(step), 0), half(batchOf(step), 4)];
    // Gradients of one batch overwrite those before, those of several are added up from zero.
    for (const [step, batches] of [halves(0), halves(1), batchOf(2), batchOf(3), halves(4)].entries()) {
      const [a, b] = [await whole!.step(batchOf(step)), await parts!.step(batches)];
      expect(b.loss).toBeCloseTo(a.loss, 4);
      expect(b.gradientNorm).toBeCloseTo(a.gradientNorm, 4);
    }
    whole!.dispose();
    parts!.dispose();
  });

  it('fills the gaps of blocks that large parameters leave', () => {
    const parameters = new Parameters(device(), 'bf16', false, false);
    const sizes = [3 << 20, 1 << 20, 3 << 20, 1 << 20, 3 << 20, 1 << 20];
    const placed = Array.from({ length: 24 }, (_, i) =>
      parameters.place(`${i}.weight`, [sizes[i % 6]! >> 10, 1 << 10], 'f32'),
    );
    const room = parameters.blocks.reduce((sum, { parameter }) => sum + parameter.size, 0);
    expect(room).toBeLessThan(1.1 * placed.reduce((sum, { parameter }) => sum + parameter.size, 0));
    expect(new Set(parameters.blocks.map(({ decays }) => decays))).toEqual(new Set([true]));
    parameters.dispose();
  });

  it('goes on from a checkpoint to the same bits, and keeps the last ones', async () => {
    const first = await Trainer.fromConfig(config, options);
    const checkpoint = async () => saveCheckpoint(folder, first, { data: { at: first.steps }, keep: 2 });
    await run(first, 0, 3);
    await checkpoint();
    await run(first, 3, 6);
    await checkpoint();
    await checkpoint();
    await run(first, 6, 9);
    await checkpoint();
    expect((await readdir(folder)).sort()).toEqual(['step-00000006', 'step-00000009']);
    const losses = await run(first, 9, 12);

    const second = await Trainer.fromConfig(config, { ...options, seed: 4 });
    expect(await loadCheckpoint(folder, second)).toMatchObject({ data: { at: 9 } });
    expect(second.steps).toBe(9);
    expect(await run(second, 9, 12)).toEqual(losses);
    expect((await parametersOf(second)).equals(await parametersOf(first))).toBe(true);
    first.dispose();
    second.dispose();
  });

  it('passes over a damaged checkpoint, and refuses one of another model', async () => {
    const trainer = await Trainer.fromConfig(config, options);
    await run(trainer, 0, 1);
    await saveCheckpoint(folder, trainer);
    await run(trainer, 1, 2);
    const newest = await saveCheckpoint(folder, trainer);
    const path = join(newest, 'training.safetensors');
    const bytes = await readFile(path);
    bytes[bytes.length - 100]! ^= 1;
    await writeFile(path, bytes);
    const warnings: string[] = [];
    expect(await loadCheckpoint(folder, trainer, (message) => warnings.push(message))).toMatchObject({
      data: null,
    });
    expect(trainer.steps).toBe(1);
    expect(warnings).toEqual([expect.stringContaining(`${newest} is damaged and passed over`)]);
    trainer.dispose();

    const other = await Trainer.fromConfig({ ...config, hidden_size: 48 }, options);
    await expect(loadCheckpoint(folder, other)).rejects.toThrow('it belongs to another model');
    other.dispose();
  });

  it('tells a folder that cannot be meant from one without checkpoints, and that from one of damaged ones', async () => {
    const trainer = await Trainer.fromConfig(config, options);
    const load = (...names: string[]) => loadCheckpoint(join(folder, ...names), trainer);
    await expect(load('none')).rejects.toThrow(
      /^loadCheckpoint: folder is .*none, which does not exist, expected a folder with checkpoints$/,
    );
    await writeFile(join(folder, 'file'), '');
    await expect(load('file')).rejects.toThrow(
      /^loadCheckpoint: folder is .*file, which is a file, expected/,
    );
    expect(await load()).toBeUndefined();
    const path = await saveCheckpoint(folder, trainer);
    await expect(loadCheckpoint(path, trainer)).rejects.toThrow(
      /step-00000000, a checkpoint itself, expected the folder that it is in, \S+$/,
    );
    await truncate(join(path, 'training.json'), 9);
    await expect(load()).rejects.toThrow(
      /: its only checkpoint is damaged; to begin the training anew, move that folder away first, or take another$/,
    );
    trainer.dispose();
  });

  it('saves checkpoints that are asked for at the same time one after the other', async () => {
    const trainer = await Trainer.fromConfig(config, options);
    const data = { at: 1 };
    const saved = [1, 2, 3, 4].map(() => saveCheckpoint(folder, trainer, { data }));
    data.at = 2; // what counts is what was given
    expect(new Set(await Promise.all(saved)).size).toBe(1);
    expect(await readdir(folder)).toEqual(['step-00000000']);
    expect(await loadCheckpoint(folder, trainer)).toMatchObject({ data: { at: 1 } });
    const torn = saveCheckpoint(join(folder, 'torn'), trainer);
    await run(trainer, 0, 1);
    await expect(torn).rejects.toThrow(
      /^saveCheckpoint: trainer has gone on from step 0 to 1 meanwhile; wait/,
    );
    const late = saveCheckpoint(join(folder, 'torn'), trainer);
    while (!(await readdir(folder)).includes('torn')) await new Promise(setImmediate);
    await run(trainer, 1, 2);
    await expect(late).rejects.toThrow(/from step 1 to 2 meanwhile/);
    expect(await readdir(join(folder, 'torn'))).toEqual([]);
    trainer.dispose();
  });

  it('tells of another process that writes checkpoints into the folder', async () => {
    const trainer = await Trainer.fromConfig(config, options);
    const saved = saveCheckpoint(folder, trainer);
    const gone = async () => {
      const [unfinished] = (await readdir(folder)).filter((name) => name.endsWith('.tmp'));
      if (unfinished === undefined) return gone();
      return rename(join(folder, unfinished), join(folder, 'elsewhere'));
    };
    await gone();
    await expect(saved).rejects.toThrow(
      / was changed by another process meanwhile, expected one that writes/,
    );
    const living = `.step-00000001.${process.ppid}.tmp`; // of a process that may be at it
    for (const name of [living, `.step-00000001.${2 ** 30}.tmp`]) await mkdir(join(folder, name));
    await saveCheckpoint(folder, trainer);
    expect((await readdir(folder)).sort()).toEqual([living, 'elsewhere', 'step-00000000']);
    trainer.dispose();
  });

  it('refuses data that JSON does not give back, before anything is written', async () => {
    const trainer = await Trainer.fromConfig(config, options);
    const cycle: Record<string, unknown> = {};
    cycle['deep'] = [{ cycle }];
    let deep: unknown = 0;
    for (let i = 0; i < 600; i++) deep = [deep];
    for (const [data, message] of [
      [() => 1, 'data is function'],
      [{ at: [1, 2n] }, 'data.at[1] is bigint'],
      [{ at: NaN }, 'data.at is NaN'],
      [[undefined], 'data[0] is undefined'],
      [{ seen: new Map() }, 'data.seen is Map'],
      [new Uint8Array(2), 'data is Uint8Array'],
      [cycle, 'data.deep[0].cycle is a part of itself'],
    ] as const)
      await expect(saveCheckpoint(folder, trainer, { data })).rejects.toThrow(
        `saveCheckpoint: ${message}, expected what JSON can hold`,
      );
    await expect(saveCheckpoint(folder, trainer, { data: deep })).rejects.toThrow(
      'is 500 levels deep, expected',
    );
    expect(await readdir(folder)).toEqual([]);
    const data = { text: '', flag: false, none: null, list: [1, [2.5]], left: undefined };
    await saveCheckpoint(folder, trainer, { data });
    const { left: _left, ...rest } = data;
    expect((await loadCheckpoint(folder, trainer))!.data).toEqual(rest);
    trainer.dispose();
  });

  it('passes over a checkpoint of whose state one bit is another, whichever', async () => {
    const trainer = await Trainer.fromConfig(config, options);
    await saveCheckpoint(folder, trainer, { data: { at: 4 } });
    await run(trainer, 0, 1);
    const newest = await saveCheckpoint(folder, trainer, { data: { at: 5, epoch: 0, data: 'a0' } });
    const path = join(newest, 'training.json');
    const bytes = await readFile(path);
    for (const field of ['version', 'steps', 'layout', 'data', 'at', 'epoch', 'digests', 'digest']) {
      const damaged = Buffer.from(bytes);
      damaged[bytes.lastIndexOf(`"${field}":`) + field.length + 4]! ^= 1;
      await writeFile(path, damaged);
      const warnings: string[] = [];
      const found = await loadCheckpoint(folder, trainer, (message) => warnings.push(message));
      expect([field, found?.data, trainer.steps]).toEqual([field, { at: 4 }, 0]);
      expect(warnings).toEqual([expect.stringContaining(`${newest} is damaged and passed over`)]);
    }
    await writeFile(path, bytes);
    expect(await loadCheckpoint(folder, trainer)).toMatchObject({ data: { at: 5 }, path: newest });
    trainer.dispose();
  });

  it('refuses arguments that are missing, by name', async () => {
    const make = Trainer.fromConfig.bind(Trainer) as (...given: unknown[]) => Promise<Trainer>;
    await expect(make()).rejects.toThrow(/^Trainer\.fromConfig: config is undefined, expected/);
    await expect(make(config)).rejects.toThrow(/^Trainer\.fromConfig: options is undefined, expected/);
    const trainer = await make(config, options);
    expect(() => trainer.step(undefined as never)).toThrow(/^step: batch is undefined, expected/);
    trainer.dispose();
  });

  it('saves what from_pretrained loads, and evaluates it to the same loss', async () => {
    const trainer = await Trainer.fromConfig(config, { ...options, average: 0.9 });
    await run(trainer, 0, 5);
    const loss = await trainer.evaluate([batchOf(100), batchOf(101)]);
    await trainer.save(folder);
    const again = await Trainer.fromPretrained(folder, options);
    expect(await again.evaluate([batchOf(100), batchOf(101)])).toBe(loss);
    again.dispose();

    const model = await AutoModelForCausalLM.fromPretrained(folder);
    const { ids } = batchOf(100, 1);
    const [got, wanted] = [
      await model.forward({ inputIds: ids }),
      await trainer.model.forward({ inputIds: ids }),
    ];
    expect(relativeError(await got.logits.data(), await wanted.logits.data())).toBe(0);
    got.logits.dispose();
    wanted.logits.dispose();
    model.dispose();
    trainer.dispose();
  });

  it('skips steps in f16 whose gradients overflow, and finds a scale', async () => {
    const trainer = await Trainer.fromConfig(config, { ...options, precision: 'f16', lossScale: 2 ** 24 });
    const reports = [];
    for (let i = 0; i < 30; i++) reports.push(await trainer.step(batchOf(i)));
    const { taken, skipped, lossScale, loss } = reports.at(-1)!;
    expect(taken + skipped).toBe(30);
    expect(taken).toBeGreaterThan(10);
    expect(lossScale).toBe(2 ** (24 - skipped));
    expect(loss).toBeLessThan(reports[0]!.loss);
    trainer.dispose();
  });

  it('stops at a loss that is not a number, with the parameters before it', async () => {
    const trainer = await Trainer.fromConfig(config, options);
    await run(trainer, 0, 2);
    const norm = trainer.model.parameters.get('backbone.norm_f.weight')!;
    const good = (await norm.data()) as Float32Array;
    norm.set(new Float32Array(32).fill(NaN));
    const before = await parametersOf(trainer);
    const after = [batchOf(3), batchOf(4)].map((batch) => [trainer.step(batchOf(2)), batch] as const);
    await expect(after[0]![0]).rejects.toThrow('step: loss is NaN at step 3');
    await expect(after[1]![0]).rejects.toThrow('step: loss is NaN at step 4');
    expect((await parametersOf(trainer)).equals(before)).toBe(true);
    expect(await trainer.diagnose(3, [batchOf(2)])).toBe('parameter backbone.norm_f.weight');
    expect(trainer.steps).toBe(2);
    norm.set(good);
    expect(Number.isFinite((await trainer.step(batchOf(2))).loss)).toBe(true);
    trainer.dispose();
  });

  it.each(['f32', 'bf16', 'f16'] as const)('finds nothing amiss in a sound %s pass', async (precision) => {
    const trainer = await Trainer.fromConfig(config, { ...options, precision });
    expect(await trainer.diagnose(1, [batchOf(0), batchOf(1)])).toBeUndefined();
    trainer.dispose();
  });

  it('names the op where finite numbers become infinite', async () => {
    const trainer = await Trainer.fromConfig(config, options);
    const name = 'backbone.layers.1.mixer.in_proj.weight';
    const weight = trainer.model.parameters.get(name)!;
    weight.set(new Float32Array(weight.size).fill(3e38));
    await expect(trainer.step(batchOf(0))).rejects.toThrow('at step 1');
    expect(await trainer.diagnose(1, [batchOf(0)])).toBe(`y of matmul with ${name}`);
    trainer.dispose();
  });

  it('computes with averages where it is asked to, and goes on as if it had not been', async () => {
    const [one, other] = await Promise.all(
      [0, 1].map(() => Trainer.fromConfig(config, { ...options, precision: 'bf16', average: 0.5 })),
    );
    for (const trainer of [one!, other!]) await run(trainer, 0, 4);
    const plain = await one!.evaluate([batchOf(50)]);
    const averaged = await one!.withAverages(() => one!.evaluate([batchOf(50)]));
    expect(averaged).not.toBe(plain);
    expect(averaged).toBeGreaterThan(plain); // it lags behind
    expect(await one!.evaluate([batchOf(50)])).toBe(plain);
    expect(await run(one!, 4, 6)).toEqual(await run(other!, 4, 6));
    expect((await parametersOf(one!)).equals(await parametersOf(other!))).toBe(true);
    one!.dispose();
    other!.dispose();
  });

  it('takes no step and saves no checkpoint while it computes with averages', async () => {
    const trainer = await Trainer.fromConfig(config, { ...options, average: 0.9 });
    const refusal = 'trainer computes with averages, expected withAverages to have ended';
    await trainer.withAverages(async () => {
      expect(() => trainer.step([])).toThrow(`step: ${refusal}`);
      await expect(trainer.withAverages(async () => {})).rejects.toThrow(`withAverages: ${refusal}`);
      await expect(saveCheckpoint(folder, trainer)).rejects.toThrow(`saveCheckpoint: ${refusal}`);
    });
    await run(trainer, 0, 1);
    trainer.dispose();
  });

  it('refuses bad options and batches by name', async () => {
    const make = (bad: object) => Trainer.fromConfig(config, { ...options, ...bad });
    await expect(make({ steps: 0 })).rejects.toThrow(
      'Trainer.fromConfig: steps is 0, expected a whole number',
    );
    await expect(make({ precision: 'fp8' })).rejects.toThrow('precision is fp8, expected f32, bf16 or f16');
    await expect(make({ learningrate: 1 })).rejects.toThrow('there is no option learningrate');
    const trainer = await make({});
    const good = batchOf(0);
    const refused = (batch: Partial<TrainingBatch>) => () => trainer.step({ ...good, ...batch });
    expect(refused({ ids: new Int32Array(3) })).toThrow('step: labels has 192 elements, expected 3, as ids');
    expect(refused({ labels: good.labels.map(() => -100) })).toThrow('step: labels are all -100');
    expect(refused({ offsets: Int32Array.of(0, 9, 9, 192) })).toThrow(
      'step: offsets[2] is 9, expected more than 9',
    );
    const [ids, labels] = [good.ids.slice(), good.labels.slice()];
    const { vocabSize } = trainer.model.config;
    ids[3] = vocabSize;
    labels[5] = -1;
    expect(refused({ ids })).toThrow(`step: ids[3] is ${vocabSize}, expected 0 to ${vocabSize - 1}`);
    expect(refused({ labels })).toThrow(`step: labels[5] is -1, expected 0 to ${vocabSize - 1}, or -100`);
    expect(trainer.steps).toBe(0);
    expect(() => trainer.step([])).toThrow('step: batches is empty');
    trainer.dispose();
    expect(() => trainer.step(good)).toThrow('step: trainer is disposed');
  });
});
