import { InvalidArgumentError, Option, type Command } from 'commander';
import { mixturePresets, presets } from '../bench/model';
import type { FloatFormat } from '../io/convert';
import { UsageError } from './exit';

export interface CommonFlags {
  readonly device?: string;
  readonly dtype?: readonly FloatFormat[];
  readonly threads?: readonly number[];
  readonly runs: number;
  readonly json?: boolean;
  readonly output?: string;
  readonly plot?: string;
  readonly compare?: string;
}

export interface ModelFlags extends CommonFlags {
  readonly model: readonly string[];
  readonly batch?: readonly number[];
  readonly stateDtype?: FloatFormat;
}

/** Flags that hold a list of each size of a shape. */
export type Lists<Shape> = { readonly [K in keyof Shape]?: readonly number[] };

const mostElements = 2 ** 32; // of one tensor

/** All combinations of the lists in `flags`, one's default where it is missing; undefined without any. */
export function combinations<Shape extends object>(
  flags: Lists<Shape>,
  defaults: Readonly<Record<keyof Shape, readonly number[]>>,
): readonly Shape[] | undefined {
  const names = Object.keys(defaults) as (keyof Shape)[];
  if (names.every((name) => flags[name] === undefined)) return undefined;
  const all = names.reduce<readonly Readonly<Record<string, number>>[]>(
    (shapes, name) =>
      shapes.flatMap((shape) => (flags[name] ?? defaults[name]).map((size) => ({ ...shape, [name]: size }))),
    [{}],
  );
  for (const { batch = 1, dim = 1, length = 1 } of all)
    if (batch * dim * length > mostElements)
      throw new UsageError(
        `--batch, --dim and --length are ${batch}, ${dim} and ${length}, expected a product of at most ${mostElements}`,
      );
  return all as unknown as readonly Shape[];
}

/** `1,2,8`: whole numbers from 1. */
export function wholes(text: string): readonly number[] {
  const values = text.split(',').map(Number);
  if (values.some((value) => !Number.isSafeInteger(value) || value < 1)) {
    throw new InvalidArgumentError('It is not a list of whole numbers from 1 on, such as 1 or 1,2,4.');
  }
  return values;
}

export function whole(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isSafeInteger(value) || value < 1)
    throw new InvalidArgumentError('It is not a whole number from 1 on.');
  return value;
}

function threadCounts(text: string): readonly number[] {
  const values = wholes(text);
  if (values.some((value) => value > 256))
    throw new InvalidArgumentError('At most 256 threads are possible.');
  return values;
}

const formats: readonly FloatFormat[] = ['f32', 'bf16', 'f16'];

function dtypeList(text: string): readonly FloatFormat[] {
  const values = text.split(',');
  if (values.every((value): value is FloatFormat => formats.includes(value as FloatFormat))) return values;
  throw new InvalidArgumentError(`It is not a list of some of ${formats.join(', ')}.`);
}

function names(text: string): readonly string[] {
  const values = text.split(',');
  if (values.includes('')) throw new InvalidArgumentError('It is a list with an empty name.');
  return values;
}

/** The options of every bench, with `runs` timed runs by default. */
export const common = (command: Command, runs: number) =>
  command
    .option(
      '--dtype <list>',
      'f32, bf16, f16, of activations (scan, conv) or weights (default: f32 on a CPU)',
      dtypeList,
    )
    .option('--device <name>', 'cpu, cuda or cuda:<index> (default: SELECTIVE_SCAN_DEVICE, or cpu)')
    .option(
      '--threads <list>',
      'numbers of threads, such as 1,2,4 (default: one for each core)',
      threadCounts,
    )
    .option('--runs <n>', 'timed runs after warm-up', whole, runs)
    .option('--json', 'write JSON, one object a line, instead of a table')
    .option('--output <path>', 'append the JSON lines to a file, or to <bench>.jsonl in a folder')
    .option('--plot <file>', 'draw the results as SVG')
    .option('--compare <file>', "print ratios to an earlier run's file, or to peers' figures");

const presetNames = Object.keys({ ...presets, ...mixturePresets }).join(', ');
const modelOption = (help: string, preset: string) =>
  new Option('--model <list>', help).argParser(names).default([preset], preset);

/** The options of benches of models. */
export const addModel = (command: Command, preset = '130m') =>
  command
    .addOption(modelOption(`${presetNames} (random weights), folders or hub ids`, preset))
    .addOption(
      new Option('--state-dtype <name>', 'of what is remembered between tokens (default: f32)').choices(
        formats,
      ),
    );

/** Of one that trains them: sizes alone matter, and no state outlives a step. */
export const addPreset = (command: Command) =>
  command.addOption(modelOption(`of random weights: ${presetNames}`, '130m'));
