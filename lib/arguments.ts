/** What an argument is, for messages. */
export function kindOf(value: unknown): string {
  if (value === null || typeof value !== 'object') return value === null ? 'null' : typeof value;
  return value.constructor?.name ?? 'an object';
}

/** Throws unless `value` is a record: an object with names in it. */
export function checkRecord(call: string, value: unknown, name = 'the argument'): void {
  if (value === null || typeof value !== 'object' || Array.isArray(value)) {
    throw new TypeError(`${call}: ${name} is ${kindOf(value)}, expected a record`);
  }
}

/** Throws unless `options` is a record with no other names than `known`: a misspelt one would go unnoticed. */
export function checkNames(call: string, options: unknown, known: readonly string[], name?: string): void {
  checkRecord(call, options, name);
  const unknown = Object.keys(options as object).find((option) => !known.includes(option));
  if (unknown !== undefined) throw new TypeError(`${call}: there is no option ${unknown}`);
}

/** Throws unless `value` is true, false or left out. */
export function checkFlag(call: string, name: string, value: unknown): void {
  if (value !== undefined && typeof value !== 'boolean')
    throw new TypeError(`${call}: ${name} is ${kindOf(value)}, expected true or false`);
}

/** Throws unless all elements are numbers; a hole is none. */
export function checkNumbers(call: string, name: string, values: ArrayLike<unknown>): void {
  for (let i = 0; i < values.length; i++)
    if (typeof values[i] !== 'number')
      throw new TypeError(`${call}: ${name}[${i}] is ${kindOf(values[i])}, expected a number`);
}

/** Throws unless `values` is a list of what `is` says yes to, each of them a `what`. */
export function checkList(
  call: string,
  name: string,
  values: unknown,
  is: (value: unknown) => boolean,
  what: string,
): void {
  if (!Array.isArray(values))
    throw new TypeError(`${call}: ${name} is ${kindOf(values)}, expected a list, each a ${what}`);
  for (let i = 0; i < values.length; i++)
    if (!is(values[i]))
      throw new TypeError(`${call}: ${name}[${i}] is ${kindOf(values[i])}, expected a ${what}`);
}

export function checkFunction(call: string, value: unknown, name = 'fn'): void {
  if (typeof value !== 'function') {
    throw new TypeError(`${call}: ${name} is ${kindOf(value)}, expected a function`);
  }
}

/** As deep as a value may be: far less than what fills the stack. */
const deepest = 500;

/**
 * Throws unless JSON gives `value` back as it is: text, finite numbers, true, false, null, and lists and plain records
 * of them; a field may be undefined, which leaves it out.
 */
export function checkJson(call: string, value: unknown, name: string, above: readonly object[] = []): void {
  const refuse = (got: string, why = '') => {
    throw new TypeError(`${call}: ${name} is ${got}, expected what JSON can hold${why}`);
  };
  if (value === null || typeof value === 'string' || typeof value === 'boolean') return;
  if (typeof value === 'number') return Number.isFinite(value) ? undefined : refuse(String(value));
  if (typeof value !== 'object') return refuse(kindOf(value));
  if (above.includes(value)) return refuse('a part of itself');
  if (above.length === deepest) return refuse(`${deepest} levels deep`);
  const within = [...above, value];
  if (Array.isArray(value)) {
    for (let i = 0; i < value.length; i++) checkJson(call, value[i], `${name}[${i}]`, within);
    return;
  }
  const prototype = Object.getPrototypeOf(value) as object | null;
  if (prototype !== null && Object.getPrototypeOf(prototype) !== null) return refuse(kindOf(value));
  for (const [key, item] of Object.entries(value))
    if (item !== undefined) checkJson(call, item, `${name}.${key}`, within);
}
