import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { Command, Option } from 'commander';
import { setThreads } from '../device';
import { TrainingError } from '../errors';
import { makeFolder } from '../io/folder';
import type { JsonObject } from '../io/json';
import { lockFolder } from '../io/lock';
import { writeJson } from '../models/save';
import { findCheckpoints } from '../training/checkpoints';
import { train } from '../training/train';
import type { TrainResult } from '../training/train-options';
import { endings, interruption, UsageError } from './exit';
import { checkResumed, checkSettings, overridden } from './train-checks';
import { checkFolder } from './output-file';
import { remadeTokens, tokensFile } from './train-data';
import { describePlan, describeResult, describeEvaluation } from './train-description';
import { makeTrainer, prepare, type Job } from './train-job';
import { TrainingProgress } from './train-progress';
import { addSettings, readSettings, settingsOf, type Settings } from './train-settings';
import { note, print } from './terminal';

const help = `
Data are files, or folders of files. Without --tokenizer their bytes are the tokens.
A JSON config holds the same settings in camelCase ("learningRate"), and "model" may
be what config.json would hold; flags override it.

<out> becomes an ordinary model folder. In <out>/training are the settings, the log
(log.jsonl), the curves (curves.html) and the checkpoints. Ctrl-C ends a training with
a checkpoint; --resume goes on from the last one, to the same bits.

Examples:
  $ selective-scan train book.txt --out my-model --steps 2000
  $ selective-scan train src/ --out my-model --layers 8 --width 512 --device cuda --dtype bf16
  $ selective-scan train book.txt --out tuned --from ./mamba-130m --learning-rate 1e-4
  $ selective-scan train *.txt --out moe --family moe-mamba --tokenizer ./mamba-130m
  $ selective-scan train --config train.json --dry-run
  $ selective-scan train --resume my-model

Exit codes: 0 fine, 1 failed, 2 wrong arguments, 130 ended by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.`;

interface Flags {
  readonly config?: string;
  readonly resume?: string;
  readonly dryRun?: boolean;
  readonly json?: boolean;
}

export function trainCommand(): Command {
  const command = new Command('train')
    .description('Train a small model of the family, from scratch or from a checkpoint.')
    .argument('[data...]', 'files or folders to learn from')
    .option('-c, --config <file>', 'a JSON file with settings')
    .addOption(new Option('--resume <out>', 'go on with the training in this folder').conflicts('config'))
    .option('--dry-run', 'say what would be done and how much memory it takes, and do nothing')
    .option('--json', 'write one JSON object a line: each logged step and evaluation, then the result');
  return addSettings(command).addHelpText('after', help).action(run);
}

/** The settings of a training in its folder, by which it is gone on with. */
const settingsFile = (out: string) => join(out, 'training', 'settings.json');

async function run(
  files: readonly string[],
  flags: Flags & Readonly<Record<string, unknown>>,
): Promise<void> {
  const signal = interruption(endings);
  const settings = await allSettings(files, flags);
  if (settings.threads !== undefined) setThreads(settings.threads);
  const { out } = settings;
  if (out === undefined && !flags.dryRun)
    throw new UsageError('--out is missing, expected a folder for the model');
  if (out !== undefined) await checkFolder('--out', out);
  const scratch = flags.dryRun ? await mkdtemp(join(tmpdir(), 'selective-scan-')) : undefined;
  const lock = scratch ? undefined : await lockFolder(out!, (message) => note(`warning: ${message}`));
  try {
    if (!scratch && flags.resume === undefined) await checkNew(out!);
    const job = await prepare(
      settings,
      scratch ?? join(out!, 'training'),
      signal,
      flags.resume !== undefined,
    );
    note(describePlan(settings, job.plan, job.data, job.options, job.config).trimEnd());
    if (!flags.dryRun) await execute(job, settings as Settings & { out: string }, flags, signal);
  } finally {
    if (scratch) await rm(scratch, { recursive: true, force: true });
    await lock?.release();
  }
}

/** From the config or the training that is gone on with, and the flags; nothing contradicts itself. */
async function allSettings(
  files: readonly string[],
  flags: Flags & Readonly<Record<string, unknown>>,
): Promise<Settings> {
  const given = settingsOf(files, flags);
  if (flags.resume === undefined) {
    const config = flags.config === undefined ? {} : await readSettings(flags.config);
    const settings = overridden(config, given);
    checkSettings(settings);
    return absolute(settings);
  }
  const before = await readSettings(settingsFile(flags.resume)).catch((error: unknown) => {
    throw new UsageError(`--resume: ${flags.resume} holds no training; ${(error as Error).message}`, {
      cause: error,
    });
  });
  checkResumed(given, before, flags.resume);
  return absolute({ ...before, ...given, out: flags.resume });
}

/** @throws UsageError where `out` holds what a new training would write over. */
async function checkNew(out: string): Promise<void> {
  const checkpoints = await findCheckpoints(join(out, 'training'));
  if (checkpoints.length > 0)
    throw new UsageError(
      `--out: ${out} has a training already; go on with it by --resume ${out}, or choose another`,
    );
  if (existsSync(join(out, 'config.json')))
    throw new UsageError(`--out: ${out} has a model already, expected a new folder`);
}

/** What `--resume` reads: the model as it is, in place of how it was asked for. */
function kept(settings: Settings, config: JsonObject): Settings {
  if (settings.from !== undefined) return settings;
  const {
    family: _family,
    layers: _layers,
    width: _width,
    stateSize: _state,
    experts: _experts,
    ...rest
  } = settings;
  return { ...rest, model: config };
}

/** Paths that mean the same from anywhere. */
function absolute(settings: Settings): Settings {
  const all: Record<string, unknown> = { ...settings };
  for (const name of ['out', 'tokenizer'] as const) if (settings[name]) all[name] = resolve(settings[name]);
  for (const name of ['data', 'validation'] as const)
    if (settings[name]) all[name] = settings[name].map((path) => resolve(path));
  if (settings.from !== undefined && existsSync(settings.from)) all['from'] = resolve(settings.from);
  return all;
}

async function execute(
  { config, data, options, from }: Job,
  settings: Settings & { readonly out: string },
  flags: Flags,
  signal: AbortSignal,
): Promise<void> {
  const { out } = settings;
  const folder = join(out, 'training');
  const trainer = await makeTrainer({ config, options, from }, settings);
  const progress = new TrainingProgress(trainer.options.steps);
  const write = (record: object) => void (flags.json && process.stdout.write(`${JSON.stringify(record)}\n`));
  try {
    if (flags.resume === undefined) {
      await makeFolder(folder);
      await writeJson(settingsFile(out), kept(settings, config));
    }
    signal.throwIfAborted();
    progress.begin();
    const { microBatches, logEvery, evaluateEvery, saveEvery, keep, keepBest } = settings;
    const given = Object.entries({ microBatches, logEvery, evaluateEvery, saveEvery, keep });
    const result: TrainResult = await train(trainer, {
      ...Object.fromEntries(given.filter(([, value]) => value !== undefined)),
      source: data.training,
      folder,
      title: out.split(/[\\/]/).at(-1)!,
      ...(data.validation && { validation: data.validation }),
      ...(keepBest && { best: join(out, 'best') }),
      ...(flags.resume !== undefined && { resume: true }),
      signal,
      onStep: (record) => {
        write(record);
        progress.step(record);
      },
      onEvaluation: (record) => {
        write(record);
        progress.say(describeEvaluation(record, data));
      },
      onWarning: (message) => progress.say(`warning: ${message}`),
    });
    progress.stop();
    await trainer.withAverages(() => trainer.save(out));
    if (flags.json) await print(`${JSON.stringify({ out, ...result })}\n`);
    else await print(describeResult(out, result, data));
    if (result.validation !== undefined && !Number.isFinite(result.validation))
      throw new TrainingError(
        `the held-out loss is ${result.validation}: the last steps were too large; try a lower --learning-rate`,
      );
    if (!result.stopped) return;
    note(`stopped; go on with: selective-scan train --resume ${out}`);
    signal.throwIfAborted(); // for the exit code
  } catch (error) {
    const { message } = error as Error;
    if (message.includes('disk is full') && (await findCheckpoints(folder)).length > 0)
      throw new TrainingError(`${message}; make room and go on with: selective-scan train --resume ${out}`, {
        cause: error,
      });
    if (message.startsWith('restore: state is of other data') && existsSync(tokensFile(folder)))
      throw new TrainingError(`${message}; ${remadeTokens(tokensFile(folder))}`, { cause: error });
    throw error;
  } finally {
    progress.stop();
    trainer.dispose();
  }
}
