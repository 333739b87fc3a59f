import { FormatError } from '../errors';
import { isObject, kind, openForReading, parseJsonObject, type JsonObject } from '../io/json';
import { dtypes, type DType } from '../tensor';
import { benches, isGpu, type Bench, type Line } from './result';

/** One time of a file to compare with. */
export interface Measured {
  readonly bench: Bench;
  readonly dtype: DType;
  readonly model: string | undefined;
  readonly shape: Readonly<Record<string, number>>;
  readonly ms: number;
  readonly device: string;
  readonly threads: number | undefined;
  /** Library and version, or the commit. */
  readonly source: string;
}

const maxBytes = 16 * 2 ** 20;
const maxText = 200;
const maxSize = 2 ** 48;
const sizes = ['batch', 'dim', 'length', 'state', 'width', 'steps', 'newTokens'] as const;
/** The sizes that make two measurements the same one: how many steps were timed does not. */
const identity = ['batch', 'dim', 'length', 'state', 'width'] as const;
/** What results were called before lines were flat. */
const formerly: Readonly<Record<string, Bench>> = { scan: 'scan_fwd', decode: 'decode_step' };

/**
 * Reads a results file (`--output`: one object a line, in today's or the first version's format) or
 * a file of peers' figures (one object; bench/README.md describes both).
 * @throws FormatError that names the file, the place in it and the field.
 */
export async function readMeasured(path: string): Promise<Measured[]> {
  const file = await openForReading(path);
  try {
    const { size } = await file.stat();
    if (size > maxBytes)
      throw new FormatError(`${path}: file is ${size} bytes, expected at most ${maxBytes}`);
    return parseMeasured(await file.readFile(), path);
  } finally {
    await file.close();
  }
}

export function parseMeasured(bytes: Uint8Array, path: string): Measured[] {
  const lines = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1').split('\n');
  const isBlank = (line: string) => /^\s*$/.test(line);
  if (lines.every(isBlank)) throw new FormatError(`${path}: is empty, expected results`);
  // A peers' file opens with a brace alone, or holds everything in one line.
  const first = lines.find((line) => !isBlank(line))!;
  if (/^\s*\{\s*$/.test(first) || lines.filter((line) => !isBlank(line)).length === 1) {
    const whole = parseJsonObject(bytes, path);
    if (whole['bench'] === undefined) return peers(whole, path);
  }
  return lines.flatMap((line, i) => {
    if (isBlank(line)) return [];
    const where = `${path}: line ${i + 1}`;
    const json = parseJsonObject(Buffer.from(line, 'latin1'), where);
    const source = typeof json['commit'] === 'string' ? textOf(json, 'commit', where) : 'an earlier run';
    // A version's own lines may hold more than is compared: other libraries' and other benches' too.
    return isKnown(json['bench']) ? [measured(json, textOf(json, 'device', where), source, where)] : [];
  });
}

const isKnown = (bench: unknown) =>
  typeof bench !== 'string' || Object.hasOwn(formerly, bench) || benches.includes(bench as Bench);

function peers(json: JsonObject, path: string): Measured[] {
  const { format, sources, results } = json;
  if (format !== 1) throw new FormatError(`${path}: format is ${kind(format)}, expected 1`);
  const device = textOf(json, 'device', path);
  if (!isObject(sources)) throw new FormatError(`${path}: sources is ${kind(sources)}, expected an object`);
  if (!Array.isArray(results)) {
    throw new FormatError(`${path}: results is ${kind(results)}, expected an array`);
  }
  return results.map((result: unknown, i) => {
    const where = `${path}: results[${i}]`;
    if (!isObject(result)) throw new FormatError(`${where} is ${kind(result)}, expected an object`);
    const name = textOf(result, 'source', where);
    const from: unknown = Object.hasOwn(sources, name) ? sources[name] : undefined;
    if (!isObject(from)) {
      throw new FormatError(`${where}: source is ${kind(name)}, expected a name that sources describes`);
    }
    const of = `${path}: sources.${name}`;
    return measured(
      result,
      device,
      `${textOf(from, 'library', of)} ${textOf(from, 'version', of)}, ${textOf(from, 'how', of)}`,
      where,
    );
  });
}

function measured(json: JsonObject, device: string, source: string, where: string): Measured {
  const wrong = (name: string, wanted: string) =>
    new FormatError(`${where}: ${name} is ${kind(json[name])}, expected ${wanted}`);
  const named = json['bench'];
  const bench = typeof named === 'string' && Object.hasOwn(formerly, named) ? formerly[named]! : named;
  if (!benches.includes(bench as Bench)) throw wrong('bench', `one of ${benches.join(', ')}`);
  const { dtype, model, threads } = json;
  if (!dtypes.includes(dtype as DType)) throw wrong('dtype', `one of ${dtypes.join(', ')}`);
  if (threads !== undefined && !isWhole(threads)) throw wrong('threads', 'a whole number from 1 on');
  const former = isObject(json['ms']);
  const ms = former ? (json['ms'] as JsonObject)['median'] : json['ms'];
  if (typeof ms !== 'number' || !Number.isFinite(ms) || ms <= 0) throw wrong('ms', 'a number above 0');
  const from = former ? json['shape'] : json;
  if (!isObject(from)) throw wrong('shape', 'an object');
  const shape: Record<string, number> = {};
  for (const name of sizes) {
    const value = from[name];
    if (value === undefined) continue;
    if (!isWhole(value)) {
      throw new FormatError(`${where}: ${name} is ${kind(value)}, expected a whole number from 1 on`);
    }
    shape[name] = value;
  }
  return {
    bench: bench as Bench,
    dtype: dtype as DType,
    model: model === undefined ? undefined : textOf(json, 'model', where),
    shape,
    ms,
    device,
    threads,
    source,
  };
}

const isWhole = (value: unknown): value is number =>
  Number.isSafeInteger(value) && (value as number) >= 1 && (value as number) <= maxSize;

function textOf(json: JsonObject, name: string, where: string): string {
  const value = json[name];
  if (typeof value === 'string' && value.length > 0 && value.length <= maxText) return value;
  throw new FormatError(`${where}: ${name} is ${kind(value)}, expected a text of 1 to ${maxText} characters`);
}

/** The latest of `others` that measures what `line` does; on a CPU, with as many threads where both say. */
export function counterpart(line: Line, others: readonly Measured[]): Measured | undefined {
  const threads = isGpu(line.level) ? undefined : line.threads;
  return others.findLast(
    (other) =>
      other.bench === line.bench &&
      other.dtype === line.dtype &&
      other.model === line.model &&
      (threads === undefined || other.threads === undefined || other.threads === threads) &&
      identity.every((name) => other.shape[name] === line.shape[name]),
  );
}

/** `line` with the other's time, and how many times as fast this one is. */
export function compared(line: Line, other: Measured | undefined): Line {
  if (!other) return line;
  const figures = { ...line.figures, theirMs: other.ms, timesAsFast: other.ms / line.ms.median };
  return { ...line, figures };
}

/** For each bench and dtype that was compared: the geometric mean and the least ratio. */
export function ratioSummary(lines: readonly Line[]): string[] {
  const groups = new Map<string, number[]>();
  for (const { bench, dtype, figures } of lines) {
    const ratio = figures['timesAsFast'];
    const key = `${bench} ${dtype}`;
    if (ratio !== undefined) groups.set(key, [...(groups.get(key) ?? []), ratio]);
  }
  return [...groups].map(([key, ratios]) => {
    const mean = Math.exp(ratios.reduce((sum, ratio) => sum + Math.log(ratio), 0) / ratios.length);
    return `${key}: geometric mean ${mean.toFixed(2)} x, least ${Math.min(...ratios).toFixed(2)} x, of ${ratios.length}`;
  });
}
