import { FormatError } from '../errors';
import { kind, type JsonObject } from '../io/json';

/** Fields that every transformers configuration may carry and that change nothing of what is computed here. */
const harmless = [
  '_name_or_path',
  'architectures',
  'auto_map',
  'bos_token_id',
  'dtype',
  'return_dict',
  'torch_dtype',
  'transformers_version',
  'use_cache',
];

/** Reads config.json field by field, so that what was not read can be refused by name. */
export class Fields {
  readonly #json: JsonObject;
  readonly #left: Set<string>;
  readonly #file: string;

  constructor(json: JsonObject, file = 'config.json') {
    this.#file = file;
    this.#json = json;
    this.#left = new Set(Object.keys(json));
    for (const name of harmless) this.#left.delete(name);
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

  /** A finite number, larger than 0 unless `zero` is allowed. */
  positive(name: string, fallback: number, zero = false): number {
    const value = this.#take(name) ?? fallback;
    if (typeof value !== 'number' || !Number.isFinite(value) || value < 0 || (value === 0 && !zero)) {
      return this.refuse(name, 'a positive number');
    }
    return value;
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

  /** A token id, or none. */
  id(name: string): number | undefined {
    const value = this.ids(name);
    return typeof value === 'object' ? this.refuse(name, 'a token id') : value;
  }

  /** A token id, several, or none. */
  ids(name: string): number | readonly number[] | undefined {
    const value = this.#take(name);
    const isId = (id: unknown) => typeof id === 'number' && Number.isInteger(id) && id >= 0;
    if (value === undefined) return undefined;
    return isId(value) || (Array.isArray(value) && value.every(isId))
      ? (value as number | number[])
      : this.refuse(name, 'a token id or a list of them');
  }

  /** A field that says again what another one said: it must agree. */
  same(name: string, value: unknown): void {
    const again = this.#take(name);
    if (again !== undefined && JSON.stringify(again) !== JSON.stringify(value))
      this.refuse(name, JSON.stringify(value));
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
