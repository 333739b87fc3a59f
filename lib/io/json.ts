import { existsSync } from 'node:fs';
import { constants, open } from 'node:fs/promises';
import { FormatError } from '../errors';

/** A JSON object as it was parsed: nothing about its fields is known yet. */
export type JsonObject = Readonly<Record<string, unknown>>;

const MiB = 1024 * 1024;

/** Reads a file whose top level is a JSON object. Throws FormatError, naming the file, on anything else. */
export async function readJson(
  path: string,
  options: { readonly maxBytes?: number } = {},
): Promise<JsonObject> {
  const maxBytes = options.maxBytes ?? 16 * MiB;
  const file = await openForReading(path);
  try {
    const { size } = await file.stat();
    if (size > maxBytes)
      throw new FormatError(`${path}: file is ${size} bytes, expected at most ${maxBytes}`);
    return parseJsonObject(await file.readFile(), path);
  } finally {
    await file.close();
  }
}

/** The same, or undefined where there is no such file. */
export async function optionalJson(path: string): Promise<JsonObject | undefined> {
  return existsSync(path) ? readJson(path) : undefined;
}

/** Opens a regular file; what is missing, unreadable or a folder is a FormatError that names it. */
export async function openForReading(path: string) {
  // Not to wait for whoever might write to a pipe: what is no regular file is refused below.
  const file = await open(path, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0)).catch(
    (error: NodeJS.ErrnoException) => {
      const reason =
        error.code === 'ENOENT' ? 'file does not exist' : `file cannot be opened; ${error.message}`;
      throw new FormatError(`${path}: ${reason}`, { cause: error });
    },
  );
  if ((await file.stat()).isFile()) return file;
  await file.close();
  throw new FormatError(`${path}: is not a regular file`);
}

/** `where` names the bytes in messages. */
export function parseJsonObject(bytes: Uint8Array, where: string): JsonObject {
  const text = decodeUtf8(bytes, where);
  let value: unknown;
  try {
    // transformers writes infinities as {"__float__": "Infinity"}; the reviver is slow, so only where one is.
    value = text.includes('"__float__"') ? JSON.parse(text, reviveFloat) : JSON.parse(text);
  } catch (error) {
    const literal = /[:[,]\s*(-?Infinity|NaN)\b/.exec(text)?.[1];
    const hint = literal ? `it holds ${literal}, as Python writes it and JSON forbids it; ` : '';
    throw new FormatError(`${where}: is not valid JSON; ${hint}${(error as Error).message}`, {
      cause: error,
    });
  }
  if (!isObject(value)) throw new FormatError(`${where}: top level is ${kind(value)}, expected an object`);
  const duplicate = duplicateKey(text);
  if (duplicate !== undefined) throw new FormatError(`${where}: ${JSON.stringify(duplicate)} occurs twice`);
  return value;
}

export function isObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** What a JSON value is, for a message. */
export function kind(value: unknown): string {
  if (value === null || typeof value === 'boolean' || typeof value === 'number') return String(value);
  if (typeof value === 'string')
    return JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}...` : value);
  if (value === undefined) return 'absent';
  return Array.isArray(value) ? 'an array' : 'an object';
}

function decodeUtf8(bytes: Uint8Array, where: string): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (error) {
    throw new FormatError(`${where}: is not valid UTF-8`, { cause: error });
  }
}

function reviveFloat(_key: string, value: unknown): unknown {
  if (!isObject(value) || Object.keys(value).length !== 1) return value;
  const float = value['__float__'];
  return float === 'Infinity' || float === '-Infinity' || float === 'NaN' ? Number(float) : value;
}

/** The first key that an object of this valid JSON text holds twice: `JSON.parse` would keep the last one silently. */
function duplicateKey(text: string): string | undefined {
  const keys: Set<string>[] = []; // one for every open brace or bracket
  for (let i = 0; i < text.length; i++) {
    const char = text[i];
    if (char === '{' || char === '[') keys.push(new Set());
    else if (char === '}' || char === ']') keys.pop();
    else if (char === '"') {
      const start = i++;
      while (text[i] !== '"') i += text[i] === '\\' ? 2 : 1;
      if (!isKey(text, i + 1)) continue;
      const key = JSON.parse(text.slice(start, i + 1)) as string;
      const siblings = keys.at(-1)!;
      if (siblings.has(key)) return key;
      siblings.add(key);
    }
  }
  return undefined;
}

/** A string of valid JSON is a key when a colon follows it. */
function isKey(text: string, end: number): boolean {
  while (text[end] === ' ' || text[end] === '\n' || text[end] === '\r' || text[end] === '\t') end++;
  return text[end] === ':';
}
