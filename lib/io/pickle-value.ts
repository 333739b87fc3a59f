import { kind } from './json';

/** What a pickle may hold: plain values, containers, and what the `World` that reads it makes. */
export type Value = null | boolean | number | string | Tuple | List | Dict | Global | Made;

export class Tuple {
  constructor(readonly items: readonly Value[]) {}
}

export class List {
  readonly items: Value[] = [];
}

/** A dict, ordered or not; keys are strings or numbers. */
export class Dict {
  #entries: Map<string | number, Value> | undefined; // a million empty ones must not take a million maps

  constructor(readonly ordered: boolean) {}

  /** False when the key is taken. */
  add(key: string | number, value: Value): boolean {
    this.#entries ??= new Map();
    if (this.#entries.has(key)) return false;
    this.#entries.set(key, value);
    return true;
  }

  get(key: string | number): Value | undefined {
    return this.#entries?.get(key);
  }

  get size(): number {
    return this.#entries?.size ?? 0;
  }

  entries(): Iterable<readonly [string | number, Value]> {
    return this.#entries ?? [];
  }
}

/** What stands for a class or function of Python's; `call` is a function of ours, where calling makes sense. */
export class Global {
  constructor(
    readonly name: string,
    readonly call?: (args: readonly Value[], fail: Fail) => Value,
  ) {}
}

/** Base of the objects that only the `World` knows. */
export abstract class Made {
  /** For messages: `a tensor`. */
  abstract readonly what: string;
}

/** Refuses the pickle, with the place in the file. */
export type Fail = (what: string) => never;

/** What a value is, for a message. */
export function describe(value: Value | undefined): string {
  if (value instanceof Global) return value.name;
  if (value instanceof Made) return value.what;
  if (value instanceof Tuple) return `a tuple of ${value.items.length}`;
  if (value instanceof List) return `a list of ${value.items.length}`;
  if (value instanceof Dict) return `${value.ordered ? 'an ordered dict' : 'a dict'} of ${value.size}`;
  return value === null ? 'None' : kind(value);
}
