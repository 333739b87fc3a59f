import { spawn, type ChildProcessWithoutNullStreams } from 'node:child_process';
import { join } from 'node:path';
import { FIXTURES } from '../io/folder';

const root = join(__dirname, '..', '..');

/** A model with a tokenizer, and one without. */
export const TEXT_MODEL = join(FIXTURES, 'mamba-text');
export const IDS_MODEL = join(FIXTURES, 'mamba-tiny');

export interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  /** What stdin holds; default nothing. */
  readonly input?: string | Uint8Array;
  readonly env?: NodeJS.ProcessEnv;
  /** The folder that holds lib/; default this project. */
  readonly root?: string;
}

/** Starts `selective-scan` with these arguments, from its sources. */
export function start(args: readonly string[], options: RunOptions = {}): ChildProcessWithoutNullStreams {
  const { SELECTIVE_SCAN_DEVICE: _device, SELECTIVE_SCAN_DEBUG: _debug, ...env } = process.env;
  const main = join(options.root ?? root, 'lib', 'cli', 'main.ts');
  const child = spawn(process.execPath, ['-r', join(__dirname, 'typescript.cjs'), main, ...args], {
    env: { ...env, ...options.env },
  });
  return child;
}

/** Waits for the end of what `start` started. */
export function ended(child: ChildProcessWithoutNullStreams): Promise<Ended> {
  const text = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8').on('data', (chunk: string) => (text[name] += chunk));
  }
  return new Promise((resolve, reject) => {
    child.on('error', reject).on('close', (code) => resolve({ code, ...text }));
  });
}

/** Runs `selective-scan` with these arguments to its end. */
export async function run(args: readonly string[], options: RunOptions = {}): Promise<Ended> {
  const child = start(args, options);
  // A command that ends without reading its input closes the pipe first.
  child.stdin.on('error', () => undefined).end(options.input ?? '');
  return ended(child);
}
