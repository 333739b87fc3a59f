import { dirname, resolve } from 'node:path';
import { Option, type Command } from 'commander';
import { FormatError } from '../errors';
import { isObject, kind, readJson, type JsonObject } from '../io/json';
import { number } from './arguments';
import { UsageError } from './exit';

/** Families by the name of their paper. */
export const familyNames = ['mamba', 'mambabyte', 'moe-mamba', 'blackmamba', 's4d'] as const;

/** What a training is: the fields of its JSON config, and, in kebab-case, the flags of `train`. */
export interface Settings {
  readonly data?: readonly string[];
  readonly validation?: readonly string[];
  readonly validationShare?: number;
  readonly validationBatches?: number;
  readonly documents?: 'joined' | 'separate';
  readonly tokenizer?: string;
  readonly family?: (typeof familyNames)[number];
  readonly layers?: number;
  readonly width?: number;
  readonly stateSize?: number;
  readonly experts?: number;
  /** A preset's name, a path of a config.json or its folder, or what config.json would hold. */
  readonly model?: string | JsonObject;
  readonly from?: string;
  readonly out?: string;
  readonly steps?: number;
  readonly epochs?: number;
  readonly batch?: number;
  readonly microBatches?: number;
  readonly length?: number;
  readonly learningRate?: number;
  readonly schedule?: 'cosine' | 'constant';
  readonly warmup?: number;
  readonly minimumLearningRate?: number;
  readonly weightDecay?: number;
  readonly beta1?: number;
  readonly beta2?: number;
  readonly eps?: number;
  readonly clip?: number;
  readonly ema?: number;
  readonly dtype?: 'f32' | 'bf16' | 'f16';
  readonly lossScale?: number;
  readonly lossScaleInterval?: number;
  readonly seed?: number;
  readonly evaluateEvery?: number;
  readonly saveEvery?: number;
  readonly logEvery?: number;
  readonly keep?: number;
  readonly keepBest?: boolean;
  readonly device?: string;
  readonly threads?: number;
}

export type Name = keyof Settings;
interface Setting {
  readonly kind: 'number' | 'text' | 'path' | 'paths' | 'flag' | 'model' | readonly string[];
  /** The placeholder and the explanation of the flag; none where the data's files stand by themselves. */
  readonly flag?: readonly [placeholder: string, help: string];
  readonly group: string;
}

const [data, model, optimization, precision, course, where] = [
  'Data:',
  'Model:',
  'Optimization:',
  'Precision:',
  'Evaluation and checkpoints:',
  'Where it runs:',
] as const;
const numeric = (group: string, placeholder: string, help: string): Setting => ({
  kind: 'number',
  flag: [placeholder, help],
  group,
});

const table: Readonly<Record<Name, Setting>> = {
  data: { kind: 'paths', group: data },
  validation: { kind: 'paths', flag: ['<path>', 'a held-out file or folder; can be repeated'], group: data },
  validationShare: numeric(
    data,
    '<share>',
    'hold out so much of the data instead; 0 for nothing (default: 0.05)',
  ),
  validationBatches: numeric(data, '<n>', 'evaluate on at most so many held-out batches (default: 64)'),
  documents: {
    kind: ['joined', 'separate'],
    flag: ['<how>', 'whether rows go on from one file to the next (default: joined)'],
    group: data,
  },
  tokenizer: {
    kind: 'path',
    flag: ['<folder>', 'a folder with tokenizer.json; without one, tokens are bytes'],
    group: data,
  },
  family: {
    kind: familyNames,
    flag: ['<name>', 'the kind of model (default: mambabyte, or mamba with a tokenizer)'],
    group: model,
  },
  layers: numeric(model, '<n>', 'layers (default: 4)'),
  width: numeric(model, '<n>', "the model's width (default: 256)"),
  stateSize: numeric(model, '<n>', 'states of a channel (default: 16; s4d: 64)'),
  experts: numeric(model, '<n>', 'experts of a layer, for moe-mamba and blackmamba (default: 8)'),
  model: {
    kind: 'model',
    flag: ['<what>', 'a config.json, or the name of a preset, instead of these'],
    group: model,
  },
  from: {
    kind: 'text',
    flag: ['<model>', 'go on from the parameters of this model: a folder or Hugging Face id'],
    group: model,
  },
  out: { kind: 'path', flag: ['<folder>', 'where the model goes, with training/ inside it'], group: model },
  steps: numeric(optimization, '<n>', 'steps in all'),
  epochs: numeric(optimization, '<n>', 'times through the data, instead of --steps (default: 1)'),
  batch: numeric(optimization, '<n>', 'rows of a step (default: 8)'),
  microBatches: numeric(optimization, '<n>', 'parts that a step is computed in, to save memory (default: 1)'),
  length: numeric(optimization, '<n>', 'tokens of a row (default: 256)'),
  learningRate: numeric(optimization, '<x>', 'the largest (default: 0.001)'),
  schedule: {
    kind: ['cosine', 'constant'],
    flag: ['<shape>', 'after the warm-up (default: cosine)'],
    group: optimization,
  },
  warmup: numeric(optimization, '<n>', 'steps of it (default: a tenth, at most 1000)'),
  minimumLearningRate: numeric(optimization, '<x>', "the cosine's end (default: a tenth of the largest)"),
  weightDecay: numeric(optimization, '<x>', 'of weights alone (default: 0.1)'),
  beta1: numeric(optimization, '<x>', "AdamW's first (default: 0.9)"),
  beta2: numeric(optimization, '<x>', 'and second (default: 0.95)'),
  eps: numeric(optimization, '<x>', "AdamW's epsilon (default: 1e-8)"),
  clip: numeric(optimization, '<norm>', 'largest norm of a gradient, 0 for any (default: 1)'),
  ema: numeric(
    optimization,
    '<decay>',
    'keep a moving average of the parameters; it is what is evaluated and saved',
  ),
  seed: numeric(optimization, '<n>', 'of fresh parameters and of the order of the data (default: 0)'),
  dtype: {
    kind: ['f32', 'bf16', 'f16'],
    flag: ['<name>', 'of matrix products; parameters and sums stay f32 (default: f32)'],
    group: precision,
  },
  lossScale: numeric(precision, '<x>', 'f16: what to begin with (default: 65536)'),
  lossScaleInterval: numeric(precision, '<n>', 'f16: steps until it is tried doubled (default: 2000)'),
  evaluateEvery: numeric(course, '<n>', 'steps between evaluations (default: a twentieth)'),
  saveEvery: numeric(course, '<n>', 'steps between checkpoints (default: a tenth)'),
  logEvery: numeric(course, '<n>', 'steps between lines of the log (default: 1, more if there are many)'),
  keep: numeric(course, '<n>', 'checkpoints that are kept (default: 2)'),
  keepBest: {
    kind: 'flag',
    flag: ['', 'also keep the model with the lowest held-out loss, in <out>/best'],
    group: course,
  },
  device: {
    kind: 'text',
    flag: ['<name>', 'cpu, cuda or cuda:<index> (default: SELECTIVE_SCAN_DEVICE, or cpu)'],
    group: where,
  },
  threads: numeric(where, '<n>', 'CPU threads (default: SELECTIVE_SCAN_THREADS, or all cores)'),
};

/** The flag of a setting. */
export const flagOf = (name: Name): string => `--${kebab(name)}`;
const kebab = (name: string) => name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);

/** Adds a flag for every setting that has one. */
export function addSettings(command: Command): Command {
  let group = '';
  for (const [name, { kind, flag, group: own }] of Object.entries(table)) {
    if (!flag) continue;
    if (own !== group) command.optionsGroup((group = own));
    const [placeholder, help] = flag;
    const option = new Option(`--${kebab(name)} ${placeholder}`.trim(), help);
    if (kind === 'number') option.argParser(number);
    if (kind === 'paths')
      option.argParser((path: string, before: readonly string[] = []) => [...before, path]);
    if (Array.isArray(kind)) option.choices(kind as string[]);
    command.addOption(option);
  }
  return command;
}

/** What the command line says, without what it does not. */
export function settingsOf(files: readonly string[], flags: Readonly<Record<string, unknown>>): Settings {
  const given = Object.entries({ ...flags, ...(files.length > 0 && { data: files }) });
  return Object.fromEntries(
    given.filter(([name, value]) => Object.hasOwn(table, name) && value !== undefined),
  );
}

/** A JSON file in which a user says what is wanted, as flags do. @throws UsageError where it is none. */
export const readAsked = (path: string): Promise<JsonObject> =>
  readJson(path).catch((error: unknown) => {
    throw error instanceof FormatError ? new UsageError(error.message, { cause: error }) : error;
  });

/** Reads a JSON config. Paths in it are from its own folder. @throws UsageError that names the field. */
export async function readSettings(path: string): Promise<Settings> {
  const json = await readAsked(path);
  const folder = dirname(resolve(path));
  const settings: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(json)) {
    const setting = Object.hasOwn(table, name) ? table[name as Name] : undefined;
    if (!setting)
      throw new UsageError(`${path}: there is no field ${name}; selective-scan train --help lists all`);
    const wanted = wantedOf(setting, value);
    if (wanted) throw new UsageError(`${path}: ${name} is ${kind(value)}, expected ${wanted}`);
    const at = (text: string) => resolve(folder, text);
    if (setting.kind === 'path') settings[name] = at(value as string);
    else if (setting.kind === 'paths') settings[name] = (value as string[]).map(at);
    else if (setting.kind === 'model' && typeof value === 'string' && /[./]/.test(value))
      settings[name] = at(value);
    else settings[name] = value;
  }
  return settings;
}

/** What a value should have been, if it is something else. */
function wantedOf({ kind }: Setting, value: unknown): string | undefined {
  const isText = typeof value === 'string' && value !== '';
  if (Array.isArray(kind))
    return kind.includes(value) ? undefined : kind.map((item) => JSON.stringify(item)).join(' or ');
  switch (kind) {
    case 'number':
      return typeof value === 'number' ? undefined : 'a number';
    case 'flag':
      return typeof value === 'boolean' ? undefined : 'true or false';
    case 'paths':
      return Array.isArray(value) &&
        value.length > 0 &&
        value.every((path) => typeof path === 'string' && path !== '')
        ? undefined
        : 'a list of paths';
    case 'model':
      return isText || isObject(value)
        ? undefined
        : 'a path, the name of a preset, or the fields of a config.json';
    default:
      return isText ? undefined : kind === 'path' ? 'a path' : 'text';
  }
}
