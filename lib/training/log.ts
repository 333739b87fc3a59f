import { appendFile } from 'node:fs/promises';

/** Lines of JSON at the end of a file, in the order in which they were given. */
export class Log {
  readonly #path: string;
  #last: Promise<void> = Promise.resolve();

  constructor(path: string) {
    this.#path = path;
  }

  write(record: Readonly<Record<string, unknown>>): void {
    const line = `${JSON.stringify({ time: new Date().toISOString(), ...record })}\n`;
    this.#last = this.#last.then(() => appendFile(this.#path, line));
    this.#last.catch(() => {}); // `close` tells of it
  }

  /** Waits for what was written. @throws what went wrong with it. */
  async close(): Promise<void> {
    await this.#last;
  }
}
