import { spawn } from 'node:child_process';
import { join } from 'node:path';

export const root = join(__dirname, '..');
export const hook = join(__dirname, 'cli', 'typescript.cjs');

export interface Ended {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs node with TypeScript understood, in the project's root, until it ends or 60 seconds are over. */
export async function child(
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<Ended> {
  const made = spawn(process.execPath, ['-r', hook, ...args], {
    cwd: root,
    env: { ...process.env, ...env },
    timeout: 60_000,
    killSignal: 'SIGKILL',
  });
  const out = { stdout: '', stderr: '' };
  made.stdout.setEncoding('utf8').on('data', (text: string) => (out.stdout += text));
  made.stderr.setEncoding('utf8').on('data', (text: string) => (out.stderr += text));
  return await new Promise((resolve) => {
    made.on('close', (code, signal) => resolve({ code, signal, ...out }));
  });
}

/** Runs a script that can await and prints what it returns as JSON; `lib` is the library's index. */
export async function run<R>(
  script: string,
  options: { env?: Record<string, string>; args?: readonly string[] } = {},
): Promise<R> {
  const code = `(async () => { const lib = require('./lib'); ${script} })()
    .then((value) => console.log(JSON.stringify(value ?? null)))`;
  const ended = await child([...(options.args ?? []), '-e', code], options.env);
  if (ended.code !== 0)
    throw new Error(`the child ended with ${ended.code ?? ended.signal}:\n${ended.stderr}`);
  return JSON.parse(ended.stdout.trim().split('\n').at(-1)!) as R;
}
