import { SingleBar } from 'cli-progress';
import type { PretrainedOptions } from '../generation/causal-lm';
import { oneLine, size } from './terminal';

/** A bar on stderr for what takes long: only where stderr is a terminal, and gone when it is done. */
export class Progress {
  #bar: SingleBar | undefined;
  #what = '';

  /** `done` of `total` bytes of `what`; a new `what` begins a new bar. */
  show(what: string, done: number, total: number): void {
    if (!process.stderr.isTTY) return;
    if (!this.#bar || what !== this.#what) this.#begin(what, total);
    this.#bar!.update(done, { done: size(done), of: size(total) });
  }

  #begin(what: string, total: number): void {
    this.stop();
    this.#what = what;
    this.#bar = new SingleBar({
      format: `${oneLine(what)} [{bar}] {percentage}% {done} of {of}`,
      barCompleteChar: '=',
      barIncompleteChar: ' ',
      stream: process.stderr,
      clearOnComplete: true,
      hideCursor: true,
    });
    this.#bar.start(total, 0, { done: size(0), of: size(total) });
  }

  /** Takes the bar off the screen; also after a failure. */
  stop(): void {
    this.#bar?.stop();
    this.#bar = undefined;
  }

  /** What `fromPretrained` calls while it downloads and loads. */
  get callbacks(): Required<Pick<PretrainedOptions, 'onDownload' | 'onProgress'>> {
    return {
      onDownload: ({ file, received, total }) => this.show(`Downloading ${file}`, received, total),
      onProgress: ({ loaded, total }) => this.show('Loading', loaded, total),
    };
  }
}
