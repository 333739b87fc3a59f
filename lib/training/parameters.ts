import type { Device } from '../device';
import type { FloatFormat } from '../io/convert';
import type { Placed } from '../nn/weights';
import { cast, fill } from '../ops/elementwise';
import { adamw, addSquares, moveAverage } from '../ops/optimizer';
import { keep, scope, sizeOf, Tensor } from '../tensor';

/** Some parameters one after the other, with all that an optimizer keeps of them: each f32[n]. */
export interface Block {
  readonly parameter: Tensor;
  readonly gradient: Tensor;
  readonly m: Tensor;
  readonly v: Tensor;
  readonly average: Tensor | undefined;
  /** What layers compute with, where that is another dtype. */
  readonly copy: Tensor | undefined;
  /** Whether its weights decay. */
  readonly decays: boolean;
}

/** Something that gradients are taken for. */
export interface Leaf {
  readonly name: string;
  readonly parameter: Tensor;
  readonly gradient: Tensor;
  readonly copy: Tensor | undefined;
}

/** AdamW's constants; see `adamw` and `planStep`. */
export interface AdamW {
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
  readonly decay: number;
}

/** Starts of parameters, in elements: what cuBLASLt and 16-byte accesses like. */
const alignment = 64;
const [smallest, largest] = [1 << 16, 1 << 23];

/** Weights decay; A_log, D, biases and norms, Δ's bias among them, do not (Gu and Dao 2023, appendix E.2.1). */
export const decays = (name: string, shape: readonly number[]): boolean =>
  name.endsWith('weight') && shape.length > 1;

/**
 * Parameters in f32 in a few large blocks, so that an optimizer's step is a few ops; those that layers use
 * in a half precision have copies in blocks of the same layout.
 */
export class Parameters {
  readonly blocks: Block[] = [];
  readonly leaves: Leaf[] = [];
  readonly #device: Device;
  readonly #dtype: FloatFormat;
  readonly #averaged: boolean;
  readonly #cleared: boolean;
  /** What there is of each block. */
  readonly #rooms: { readonly block: Block; used: number }[] = [];

  /** `cleared` false leaves the contents undefined, for who only wants the sizes. */
  constructor(device: Device, dtype: FloatFormat, averaged: boolean, cleared = true) {
    this.#device = device;
    this.#dtype = dtype;
    this.#averaged = averaged;
    this.#cleared = cleared;
  }

  /** Room for a parameter: see `Source.place`. */
  readonly place = (name: string, shape: readonly number[], dtype: FloatFormat): Placed => {
    const size = sizeOf(shape);
    const at = this.#room(decays(name, shape), size);
    const view = (block: Tensor) => keep(block.rows(at.used, at.used + size).reshape(shape));
    const { parameter, gradient, copy } = at.block;
    const placed = scope(() => ({
      name,
      parameter: view(parameter),
      gradient: view(gradient),
      copy: dtype !== 'f32' && copy ? view(copy) : undefined,
    }));
    at.used += Math.ceil(size / alignment) * alignment;
    this.leaves.push(placed);
    return { parameter: placed.parameter, used: placed.copy ?? placed.parameter };
  };

  /** In the first block of a kind that has room: the gaps that large parameters leave take small ones. */
  #room(kind: boolean, size: number): { readonly block: Block; used: number } {
    const own = this.#rooms.filter(({ block }) => block.decays === kind);
    const found = own.find(({ block, used }) => used + size <= block.parameter.size);
    if (found) return found;
    const before = own.at(-1)?.block.parameter.size ?? smallest / 4;
    const least = Math.ceil(size / alignment) * alignment;
    const room = { block: this.#block(kind, Math.max(least, Math.min(largest, before * 4))), used: 0 };
    this.#rooms.push(room);
    return room;
  }

  #block(kind: boolean, size: number): Block {
    const make = (dtype: FloatFormat = 'f32') => {
      const tensor = keep(Tensor.empty([size], dtype, this.#device));
      if (this.#cleared) scope(() => fill({ x: matrix(tensor) }));
      return tensor;
    };
    const block: Block = {
      parameter: make(),
      gradient: make(),
      m: make(),
      v: make(),
      average: this.#averaged ? make() : undefined,
      copy: this.#dtype !== 'f32' && kind ? make(this.#dtype) : undefined,
      decays: kind,
    };
    this.blocks.push(block);
    return block;
  }

  /** Copies of parameters, and the parameters: see `GradOptions.copies`. */
  get copies(): ReadonlyMap<Tensor, Tensor> {
    return new Map(this.leaves.flatMap(({ copy, parameter }) => (copy ? [[copy, parameter]] : [])));
  }

  /** After parameters were written from outside: their copies, and averages that start from them. */
  refresh(averages: boolean): void {
    scope(() => {
      for (const { parameter, copy, average } of this.blocks) {
        const x = matrix(parameter);
        if (copy) cast({ x, dtype: copy.dtype, out: { y: matrix(copy) } });
        if (average && averages) cast({ x, out: { y: matrix(average) } });
      }
    });
  }

  /** Parameters become their averages and the other way round; their copies follow. */
  exchangeAverages(): void {
    scope(() => {
      for (const { parameter, average } of this.blocks) {
        if (!average) continue;
        const before = cast({ x: matrix(parameter) });
        cast({ x: matrix(average), out: { y: matrix(parameter) } });
        cast({ x: before, out: { y: matrix(average) } });
      }
    });
    this.refresh(false);
  }

  clearGradients(): void {
    scope(() => {
      for (const { gradient } of this.blocks) fill({ x: matrix(gradient) });
    });
  }

  /** Adds the squares of all gradients to `sum`. */
  addSquares(sum: Tensor): void {
    for (const { gradient } of this.blocks) addSquares({ x: gradient, sum });
  }

  /** A step of AdamW as `control` has it. */
  update(control: Tensor, { beta1, beta2, eps, decay }: AdamW, average: number | undefined): void {
    for (const block of this.blocks) {
      const { parameter, gradient, m, v, copy } = block;
      const own = block.decays ? decay : 0;
      adamw({ parameter, m, v, gradient, control, copy, beta1, beta2, eps, decay: own });
      if (block.average && average !== undefined)
        moveAverage({ average: block.average, x: parameter, decay: average });
    }
  }

  dispose(): void {
    for (const { parameter, gradient, m, v, average, copy } of this.blocks)
      for (const tensor of [parameter, gradient, m, v, average, copy]) tensor?.dispose();
    for (const { parameter, gradient, copy } of this.leaves)
      for (const tensor of [parameter, gradient, copy]) tensor?.dispose();
  }
}

const matrix = (tensor: Tensor): Tensor => tensor.reshape([1, tensor.size]);
