/**
 * What an op says of its tensors, as text: `T[t,d]`, `f32[d]?`, `i32[s+1]`, `f32[p,d,n]?!`,
 * `T[t,g,n]|f32[d,n]`.
 *
 * - Before the bracket a dtype, or a capital letter: any float dtype, the same wherever the letter
 *   stands in the call.
 * - Between the brackets the sizes: a number, a name (the same size wherever it stands), or a name
 *   and a constant.
 * - `?` may be left out; `!` is updated in place; `|` separates alternatives.
 * - Of an output, `=z`: dtype and shape of the argument z, or `f32[0]` where that is left out.
 */
import { DisposedError } from './errors';
import type { Device } from './device';
import { Tensor, type DType } from './tensor';

export interface Dim {
  /** Of the name in the op's symbols; -1 for a plain number. */
  readonly symbol: number;
  readonly plus: number;
}
export interface Form {
  /** Of the letter in the op's symbols; -1 for a fixed dtype. */
  readonly letter: number;
  readonly dtype: string;
  readonly dims: readonly Dim[];
}
export interface Spec {
  readonly text: string;
  readonly forms: readonly Form[];
  readonly optional: boolean;
  readonly inPlace: boolean;
  /** The argument whose dtype and shape an output has. */
  readonly like?: string;
}

/** What the letters and names of one op stand for during a call: reused, since calls do not nest. */
export class Symbols {
  readonly names: string[] = [];
  readonly values: (DType | number | undefined)[] = [];
  /** The argument that gave each value. */
  readonly from: string[] = [];

  index(name: string): number {
    const known = this.names.indexOf(name);
    return known >= 0 ? known : this.names.push(name) - 1;
  }
  clear(): void {
    for (let i = 0; i < this.names.length; i++) this.values[i] = undefined;
  }
  bind(symbol: number, value: DType | number, from: string): void {
    if (this.values[symbol] !== undefined) return;
    this.values[symbol] = value;
    this.from[symbol] = from;
  }
  value(name: string): DType | number | undefined {
    const known = this.names.indexOf(name);
    return known >= 0 ? this.values[known] : undefined;
  }
}

const isLetter = (dtype: string) => /^[A-Z]$/.test(dtype);

function parseDim(text: string, symbols: Symbols): Dim {
  const match = /^(?:([a-z]+)([+-]\d+)?|(\d+))$/.exec(text);
  if (!match) throw new SyntaxError(`schema: '${text}' is not a size`);
  return { symbol: match[1] ? symbols.index(match[1]) : -1, plus: Number(match[2] ?? match[3] ?? 0) };
}

function parseForm(text: string, symbols: Symbols): Form {
  const match = /^([A-Z]|f32|bf16|f16|i32)\[([^\]]*)\]$/.exec(text);
  if (!match) throw new SyntaxError(`schema: '${text}' is not a tensor`);
  const dtype = match[1]!;
  const dims = match[2]!.split(',').map((dim) => parseDim(dim, symbols));
  return { letter: isLetter(dtype) ? symbols.index(dtype) : -1, dtype, dims };
}

export function parseSpec(text: string, symbols = new Symbols()): Spec {
  if (text.startsWith('=')) return { text, forms: [], optional: false, inPlace: false, like: text.slice(1) };
  const match = /^([^?!]+)(\??)(!?)$/.exec(text);
  if (!match) throw new SyntaxError(`schema: '${text}' is not a tensor`);
  return {
    text: match[1]!,
    forms: match[1]!.split('|').map((form) => parseForm(form, symbols)),
    optional: match[2] === '?',
    inPlace: match[3] === '!',
  };
}

function fits({ letter, dtype, dims }: Form, tensor: Tensor, symbols: Symbols): boolean {
  const { shape } = tensor;
  if (shape.length !== dims.length) return false;
  if (letter >= 0) {
    const known = symbols.values[letter];
    if (known ? tensor.dtype !== known : tensor.dtype === 'i32') return false;
  } else if (tensor.dtype !== dtype) return false;
  for (let i = 0; i < dims.length; i++) {
    const { symbol, plus } = dims[i]!;
    const size = shape[i]!;
    const known = symbol < 0 ? 0 : (symbols.values[symbol] as number | undefined);
    if (known === undefined ? size < plus : size !== known + plus) return false;
  }
  return true;
}

/** `t is 10 by u`: which arguments gave the sizes and dtypes that this one breaks. */
function reasons({ letter, dims }: Form, symbols: Symbols): string {
  const used = [letter, ...dims.map(({ symbol }) => symbol)].filter(
    (i) => i >= 0 && symbols.values[i] !== undefined,
  );
  return [...new Set(used)]
    .map((i) => `${symbols.names[i]} is ${symbols.values[i]} by ${symbols.from[i]}`)
    .join(', ');
}

/** Holds `arg` against `spec`; letters and names that it is the first to use get its dtype and sizes. */
export function bind(
  call: string,
  name: string,
  spec: Spec,
  arg: unknown,
  device: Device,
  symbols: Symbols,
): Tensor {
  if (!(arg instanceof Tensor)) {
    const got = arg === null ? 'null' : Array.isArray(arg) ? 'an array' : typeof arg;
    throw new TypeError(`${call}: ${name} is ${got}, expected a tensor ${spec.text}`);
  }
  if (arg.disposed) throw new DisposedError(`${call}: ${name} is disposed`);
  if (arg.device !== device)
    throw new TypeError(`${call}: ${name} is on ${arg.device.id}, expected ${device.id}`);
  for (const form of spec.forms) {
    if (!fits(form, arg, symbols)) continue;
    if (form.letter >= 0) symbols.bind(form.letter, arg.dtype, name);
    for (let i = 0; i < form.dims.length; i++) {
      const { symbol, plus } = form.dims[i]!;
      if (symbol >= 0) symbols.bind(symbol, arg.shape[i]! - plus, name);
    }
    return arg;
  }
  const nearest = spec.forms.find(({ dims }) => dims.length === arg.shape.length) ?? spec.forms[0]!;
  const why = reasons(nearest, symbols);
  throw new TypeError(`${call}: ${name} is ${arg}, expected ${spec.text}${why && `; ${why}`}`);
}

/** Dtype and shape of an output. A letter that no input bound is `free`, or the dtype of T or W. */
export function resolve(
  call: string,
  spec: Spec,
  symbols: Symbols,
  args: Readonly<Record<string, unknown>>,
  free: DType | undefined,
): [DType, readonly number[]] {
  if (spec.like !== undefined) {
    const like = args[spec.like] as Tensor | undefined;
    return like ? [like.dtype, like.shape] : ['f32', [0]];
  }
  const form = spec.forms[0]!;
  const bound =
    form.letter >= 0
      ? (symbols.values[form.letter] ?? free ?? symbols.value('T') ?? symbols.value('W') ?? 'f32')
      : form.dtype;
  const shape = form.dims.map(({ symbol, plus }) => {
    const size = symbol < 0 ? 0 : (symbols.values[symbol] as number | undefined);
    if (size === undefined)
      throw new SyntaxError(`${call}: no input gives the size ${symbols.names[symbol]}`);
    return size + plus;
  });
  return [bound as DType, shape];
}

/** Of a name that an op does not know; most are misspelt, but one of a tensor's own is of a tensor that stands alone. */
export const unknownArgument = (opName: string, args: unknown, name: string): TypeError =>
  new TypeError(
    args instanceof Tensor
      ? `${opName}: the argument is a tensor, expected a record of tensors by their names`
      : `${opName}: there is no argument ${name}`,
  );
