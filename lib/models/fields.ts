import { FormatError } from '../errors';
import { isObject, kind, type JsonObject } from '../io/json';

const isText = (value: unknown) => typeof value === 'string';
const isFlag = (value: unknown) => typeof value === 'boolean';
const isId = (value: unknown): value is number => Number.isInteger(value) && (value as number) >= 0;

/**
 * Fields that every transformers configuration may carry and that change nothing of what is computed here;
 * they are saved again, so that they must be what they are there.
 */
const harmless: Readonly<Record<string, readonly [fits: (value: unknown) => boolean, wanted: string]>> = {
  _name_or_path: [isText, 'text'],
  architectures: [(value) => Array.isArray(value) && value.every(isText), 'a list of names'],
  auto_map: [isObject, 'an object'],
  bos_token_id: [isId, 'a token id'],
  dtype: [isText, 'a name'],
  return_dict: [isFlag, 'true or false'],
  torch_dtype: [isText, 'a name'],
  transformers_version: [isText, 'text'],
  use_cache: [isFlag, 'true or false'],
};

/** Thousands of times what any model starts with. */
const mostSpread = 1000;

/** A hundred times what any model has; each is an object with tensors of its own, so that billions never end. */
const mostLayers = 10_000;
const mostExperts = 100_000;

/** Reads config.json field by field, so that what was not read can be refused by name. */
export class Fields {
  readonly #json: JsonObject;
  readonly #left: Set<string>;
  readonly #file: string;

  constructor(json: JsonObject, file = 'config.json') {
    this.#file = file;
    this.#json = json;
    this.#left = new Set(Object.keys(json));
    for (const [name, [fits, wanted]] of Object.entries(harmless)) {
      const value = this.#take(name);
      if (value !== undefined && !fits(value)) this.refuse(name, wanted);
    }
  }

  #take(name: string): unknown {
    this.#left.delete(name);
    return this.#json[name] ?? undefined;
  }

  /** Throws: field `name` is something else than `wanted`. */
  refuse(name: string, wanted: string): never {
    throw new FormatError(`${this.#file}: ${name} is ${kind(this.#json[name])}, expected ${wanted}`);
  }

  /** A whole number from `least` to 2³¹ - 1. */
  whole(name: string, fallback?: number, least = 1): number {
    const value = this.#take(name) ?? fallback;
    if (typeof value !== 'number' || !Number.isInteger(value) || value < least || value > 2 ** 31 - 1) {
      return this.refuse(name, `a whole number, ${least} or more`);
    }
    return value;
  }

  /** How many layers there are: as many as are made in seconds. */
  layers(name: string, fallback?: number): number {
    const value = this.whole(name, fallback);
    return value <= mostLayers ? value : this.refuse(name, `at most ${mostLayers} layers`);
  }

  /** How many experts each of `layers` has: as many as are made in seconds. */
  experts(name: string, fallback: number, layers: number): number {
    const value = this.whole(name, fallback);
    return value * layers <= mostExperts
      ? value
      : this.refuse(name, `at most ${mostExperts} in all of the ${layers} layers`);
  }

  /** A number that f32 holds, larger than 0 unless `zero` is allowed. */
  positive(name: string, fallback: number, zero = false): number {
    const value = this.#take(name) ?? fallback;
    const inF32 = typeof value === 'number' ? Math.fround(value) : NaN;
    if (!(inF32 > 0 || (zero && value === 0)) || inF32 === Infinity)
      return this.refuse(name, 'a positive number that f32 can hold');
    return value as number;
  }

  /** What keeps a norm from dividing by zero: above 0, at most 1. */
  epsilon(name: string, fallback: number): number {
    const value = this.positive(name, fallback);
    return value <= 1 ? value : this.refuse(name, 'at most 1');
  }

  /** A spread of random numbers: one that leaves what is computed of them within f32. */
  spread(name: string, fallback: number): number {
    const value = this.positive(name, fallback);
    return value <= mostSpread ? value : this.refuse(name, `at most ${mostSpread}`);
  }

  /** Two of them, of which the first is not the larger one. */
  bounds(min: string, least: number, max: string, most: number): readonly [number, number] {
    const low = this.positive(min, least);
    const high = this.positive(max, most);
    return low <= high ? [low, high] : this.refuse(min, `at most ${max}, ${high}`);
  }

  flag(name: string, fallback: boolean): boolean {
    const value = this.#take(name) ?? fallback;
    return typeof value === 'boolean' ? value : this.refuse(name, 'true or false');
  }

  /** One of `allowed`; the first is the default. */
  choice<T extends string | number>(name: string, allowed: readonly T[]): T {
    const value = (this.#take(name) ?? allowed[0]) as T;
    return allowed.includes(value)
      ? value
      : this.refuse(name, allowed.map((item) => JSON.stringify(item)).join(' or '));
  }

  /** A list of strings that `fits` takes. */
  strings(name: string, fits: (item: string) => boolean, wanted: string): readonly string[] {
    const value = this.#take(name);
    return Array.isArray(value) && value.every((item) => typeof item === 'string' && fits(item))
      ? (value as string[])
      : this.refuse(name, wanted);
  }

  /** A token id below `vocabSize`, or none. */
  id(name: string, vocabSize: number): number | undefined {
    const value = this.ids(name, vocabSize);
    return typeof value === 'object' ? this.refuse(name, 'a token id') : value;
  }

  /** A token id below `vocabSize`, several, or none. */
  ids(name: string, vocabSize: number): number | readonly number[] | undefined {
    const value = this.#take(name);
    if (value === undefined) return undefined;
    const list: readonly unknown[] = Array.isArray(value) ? value : [value];
    if (!list.every(isId)) return this.refuse(name, 'a token id or a list of them');
    const beyond = list.find((id) => id >= vocabSize);
    if (beyond !== undefined)
      throw new FormatError(
        `${this.#file}: ${name} holds ${beyond}, expected token ids below the vocabulary's size, ${vocabSize}`,
      );
    return value as number | readonly number[];
  }

  /** A field that says again what another one said: it must agree. */
  same(name: string, value: unknown): void {
    const again = this.#take(name);
    if (again !== undefined && JSON.stringify(again) !== JSON.stringify(value))
      this.refuse(name, JSON.stringify(value));
  }

  /** An object that changes nothing of what is computed. */
  object(name: string): void {
    const value = this.#take(name) ?? {};
    if (!isObject(value)) this.refuse(name, 'an object');
  }

  /** Fields that choose between implementations, or matter for training only. */
  ignore(...names: readonly string[]): void {
    for (const name of names) this.#left.delete(name);
  }

  /** Throws when a field was not read. */
  end(): void {
    const [name] = this.#left;
    if (name !== undefined) {
      throw new FormatError(
        `${this.#file}: there is no field ${name} in this kind of model; if it does not matter, remove it`,
      );
    }
  }
}
