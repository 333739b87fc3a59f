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
