import { checkRecordable, isTracked, record, type Vjp } from './autograd/tape';
import type { Device } from './device';
import { deviceError, native, type TensorHandle } from './native';
import { bind, parseSpec, resolve, Symbols, unknownArgument, type Spec } from './schema';
import { dtypes, Tensor, type DType } from './tensor';

/** An op's declaration; see `schema.ts` for how tensors are written. */
export interface Schema {
  readonly in: Readonly<Record<string, string>>;
  /** Constants of the model, with their defaults; outputs may have sizes of their names. */
  readonly attrs?: Readonly<Record<string, number | boolean>>;
  readonly out: Readonly<Record<string, string>>;
  /** What the sizes must satisfy besides, by their names in the texts: a complaint, or nothing. */
  readonly check?: (size: (name: string) => number | undefined) => string | undefined;
  /** The gradients of the inputs, from those of the outputs and what `saves` names. */
  readonly vjp?: Vjp;
  /** Inputs and outputs that `vjp` reads. */
  readonly saves?: readonly string[];
  /** Outputs whose rows may lie apart where a call gives them. */
  readonly strided?: readonly string[];
}

type Optional<S extends string> = S extends `${string}?` | `${string}?!` ? true : false;
type RequiredIn<I> = {
  [K in keyof I as I[K] extends string ? (Optional<I[K]> extends true ? never : K) : never]: Tensor;
};
type OptionalIn<I> = {
  [K in keyof I as I[K] extends string ? (Optional<I[K]> extends true ? K : never) : never]?: Tensor;
};
type Widen<A> = { [K in keyof A]?: A[K] extends boolean ? boolean : number };

/** What a call takes: the inputs, and attributes that differ from their defaults. */
export type Arguments<S extends Schema> = RequiredIn<S['in']> &
  OptionalIn<S['in']> &
  Widen<S['attrs']> & {
    /** The dtype of the output, where it is free. */
    readonly dtype?: DType;
    /** Dense tensors (but see `strided`) for outputs to be written to, instead of new ones. */
    readonly out?: { readonly [K in keyof S['out']]?: Tensor };
  };

/** What a call returns: nothing, the one output, or a record of them. */
export type Results<S extends Schema> = [keyof S['out']] extends [never]
  ? void
  : IsUnion<keyof S['out']> extends true
    ? { readonly [K in keyof S['out']]: Tensor }
    : Tensor;
type IsUnion<T, U = T> = [T] extends [never] ? false : T extends U ? ([U] extends [T] ? false : true) : never;

export interface Op<S extends Schema = Schema> {
  (args: Arguments<S>): Results<S>;
  readonly opName: string;
  readonly schema: S;
  readonly inputs: ReadonlyMap<string, Spec>;
  readonly outputs: ReadonlyMap<string, Spec>;
}

/** Every op, by name: the table that tests read. */
export const ops = new Map<string, Op>();

const specs = (texts: Readonly<Record<string, string>>, symbols: Symbols) =>
  new Map(Object.entries(texts).map(([name, text]) => [name, parseSpec(text, symbols)]));

function letter({ optional, inPlace }: Spec): string {
  return inPlace ? (optional ? 'v' : 'u') : optional ? 'q' : 'i';
}

/** The signature that a kernel of this op must have; `#` stands for a number of either kind. */
export function signatureOf(op: Op): string {
  const attrs = Object.values(op.schema.attrs ?? {}).map((value) => (typeof value === 'boolean' ? 'b' : '#'));
  return [...[...op.inputs.values()].map(letter), ...attrs, ...'o'.repeat(op.outputs.size)].join('');
}

/** Why a kernel's signature does not fit the op, or undefined. */
export function mismatch(op: Op, signature: string): string | undefined {
  const wanted = signatureOf(op);
  const fits =
    wanted.length === signature.length &&
    [...wanted].every((c, i) => (c === '#' ? 'fn'.includes(signature[i]!) : c === signature[i]));
  return fits ? undefined : `${op.opName}: the kernel takes '${signature}', the op table says '${wanted}'`;
}

/** Told of every call, before it runs and after it; see `observing`. */
export interface Observer {
  /** Outputs with undefined contents: those that are no inputs too. */
  readonly before: (results: readonly Tensor[]) => void;
  /** `written`: what the call made or updated, by name. */
  readonly after: (
    opName: string,
    args: Readonly<Record<string, unknown>>,
    written: Readonly<Record<string, Tensor>>,
  ) => void;
}
let observer: Observer | undefined;

/** Runs `fn` while `told` is told of every call but its own: for looking for what went wrong. */
export function observing<R>(told: Observer | undefined, fn: () => R): R {
  const outer = observer;
  observer = told;
  try {
    return fn();
  } finally {
    observer = outer;
  }
}

type Kernel = { readonly id: number; readonly signature: string };
const found = new WeakMap<Device, Map<string, Kernel>>();

function kernelOf(op: Op, device: Device): Kernel {
  let table = found.get(device);
  if (!table) found.set(device, (table = new Map<string, Kernel>()));
  let kernel = table.get(op.opName);
  if (!kernel) {
    kernel = device.kernels.get(op.opName);
    if (!kernel) throw new Error(`${op.opName}: ${device.id} has no kernel of that name`);
    const wrong = mismatch(op, kernel.signature);
    if (wrong)
      throw new Error(`${wrong}; the native build and this version of the library do not belong together`);
    table.set(op.opName, kernel);
  }
  return kernel;
}

function attribute(
  call: string,
  name: string,
  fallback: number | boolean,
  given: unknown,
  code: string,
): number {
  const value = given ?? fallback;
  if (typeof value !== typeof fallback) {
    throw new TypeError(`${call}: ${name} is ${String(given)}, expected a ${typeof fallback}`);
  }
  if (code === 'n' && !Number.isSafeInteger(value)) {
    throw new RangeError(`${call}: ${name} is ${String(given)}, expected a whole number`);
  }
  return Number(value);
}

/** Whether outputs may be written to the tensors that a call gives for them. */
function checkOutputs(
  call: string,
  outputs: ReadonlyMap<string, Spec>,
  given: Readonly<Record<string, Tensor | undefined>>,
  tracked: boolean,
): void {
  if (tracked)
    throw new Error(
      `${call}: out is given, expected none while gradients are recorded; it is updated in place`,
    );
  const unknown = Object.keys(given).find((name) => !outputs.has(name));
  if (unknown !== undefined) throw new TypeError(`${call}: there is no output ${unknown}`);
}

/** The tensor that a call gives for an output, if it fits. */
function placed(
  call: string,
  name: string,
  tensor: Tensor,
  device: Device,
  dtype: DType,
  shape: readonly number[],
  strided = false,
): Tensor {
  const wanted = `${dtype}[${shape.join(',')}]`;
  const fits = tensor instanceof Tensor && String(tensor) === wanted && tensor.device === device;
  if (!fits || !(strided || tensor.dense))
    throw new TypeError(
      `${call}: out.${name} is ${String(tensor)}, expected a ${strided ? '' : 'dense '}${wanted} on ${device.id}`,
    );
  return tensor;
}

function beforeCall(told: Observer, args: readonly unknown[], made: readonly Tensor[]): void {
  observing(undefined, () => told.before(made.filter((result) => !args.includes(result))));
}

function afterCall(
  told: Observer,
  opName: string,
  args: Readonly<Record<string, unknown>>,
  inPlace: readonly string[],
  results: Readonly<Record<string, Tensor>>,
): void {
  const updated = inPlace.flatMap((name) => (args[name] instanceof Tensor ? [[name, args[name]]] : []));
  observing(undefined, () =>
    told.after(opName, args, { ...(Object.fromEntries(updated) as Record<string, Tensor>), ...results }),
  );
}

/**
 * Declares an op. Its type, argument checks, output allocation and dispatch follow from the schema;
 * a kernel of the same name on each device does the work.
 */
export function op<const S extends Schema>(opName: string, schema: S): Op<S> {
  const symbols = new Symbols();
  const inputs = specs(schema.in, symbols);
  const attrs = Object.entries(schema.attrs ?? {});
  const twice = attrs.find(([name]) => symbols.names.includes(name));
  if (twice) throw new SyntaxError(`${opName}: attribute ${twice[0]} has the name of a size of its inputs`);
  const outputs = specs(schema.out, symbols);
  for (const [name] of attrs) symbols.index(name); // a number may be a size of the outputs, too
  const given = new Set(
    [...inputs.values()].flatMap(({ forms, optional }) =>
      optional ? [] : forms.map(({ letter }) => letter),
    ),
  );
  const freeDtype = [...outputs.values()].some(
    ({ forms: [form] }) => form && form.letter >= 0 && !given.has(form.letter),
  );
  const recorded = {
    opName,
    vjp: schema.vjp,
    saves: schema.saves ?? [],
    inPlace: [...inputs.keys()].filter((name) => inputs.get(name)!.inPlace),
  };
  const inputList = [...inputs];
  const outputList = [...outputs];
  let lastDevice: Device | undefined;
  let lastKernel: Kernel | undefined;
  const known = new Set([
    ...inputs.keys(),
    ...attrs.map(([name]) => name),
    ...(freeDtype ? ['dtype'] : []),
    ...(outputs.size > 0 ? ['out'] : []),
  ]);

  const sizeOfName = (name: string) => symbols.value(name) as number | undefined;

  const call = (args: Readonly<Record<string, unknown>>) => {
    let device: Device | undefined;
    for (const name in args) {
      const arg = args[name];
      if (!known.has(name)) throw unknownArgument(opName, args, name);
      if (arg instanceof Tensor) device ??= arg.device;
    }
    if (!device)
      throw new TypeError(`${opName}: no tensor was given, expected ${[...inputs.keys()].join(', ')}`);
    if (device !== lastDevice || !lastKernel) lastKernel = kernelOf(self, (lastDevice = device));
    const kernel = lastKernel;
    const tracked = isTracked(args);
    if (tracked) checkRecordable(recorded, args);
    const into = args['out'] as Readonly<Record<string, Tensor | undefined>> | undefined;
    if (into) checkOutputs(opName, outputs, into, tracked);

    symbols.clear();
    const values: (TensorHandle | number | undefined)[] = [];
    for (const [name, spec] of inputList) {
      const arg = args[name];
      if (arg === undefined && spec.optional) values.push(undefined);
      else values.push(bind(opName, name, spec, arg, device, symbols).handle(opName, name));
    }
    for (let i = 0; i < attrs.length; i++) {
      const [name, fallback] = attrs[i]!;
      const value = attribute(opName, name, fallback, args[name], kernel.signature[inputs.size + i]!);
      symbols.bind(symbols.index(name), value, name);
      values.push(value);
    }

    const free = args['dtype'] as DType | undefined;
    if (free !== undefined && (free === 'i32' || !dtypes.includes(free))) {
      throw new TypeError(`${opName}: dtype is ${String(free)}, expected f32, bf16 or f16`);
    }
    const complaint = schema.check?.(sizeOfName);
    if (complaint) throw new TypeError(`${opName}: ${complaint}`);

    const results: Record<string, Tensor> = {};
    let only: Tensor | undefined;
    try {
      for (const [name, spec] of outputList) {
        const [dtype, shape] = resolve(opName, spec, symbols, args, into?.[name]?.dtype ?? free);
        only = results[name] = into?.[name]
          ? placed(opName, name, into[name], device, dtype, shape, schema.strided?.includes(name))
          : Tensor.empty(shape, dtype, device);
        values.push(only.handle(opName, name));
      }
      if (observer) beforeCall(observer, Object.values(args), Object.values(results));
      native().run(device.handle, kernel.id, ...values);
    } catch (error) {
      for (const name in results) if (!into?.[name]) results[name]!.dispose();
      throw deviceError(opName, error);
    }
    if (tracked) record(recorded, args as Record<string, Tensor>, results);
    if (observer) afterCall(observer, opName, args, recorded.inPlace, results);
    return outputs.size > 1 ? results : only;
  };

  const self = Object.assign(call, { opName, schema, inputs, outputs }) as unknown as Op<S> & Op;
  ops.set(opName, self);
  return self;
}

/** The same op, called by position: for two tensors and no options. */
export function positional<S extends Schema>(op: Op<S>): (...tensors: readonly Tensor[]) => Results<S> {
  const names = [...op.inputs.keys()];
  return (...tensors) =>
    op(Object.fromEntries(tensors.map((tensor, i) => [names[i], tensor])) as Arguments<S>);
}
