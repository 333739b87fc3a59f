/** The numbers of a tensor in a file, row-major or not. */
export interface Layout {
  /** Of the first element, in the file. */
  readonly begin: number;
  readonly itemBytes: 1 | 2 | 4 | 8;
  readonly shape: readonly number[];
  /** In elements. No two elements are in one place. */
  readonly strides: readonly number[];
}

/** Fills `into` from byte `position` of the file on. */
export type ReadAt = (into: Uint8Array, position: number) => Promise<void>;

/** What is read at once: at most so much, and densely used unless it is small. */
const MAX_SPAN = 4 << 20;
const SMALL_SPAN = 64 << 10;

/** Some elements that follow each other in row-major order: all of a block of the tensor. */
interface Block {
  readonly from: number; // in elements, from the tensor's first
  readonly to: number; // in elements of the result
  /** Dimensions longer than 1, the one with the widest stride in the file first. */
  readonly steps: readonly Step[];
}

interface Step {
  readonly size: number;
  readonly from: number; // stride in the file
  readonly to: number; // stride in the result
}

export function isContiguous({ shape, strides }: Pick<Layout, 'shape' | 'strides'>): boolean {
  let expected = 1;
  for (let k = shape.length - 1; k >= 0; k--) {
    if (shape[k]! > 1 && strides[k] !== expected) return false;
    expected *= shape[k]!;
  }
  return true;
}

/** Fills `into` with the row-major bytes of the tensor from `offset` on, in time and memory of its size. */
export async function readStrided(
  readAt: ReadAt,
  layout: Layout,
  into: Uint8Array,
  offset: number,
): Promise<void> {
  const { itemBytes } = layout;
  const first = Math.floor(offset / itemBytes);
  const end = Math.ceil((offset + into.length) / itemBytes);
  const result = arrayOf(itemBytes, end - first);
  for (const block of blocks(layout, first, end - first)) await fill(readAt, layout, result, block);
  const bytes = new Uint8Array(result.buffer, offset - first * itemBytes, into.length);
  into.set(bytes);
}

/** The elements `first` to `first + count` in row-major order as blocks: at most two for each dimension. */
function blocks({ shape, strides }: Layout, first: number, count: number): Block[] {
  const found: Block[] = [];
  const inner = shape.map((_, k) => shape.slice(k + 1).reduce((a, b) => a * b, 1));
  const visit = (k: number, from: number, first: number, count: number, to: number): void => {
    if (count === 0) return;
    if (k === shape.length) {
      found.push({ from, to, steps: [] });
      return;
    }
    const row = inner[k]!;
    const stride = strides[k]!;
    let at = Math.floor(first / row);
    const skipped = first - at * row;
    const head = skipped === 0 ? 0 : Math.min(count, row - skipped);
    if (head > 0) visit(k + 1, from + at++ * stride, skipped, head, to);
    const whole = Math.floor((count - head) / row);
    if (whole > 0) {
      const steps = [
        { size: whole, from: stride, to: row },
        ...shape.slice(k + 1).map((size, i) => ({ size, from: strides[k + 1 + i]!, to: inner[k + 1 + i]! })),
      ].filter(({ size }) => size > 1);
      steps.sort((a, b) => b.from - a.from);
      found.push({ from: from + at * stride, to: to + head, steps });
    }
    const tail = count - head - whole * row;
    visit(k + 1, from + (at + whole) * stride, 0, tail, to + head + whole * row);
  };
  visit(0, 0, first, count, 0);
  return found;
}

/** Reads a block in one piece where that wastes little, else in halves along its widest stride. */
async function fill(readAt: ReadAt, layout: Layout, result: Items, block: Block): Promise<void> {
  const { itemBytes, begin } = layout;
  const span = block.steps.reduce((sum, { size, from }) => sum + (size - 1) * from, 1);
  const count = block.steps.reduce((product, { size }) => product * size, 1);
  const bytes = span * itemBytes;
  if (bytes <= SMALL_SPAN || (bytes <= MAX_SPAN && count * 4 >= span)) {
    const items = arrayOf(itemBytes, span);
    await readAt(new Uint8Array(items.buffer), begin + block.from * itemBytes);
    scatter(items, result, block.steps, 0, 0, block.to);
    return;
  }
  const [widest, ...rest] = block.steps as [Step, ...Step[]];
  const half = widest.size >> 1;
  const part = (size: number, skip: number): Block => ({
    from: block.from + skip * widest.from,
    to: block.to + skip * widest.to,
    steps: size > 1 ? [{ ...widest, size }, ...rest] : rest,
  });
  await fill(readAt, layout, result, part(half, 0));
  await fill(readAt, layout, result, part(widest.size - half, half));
}

function scatter(
  items: Items,
  result: Items,
  steps: readonly Step[],
  k: number,
  from: number,
  to: number,
): void {
  const step = steps[k];
  if (!step) {
    result[to] = items[from]!;
    return;
  }
  for (let i = 0; i < step.size; i++) {
    scatter(items, result, steps, k + 1, from + i * step.from, to + i * step.to);
  }
}

type Items =
  Uint8Array<ArrayBuffer> | Uint16Array<ArrayBuffer> | Uint32Array<ArrayBuffer> | BigUint64Array<ArrayBuffer>;

function arrayOf(itemBytes: Layout['itemBytes'], length: number): Items {
  if (itemBytes === 1) return new Uint8Array(length);
  if (itemBytes === 2) return new Uint16Array(length);
  return itemBytes === 4 ? new Uint32Array(length) : new BigUint64Array(length);
}
