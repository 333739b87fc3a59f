import { InvalidArgumentError, type Command } from 'commander';

/** A number as it is typed; whether it is in range is for the library to say. */
export function number(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || Number.isNaN(value)) throw new InvalidArgumentError('It is not a number.');
  return value;
}

/** A whole number of any size. */
export function bigint(text: string): bigint {
  if (!/^-?\d+$/.test(text)) throw new InvalidArgumentError('It is not a whole number.');
  return BigInt(text);
}

/** For options that may be given more than once. */
export const several =
  <T>(parse: (text: string) => T) =>
  (text: string, before: readonly T[] = []): readonly T[] => [...before, parse(text)];

export interface HubOptions {
  readonly revision?: string;
  readonly cacheDir?: string;
  readonly offline?: boolean;
}

/** The options of every command that takes a model. */
export function addHubOptions(command: Command): Command {
  return command
    .optionsGroup('Where the model comes from:')
    .option('--revision <name>', 'branch, tag or commit on the hub (default: main)')
    .option('--cache-dir <folder>', 'where downloads are kept (default: HF_HOME, or ~/.cache/huggingface)')
    .option('--offline', 'use what was downloaded before, and no network');
}

/** What a model can be, for the help of every command that takes one. */
export const modelArgument =
  'a folder with config.json and model.safetensors or pytorch_model.bin, or a Hugging Face id (owner/name)';
