import type { Device } from '../device';
import { FormatError } from '../errors';
import type { Checkpoint } from '../io/checkpoint';
import { convert, convertTensor, floatFormats, type FloatFormat } from '../io/convert';
import { dtypeBytes, keep, scope, sizeOf, Tensor } from '../tensor';
import { seeded, type Init } from './init';

const chunkBytes = 8 << 20;

export interface LoadProgress {
  /** The parameter that was read last. */
  readonly name: string;
  /** Bytes of the checkpoint read so far, and in all. */
  readonly loaded: number;
  readonly total: number;
}

export interface LoadOptions {
  readonly onProgress?: (progress: LoadProgress) => void;
  readonly signal?: AbortSignal;
  /** Calls `onWarning` for each parameter that holds a NaN or an infinity. */
  readonly checkFinite?: boolean;
  readonly onWarning?: (message: string) => void;
}

interface Parameter {
  readonly tensor: Tensor;
  readonly shape: readonly number[];
  readonly init: Init;
}

/** Where a parameter lies, and what the layers compute with: itself, or a copy in the model's dtype. */
export interface Placed {
  readonly parameter: Tensor;
  readonly used: Tensor;
}
/** Finds room for a tensor that layers use as `dtype`. */
export type Place = (name: string, shape: readonly number[], dtype: FloatFormat) => Placed;

/** Where parameters come from: a checkpoint, or a seed. */
export interface Source {
  readonly device: Device;
  /** Of matrices; everything else is f32. */
  readonly dtype: FloatFormat;
  readonly checkpoint?: Checkpoint;
  readonly seed?: number;
  /** Where parameters go; by default each is a tensor of its own. */
  readonly place?: Place;
}

/**
 * The parameters of a model by the checkpoint's own names. Layers ask for them while the model is
 * built, which checks names, shapes and dtypes; `load` then fills them. The same layers load from a
 * file and start afresh.
 */
export class Weights {
  readonly #source: Source;
  readonly #prefix: string;
  readonly #parameters: Map<string, Parameter>;
  /** Tensors whose rows are parameters. */
  readonly #stacks: Tensor[];

  constructor(source: Source, prefix = '', parameters = new Map<string, Parameter>(), stacks: Tensor[] = []) {
    this.#source = source;
    this.#prefix = prefix;
    this.#parameters = parameters;
    this.#stacks = stacks;
  }

  /** The parameters below `name.`. */
  at(name: string | number): Weights {
    return new Weights(this.#source, `${this.#prefix}${name}.`, this.#parameters, this.#stacks);
  }

  /** A matrix of the model's dtype, for `matmul` and `embedding`. */
  matrix(name: string, shape: readonly number[], init: Init): Tensor {
    return this.#get(name, shape, this.#source.dtype, init);
  }

  /** Anything else: kept in f32. */
  get(name: string, shape: readonly number[], init: Init): Tensor {
    return this.#get(name, shape, 'f32', init);
  }

  /**
   * Matrices of one shape, one parameter for each of `names`, as one tensor [names, ...shape] whose
   * rows they are: what `expertMatmul` takes. `kind` as in `matrix` and `get`.
   */
  stack(
    names: readonly string[],
    shape: readonly number[],
    init: Init,
    kind: 'matrix' | 'f32' = 'matrix',
  ): Tensor {
    const dtype = kind === 'f32' ? 'f32' : this.#source.dtype;
    for (const name of names) this.#check(this.#prefix + name, shape);
    const { parameter, used } = this.#placed(this.#prefix + names[0]!, [names.length, ...shape], dtype);
    if (!this.#source.place) this.#stacks.push(parameter);
    scope(() =>
      names.forEach((name, i) => {
        const tensor = keep(parameter.rows(i, i + 1).reshape(shape));
        this.#parameters.set(this.#prefix + name, { tensor, shape, init });
      }),
    );
    return used;
  }

  #get(name: string, shape: readonly number[], dtype: FloatFormat, init: Init): Tensor {
    const path = this.#prefix + name;
    this.#check(path, shape);
    const { parameter, used } = this.#placed(path, shape, dtype);
    this.#parameters.set(path, { tensor: parameter, shape, init });
    return used;
  }

  #placed(path: string, shape: readonly number[], dtype: FloatFormat): Placed {
    const { place, device } = this.#source;
    if (place) return place(path, shape, dtype);
    const tensor = keep(Tensor.empty(shape, dtype, device));
    return { parameter: tensor, used: tensor };
  }

  #check(path: string, shape: readonly number[]): void {
    const { checkpoint } = this.#source;
    if (!checkpoint) return;
    if (!checkpoint.has(path)) throw new FormatError(`${checkpoint.folder}: parameter ${path} is missing`);
    const info = checkpoint.info(path);
    const got = `${info.dtype}[${info.shape.join(',')}]`;
    if (!floatFormats.has(info.dtype)) {
      throw new FormatError(`${checkpoint.folder}: parameter ${path} is ${got}, expected F32, BF16 or F16`);
    }
    if (info.shape.length !== shape.length || info.shape.some((size, i) => size !== shape[i])) {
      throw new FormatError(
        `${checkpoint.folder}: parameter ${path} is ${got}, expected [${shape.join(',')}]`,
      );
    }
  }

  /** All parameters so far, by full name. */
  get parameters(): ReadonlyMap<string, Tensor> {
    return new Map([...this.#parameters].map(([name, { tensor }]) => [name, tensor]));
  }

  /** Throws when the checkpoint holds a tensor that no layer has asked for. */
  checkAllUsed(ignored: readonly string[] = []): void {
    const { checkpoint } = this.#source;
    const unused = checkpoint
      ?.names()
      .filter((name) => !this.#parameters.has(name) && !ignored.includes(name));
    if (unused?.length) {
      const more = unused.length > 3 ? ` and ${unused.length - 3} more` : '';
      throw new FormatError(`${checkpoint!.folder}: no layer uses ${unused.slice(0, 3).join(', ')}${more}`);
    }
  }

  /** Reads or draws the values of all parameters. */
  async load(options: LoadOptions = {}): Promise<void> {
    const { checkpoint, seed = 0 } = this.#source;
    if (checkpoint) return this.#read(checkpoint, options);
    const random = seeded(seed);
    for (const [name, { tensor, init }] of this.#parameters) {
      options.signal?.throwIfAborted();
      const values = new Float32Array(tensor.size);
      init(values, random);
      const bytes = new Uint8Array(values.buffer);
      await tensor.write(convertTensor(`parameter ${name}`, bytes, 'f32', tensor.dtype as FloatFormat));
    }
  }

  async #read(checkpoint: Checkpoint, options: LoadOptions): Promise<void> {
    const parameters = [...this.#parameters].map(([name, { tensor }]) => ({
      name,
      tensor,
      info: checkpoint.info(name),
    }));
    const total = parameters.reduce((sum, { info }) => sum + info.end - info.begin, 0);
    let loaded = 0;
    // Two buffers: one is read into while the other is being taken.
    const buffers = [Buffer.allocUnsafeSlow(chunkBytes), Buffer.allocUnsafeSlow(chunkBytes)];
    const taken: Promise<void>[] = [Promise.resolve(), Promise.resolve()];
    let turn = 0;
    for (const { name, tensor, info } of parameters) {
      const from = floatFormats.get(info.dtype)!;
      const to = tensor.dtype as FloatFormat;
      const scale = dtypeBytes[to] / dtypeBytes[from];
      let finite = true;
      for (let at = 0; at < info.end - info.begin; at += chunkBytes) {
        options.signal?.throwIfAborted();
        const bytes = buffers[turn]!.subarray(0, Math.min(chunkBytes, info.end - info.begin - at));
        await taken[turn];
        await checkpoint.read(name, bytes, at);
        if (options.checkFinite && finite) finite = allFinite(bytes, from);
        const where = `${checkpoint.folder}: parameter ${name}`;
        taken[turn] = tensor.write(convertTensor(where, bytes, from, to), at * scale);
        loaded += bytes.byteLength;
        turn = 1 - turn;
      }
      if (!finite) options.onWarning?.(`parameter ${name} holds values that are not finite`);
      options.onProgress?.({ name, loaded, total });
    }
    await Promise.all(taken);
  }

  dispose(): void {
    for (const { tensor } of this.#parameters.values()) tensor.dispose();
    for (const tensor of this.#stacks) tensor.dispose();
  }
}

function allFinite(bytes: Uint8Array, format: FloatFormat): boolean {
  const floats = convert(bytes, format, 'f32');
  const values = new Float32Array(floats.buffer, floats.byteOffset, floats.byteLength / 4);
  return values.every(Number.isFinite);
}

/** Elements of all parameters. */
export function countParameters(parameters: ReadonlyMap<string, Tensor>): number {
  return [...parameters.values()].reduce((sum, { shape }) => sum + sizeOf(shape), 0);
}
