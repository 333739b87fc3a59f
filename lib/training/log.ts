import { appendFile, open, readFile, truncate } from 'node:fs/promises';
import { TrainingError } from '../errors';
import { isObject } from '../io/json';
import type { RouterReport } from './routers';

/** What a training notes of a step; times are of the wall clock. */
export interface StepRecord {
  readonly step: number;
  /** Labels that were learnt from so far. */
  readonly tokens: number;
  /** Mean of the steps since the record before, in nats a label. */
  readonly loss: number;
  readonly learningRate: number;
  readonly gradientNorm: number;
  readonly tokensPerSecond: number;
  /** Bytes of device memory. */
  readonly memory: number;
  /** Of f16 alone. */
  readonly lossScale?: number;
  readonly skipped?: number;
  /** Of the last step, where there are mixtures of experts. */
  readonly router?: RouterReport;
}

/** What a training notes of an evaluation. */
export interface EvaluationRecord {
  readonly step: number;
  /** Mean over the held-out labels, in nats a label. */
  readonly validation: number;
  /** Whether none before it was lower. */
  readonly best: boolean;
}

/** Lines of JSON at the end of a file, in the order in which they were given. */
export class Log {
  readonly #path: string;
  /** Of the file, in bytes: whole lines. */
  #size = 0;
  #last: Promise<void>;
  #error: Error | undefined;

  /**
   * Goes on with the log of a training of which `steps` steps count, and evaluations up to step `evaluated`: what it
   * has of later ones, which will be done again, is cut off, and so is what a process that died left of a line.
   */
  constructor(path: string, steps: number, evaluated = steps) {
    this.#path = path;
    this.#last = this.#then(async () => {
      this.#size = await cutBack(path, steps, evaluated);
    });
  }

  /** @throws TrainingError when an earlier line could not be written. */
  write(record: object): void {
    if (this.#error) throw this.#error;
    const line = Buffer.from(`${JSON.stringify({ time: new Date().toISOString(), ...record })}\n`);
    const before = this.#last;
    this.#last = this.#then(() => before.then(() => (this.#error ? undefined : this.#append(line))));
  }

  /** A line as a whole, or nothing of it. */
  async #append(line: Buffer): Promise<void> {
    try {
      await appendFile(this.#path, line);
      this.#size += line.length;
    } catch (error) {
      await truncate(this.#path, this.#size).catch(() => {}); // the first error says more
      throw error;
    }
  }

  #then(work: () => Promise<void>): Promise<void> {
    return work().catch((error: NodeJS.ErrnoException) => {
      const reason = error.code === 'ENOSPC' ? 'the disk is full' : error.message;
      this.#error ??= new TrainingError(`${this.#path}: cannot be written, ${reason}`, { cause: error });
    });
  }

  /** Waits for what was written. @throws TrainingError when it could not be. */
  async close(): Promise<void> {
    await this.#last;
    if (this.#error) throw this.#error;
  }
}

/** Cuts a log off where it tells of what does not count, and behind its last whole line. Its new size. */
async function cutBack(path: string, steps: number, evaluated: number): Promise<number> {
  const file = await open(path, 'a+');
  try {
    if (!(await file.stat()).isFile()) return 0;
    const bytes = await file.readFile();
    let end = 0;
    for (let next; (next = bytes.indexOf(0x0a, end) + 1) > 0; end = next) {
      const record = parsed(bytes.toString('utf8', end, next));
      const at = record?.['step'] ?? record?.['at'];
      if (typeof at === 'number' && at > (record && 'validation' in record ? evaluated : steps)) break;
    }
    if (end < bytes.length) await file.truncate(end);
    return end;
  } finally {
    await file.close();
  }
}

/** What a log holds, in order: of steps that were done again after a restart, the last time alone. */
export async function readLog(
  path: string,
): Promise<{ readonly steps: readonly StepRecord[]; readonly evaluations: readonly EvaluationRecord[] }> {
  const steps: StepRecord[] = [];
  const evaluations: EvaluationRecord[] = [];
  for (const line of (await readFile(path, 'utf8')).split('\n')) {
    const record = parsed(line);
    if (!record || typeof record['step'] !== 'number') continue;
    const { step } = record;
    const put = <R extends { readonly step: number }>(list: R[]) => {
      while (list.length > 0 && list.at(-1)!.step >= step) list.pop();
      list.push(record as unknown as R);
    };
    if (typeof record['loss'] === 'number') put(steps);
    else if (typeof record['validation'] === 'number') put(evaluations);
  }
  return { steps, evaluations };
}

function parsed(line: string): Readonly<Record<string, unknown>> | undefined {
  try {
    const value: unknown = JSON.parse(line);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined; // what is left of a line
  }
}
