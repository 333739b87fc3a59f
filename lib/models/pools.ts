import type { Device } from '../device';
import { zeroSlots } from '../ops/elementwise';
import { keep, scope, sizeOf, Tensor, type DType } from '../tensor';
import type { StatePart } from './family';

/** Elements from one part to the next, which begins where kernels like to read. */
const padded = (size: number) => Math.ceil(size / 64) * 64;

/** One tensor [rows, ...] for each part of a state. Those of a dtype lie in one piece, which is zeroed by one op. */
export class Pools {
  readonly tensors: readonly Tensor[];
  readonly #pieces: Tensor[] = [];
  #first: Tensor | undefined; // i32[1], the number of a piece's one row

  /** All zero. @throws DeviceError when the device is out of memory. */
  constructor(parts: readonly StatePart[], rows: number, device: Device) {
    const tensors: Tensor[] = [];
    this.tensors = tensors;
    try {
      for (const dtype of new Set(parts.map(({ dtype }) => dtype)))
        this.#addPiece(parts, rows, dtype, device, tensors);
      this.#first = keep(Tensor.from(Int32Array.of(0), [1], { device }));
      this.zero();
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  #addPiece(
    parts: readonly StatePart[],
    rows: number,
    dtype: DType,
    device: Device,
    tensors: Tensor[],
  ): void {
    const begins: number[] = [];
    let end = 0;
    for (const part of parts) {
      begins.push(end);
      if (part.dtype === dtype) end += padded(rows * sizeOf(part.shape));
    }
    const piece = keep(Tensor.empty([end], dtype, device));
    this.#pieces.push(piece);
    for (const [i, part] of parts.entries()) {
      if (part.dtype !== dtype) continue;
      const shape = [rows, ...part.shape];
      const view = () => keep(piece.rows(begins[i]!, begins[i]! + sizeOf(shape)).reshape(shape));
      tensors[i] = scope(view);
    }
  }

  zero(): void {
    scope(() => {
      for (const piece of this.#pieces)
        zeroSlots({ pool: piece.reshape([1, piece.size]), slots: this.#first! });
    });
  }

  dispose(): void {
    for (const tensor of [...this.#pieces, ...this.tensors, this.#first]) tensor?.dispose();
  }
}
