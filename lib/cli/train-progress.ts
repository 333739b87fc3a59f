import { SingleBar } from 'cli-progress';
import type { StepRecord } from '../training/log';
import { count, note, size } from './terminal';

/** Seconds as a person says them: `2 h 5 min`, `3 min 20 s`, `7 s`. */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return '?';
  const whole = Math.max(0, Math.round(seconds));
  const [h, min, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  if (h > 0) return `${count(h)} h ${min} min`;
  return min > 0 ? `${min} min ${s} s` : `${s} s`;
}

/** 35,123.4 as `35.1k`. */
export function rate(perSecond: number): string {
  if (perSecond < 1000) return perSecond.toFixed(0);
  return perSecond < 1e6 ? `${(perSecond / 1e3).toFixed(1)}k` : `${(perSecond / 1e6).toFixed(2)}M`;
}

/** A bar on stderr with what a training is doing: only where stderr is a terminal, and gone when it is done. */
export class TrainingProgress {
  readonly #total: number;
  /** The first step that was told of, from which the time left is reckoned: a training that goes on begins late. */
  #first: { readonly step: number; readonly at: number } | undefined;
  #bar: SingleBar | undefined;
  #last: StepRecord | undefined;

  /** Steps in all. */
  constructor(total: number) {
    this.#total = total;
  }

  begin(): void {
    this.#show();
  }

  step(record: StepRecord): void {
    this.#last = record;
    this.#first ??= { step: record.step, at: performance.now() };
    this.#show();
  }

  /** A line above the bar; it is written also where there is no bar. */
  say(line: string): void {
    this.stop();
    note(line);
    this.#show();
  }

  #show(): void {
    if (!process.stderr.isTTY) return;
    const step = this.#last?.step ?? 0;
    const shown = { of: count(this.#total), step: count(step), said: this.#said(step) };
    if (!this.#bar) {
      this.#bar = new SingleBar({
        format: 'step {step} of {of} [{bar}] {percentage}%{said}',
        barCompleteChar: '=',
        barIncompleteChar: ' ',
        barsize: 20,
        stream: process.stderr,
        clearOnComplete: true,
        hideCursor: true,
        linewrap: false,
      });
      this.#bar.start(this.#total, step, shown);
    } else this.#bar.update(step, shown);
  }

  #said(step: number): string {
    if (!this.#last || !this.#first) return '';
    const { loss, tokensPerSecond, memory } = this.#last;
    const seconds = (performance.now() - this.#first.at) / 1000;
    const left = (seconds / (step - this.#first.step)) * (this.#total - step); // of the first step alone: unknown
    return `, loss ${loss.toFixed(4)}, ${rate(tokensPerSecond)} tokens/s, ${size(memory)}, ${duration(left)} left`;
  }

  /** Takes the bar off the screen; also after a failure. */
  stop(): void {
    this.#bar?.stop();
    this.#bar = undefined;
  }
}
