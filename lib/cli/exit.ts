import { CommanderError } from 'commander';
import { FormatError } from '../errors';
import { note } from './terminal';

/** What the process ends with. A reader that goes away (`| head`) is no failure. */
export const exitCodes = {
  fine: 0,
  failed: 1,
  usage: 2,
  hungUp: 129,
  interrupted: 130,
  terminated: 143,
} as const;

/** What the user wrote cannot be meant. */
export class UsageError extends Error {}

/** What is wrong with a file that `flag` names is wrong with what the user wrote. */
export const asUsage = (flag: string) => (error: unknown) => {
  throw error instanceof FormatError ? new UsageError(`${flag}: ${error.message}`, { cause: error }) : error;
};

/** Ctrl-C was pressed, the terminal was closed, or the process was asked to end. */
export class Interrupted extends Error {
  readonly exitCode: number;

  constructor(signal: NodeJS.Signals) {
    super('interrupted');
    const { terminated, hungUp, interrupted } = exitCodes;
    this.exitCode = signal === 'SIGTERM' ? terminated : signal === 'SIGHUP' ? hungUp : interrupted;
  }
}

/** What ends long work in order: Ctrl-C, `kill`, a terminal that is closed. */
export const endings: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP'];

/** Aborts on Ctrl-C, so that work ends in order; a second Ctrl-C ends the process there and then. */
export function interruption(signals: readonly NodeJS.Signals[] = ['SIGINT']): AbortSignal {
  const controller = new AbortController();
  const stop = (signal: NodeJS.Signals) => {
    for (const each of signals) process.off(each, stop);
    controller.abort(new Interrupted(signal));
  };
  for (const signal of signals) process.on(signal, stop);
  return controller.signal;
}

/** What is wrong with a model that a flag names, and not the argument. */
export const aboutFlag = (flag: string) => (error: unknown) => {
  if (!(error instanceof Error) || error instanceof Interrupted) throw error;
  const message = `${flag}: ${inFlags(error.message)}`;
  throw isUsage(error) ? new UsageError(message, { cause: error }) : new Error(message, { cause: error });
};

/** What the library calls what a user gave as a flag or an argument. */
const flags: readonly (readonly [RegExp, string])[] = [
  [/^generate: (prompt|state|stop needs)\b/, '$1'],
  [/^generate: eosTokenId\b/, '--eos'],
  [/^generate: (?=[a-z][a-zA-Z]* (?:is|holds|has|needs)\b)/, '--'],
  [/^evaluate: stride needs (?=context\b)/, '--stride needs --'],
  [/^evaluate: (?=(context|stride)\b)/, '--'],
  [/^evaluate: /, ''],
  [
    /^data: sample: the logits of row \d+ are not finite/,
    "the model's logits are not finite; selective-scan inspect --check names weights that are not",
  ],
  [/^device: name\b/, '--device'],
  [/^device: (?=')/, 'device '],
  [/^device: (?=SELECTIVE_SCAN_)/, ''],
  [/^restore: state is of other data; /, '--resume: the data have changed since; '],
  [/^restore: (?=state\b)/, '--resume: '],
  [/^restore: /, '--load-state: '],
  [/^fromPretrained: (?=(dtype|stateDtype)\b)/, '--'],
  [/^resolveModel: (?=revision\b)/, '--'],
  [/^resolveModel: /, ''],
  [/^setThreads: count\b/, '--threads'],
  [/^(Trainer\.\w+|completeOptions): average\b/, '--ema'],
  [/^(Trainer\.\w+|completeOptions): (?=[a-z][a-zA-Z0-9]* (is|has)\b)/, '--'],
  [/^Windows: corpus\b/, 'data'],
  [/^Windows: (?=length\b)/, '--'],
  [/^split: share\b/, '--validation-share'],
  [/^train: (?=(keep|saveEvery|evaluateEvery|logEvery) is\b)/, '--'],
  [/^train: /, ''],
  [/^verify: (?=seed\b)/, '--'],
];

/** The library's message in the words of the command line: `generate: topP is 2, ...` is about `--top-p`. */
export function inFlags(message: string): string {
  const found = flags.find(([pattern]) => pattern.test(message));
  if (!found) return message;
  const told = message.replace(...found);
  if (!told.startsWith('--')) return told;
  // What it is held against is a flag as well: `expected at most maxNewTokens, which is 3`.
  return told
    .replace(/(?<![\w-])([a-z]+(?:[A-Z][a-z]+)+|context)(?=, which is\b)/, '--$&')
    .replace(/--[a-z]\w+/g, (flag) => flag.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`));
}

/** Says what went wrong, without a stack trace unless SELECTIVE_SCAN_DEBUG=1 asks for one; gives the exit code. */
export function report(error: unknown): number {
  // Commander has written its message, or the help that was asked for.
  if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.fine : exitCodes.usage;
  if (error instanceof Interrupted) return error.exitCode;
  if (!(error instanceof Error)) {
    note(`error: ${String(error)}`);
    return exitCodes.failed;
  }
  if ((error as NodeJS.ErrnoException).code === 'EPIPE') return exitCodes.fine;
  note(
    process.env['SELECTIVE_SCAN_DEBUG'] === '1'
      ? (error.stack ?? error.message)
      : `error: ${inFlags(error.message)}`,
  );
  return exitCodeOf(error);
}

/** What an error that was told of ends the process with. */
export const exitCodeOf = (error: Error): number => (isUsage(error) ? exitCodes.usage : exitCodes.failed);

/** The library names its call in front of what is wrong with an argument; other such errors are defects. */
function isUsage(error: Error): boolean {
  if (error instanceof UsageError) return true;
  return (error instanceof RangeError || error instanceof TypeError) && /^[\w.]+: /.test(error.message);
}
