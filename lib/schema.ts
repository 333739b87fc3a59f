/**
 * What an op says of its tensors, as text: `T[t,d]`, `f32[d]?`, `i32[s+1]`, `f32[p,d,n]?!`,
 * `T[t,g,n]|f32[d,n]`.
 *
 * - Before the bracket a dtype, or a capital letter: any float dtype, the same wherever the letter
 *   stands in the call.
 * - Between the brackets the sizes: a number, a name (the same size wherever it stands), or a name
 *   and a constant.
 * - `?` may be left out; `!` is updated in place; `|` separates alternatives.
 */
import { DisposedError } from './errors';
import type { Device } from './device';
import { Tensor, type DType } from './tensor';

export interface Dim {
  readonly name: string | undefined;
  readonly plus: number;
}
export interface Form {
  readonly dtype: string;
  readonly dims: readonly Dim[];
}
export interface Spec {
  readonly text: string;
  readonly forms: readonly Form[];
  readonly optional: boolean;
  readonly inPlace: boolean;
}

/** What the letters and names of a call stand for. */
export interface Bindings {
  readonly dtypes: Map<string, DType>;
  readonly sizes: Map<string, number>;
}

const floats: ReadonlySet<string> = new Set(['f32', 'bf16', 'f16']);
const isLetter = (dtype: string) => /^[A-Z]$/.test(dtype);

function parseDim(text: string): Dim {
  const match = /^(?:([a-z]+)([+-]\d+)?|(\d+))$/.exec(text);
  if (!match) throw new SyntaxError(`schema: '${text}' is not a size`);
  return { name: match[1], plus: Number(match[2] ?? match[3] ?? 0) };
}

function parseForm(text: string): Form {
  const match = /^([A-Z]|f32|bf16|f16|i32)\[([^\]]*)\]$/.exec(text);
  if (!match) throw new SyntaxError(`schema: '${text}' is not a tensor`);
  return { dtype: match[1]!, dims: match[2]!.split(',').map(parseDim) };
}

export function parseSpec(text: string): Spec {
  const match = /^([^?!]+)(\??)(!?)$/.exec(text);
  if (!match) throw new SyntaxError(`schema: '${text}' is not a tensor`);
  return {
    text: match[1]!,
    forms: match[1]!.split('|').map(parseForm),
    optional: match[2] === '?',
    inPlace: match[3] === '!',
  };
}

/** `t is 10 by u`: which argument gave the sizes and dtypes that another one breaks. */
function reasons(form: Form, bound: Bindings, from: ReadonlyMap<string, string>): string {
  const known = [form.dtype, ...form.dims.map(({ name }) => name ?? '')].filter((key) => from.has(key));
  return [...new Set(known)]
    .map((key) => `${key} is ${bound.dtypes.get(key) ?? bound.sizes.get(key)} by ${from.get(key)}`)
    .join(', ');
}

function fits(form: Form, tensor: Tensor, bound: Bindings): boolean {
  if (tensor.shape.length !== form.dims.length) return false;
  if (isLetter(form.dtype)) {
    const known = bound.dtypes.get(form.dtype);
    if (known ? tensor.dtype !== known : !floats.has(tensor.dtype)) return false;
  } else if (tensor.dtype !== form.dtype) return false;
  return form.dims.every(({ name, plus }, i) => {
    const size = tensor.shape[i]!;
    if (name === undefined) return size === plus;
    const known = bound.sizes.get(name);
    return known === undefined ? size - plus >= 0 : size === known + plus;
  });
}

/** Holds `arg` against `spec`; new names are bound to what it has. */
export function bind(
  call: string,
  name: string,
  spec: Spec,
  arg: unknown,
  device: Device,
  bound: Bindings,
  from: Map<string, string>,
): void {
  if (!(arg instanceof Tensor)) {
    const got = arg === null ? 'null' : Array.isArray(arg) ? 'an array' : typeof arg;
    throw new TypeError(`${call}: ${name} is ${got}, expected a tensor ${spec.text}`);
  }
  if (arg.disposed) throw new DisposedError(`${call}: ${name} is disposed`);
  if (arg.device !== device) throw new TypeError(`${call}: ${name} is on ${arg.device.id}, expected ${device.id}`);
  const form = spec.forms.find((form) => fits(form, arg, bound));
  if (!form) {
    const why = reasons(spec.forms.find((form) => form.dims.length === arg.shape.length) ?? spec.forms[0]!, bound, from);
    throw new TypeError(`${call}: ${name} is ${arg}, expected ${spec.text}${why && `; ${why}`}`);
  }
  if (isLetter(form.dtype) && !bound.dtypes.has(form.dtype)) {
    bound.dtypes.set(form.dtype, arg.dtype);
    from.set(form.dtype, name);
  }
  form.dims.forEach((dim, i) => {
    if (dim.name === undefined || bound.sizes.has(dim.name)) return;
    bound.sizes.set(dim.name, arg.shape[i]! - dim.plus);
    from.set(dim.name, name);
  });
}

/** Dtype and shape of an output. A letter that no input bound is `free`, or T's dtype. */
export function resolve(call: string, spec: Spec, bound: Bindings, free: DType | undefined): [DType, number[]] {
  const form = spec.forms[0]!;
  const dtype = isLetter(form.dtype)
    ? (bound.dtypes.get(form.dtype) ?? free ?? bound.dtypes.get('T') ?? bound.dtypes.get('W'))
    : form.dtype;
  const shape = form.dims.map(({ name, plus }) => {
    if (name === undefined) return plus;
    const size = bound.sizes.get(name);
    if (size === undefined) throw new SyntaxError(`${call}: no input gives the size ${name}`);
    return size + plus;
  });
  return [(dtype ?? 'f32') as DType, shape];
}
