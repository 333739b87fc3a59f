import { addTo, type World } from './pickle';
import { describe, Dict, Global, List, Made, Tuple, type Fail, type Value } from './pickle-value';
import { ITEM_BYTES, type SafetensorsDType } from './safetensors';

/** A run of numbers of one dtype: an entry of the archive. Tied weights share one. */
export class Storage extends Made {
  readonly what = 'a storage';

  constructor(
    readonly key: string,
    readonly dtype: SafetensorsDType,
    readonly elements: number,
  ) {
    super();
  }
}

/** A view of a storage: element (i, j) is number `offset + i · strides[0] + j · strides[1]` of it. */
export class StoredTensor extends Made {
  readonly what = 'a tensor';

  constructor(
    readonly storage: Storage,
    readonly offset: number,
    readonly shape: readonly number[],
    readonly strides: readonly number[],
  ) {
    super();
  }
}

const dtypes: ReadonlyMap<string, SafetensorsDType> = new Map([
  ['torch.FloatStorage', 'F32'],
  ['torch.DoubleStorage', 'F64'],
  ['torch.HalfStorage', 'F16'],
  ['torch.BFloat16Storage', 'BF16'],
  ['torch.LongStorage', 'I64'],
  ['torch.IntStorage', 'I32'],
  ['torch.ShortStorage', 'I16'],
  ['torch.CharStorage', 'I8'],
  ['torch.ByteStorage', 'U8'],
  ['torch.BoolStorage', 'BOOL'],
  ['torch.ComplexFloatStorage', 'C64'],
  ['torch.UntypedStorage', 'U8'],
  ['torch.storage.UntypedStorage', 'U8'],
]);
const MAX_DIMENSIONS = 64; // torch's own limit

/** All that a checkpoint of torch's may refer to. */
export class TorchWorld implements World {
  readonly #storages = new Map<string, Storage>();
  readonly #globals: ReadonlyMap<string, Global> = new Map(
    [
      new Global('collections.OrderedDict', orderedDict),
      new Global('torch.Size', size),
      new Global('torch._utils._rebuild_tensor_v2', rebuildTensor),
      new Global('torch._utils._rebuild_parameter', rebuildParameter),
      ...[...dtypes.keys()].map((name) => new Global(name)),
    ].map((global) => [global.name, global]),
  );

  find(name: string): Global | undefined {
    return this.#globals.get(name);
  }

  /** `('storage', torch.FloatStorage, '0', 'cpu', 16384)`; where it was once, the fourth, does not matter. */
  load(id: Value, fail: Fail): Storage {
    const [tag, type, key, , elements] = id instanceof Tuple && id.items.length === 5 ? id.items : [];
    const dtype = type instanceof Global ? dtypes.get(type.name) : undefined;
    if (tag !== 'storage' || !dtype || typeof key !== 'string' || !isCount(elements)) {
      return fail(`refers to ${describe(id)}, expected a storage: its dtype, key, place and length`);
    }
    const storage = this.#storages.get(key) ?? new Storage(key, dtype, elements);
    if (storage.dtype !== dtype || storage.elements !== elements) {
      const [was, is] = [storage, { dtype, elements }].map((s) => `${s.dtype}[${s.elements}]`);
      return fail(`has storage ${key} as ${was} and as ${is}`);
    }
    this.#storages.set(key, storage);
    return storage;
  }
}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

/** `OrderedDict()`, or `OrderedDict([[key, value], ...])` as Python 2 wrote it. */
function orderedDict(args: readonly Value[], fail: Fail): Dict {
  const dict = new Dict(true);
  const [pairs] = args;
  if (args.length > 1 || (pairs !== undefined && !(pairs instanceof List))) {
    return fail(`makes an ordered dict of ${args.map(describe).join(' and ')}, expected nothing or a list`);
  }
  for (const pair of pairs?.items ?? []) {
    const [key, value, ...rest] = pair instanceof List || pair instanceof Tuple ? pair.items : [];
    if (key === undefined || value === undefined || rest.length > 0) {
      return fail(`makes an ordered dict of ${describe(pair)}, expected pairs`);
    }
    addTo(dict, key, value, fail);
  }
  return dict;
}

function size(args: readonly Value[], fail: Fail): Tuple {
  const [items, ...rest] = args;
  if (!(items instanceof Tuple) || rest.length > 0)
    return fail('makes a torch.Size of something else than a tuple');
  return items;
}

/** `(storage, offset, size, stride, requires_grad, backward_hooks, metadata?)` */
function rebuildTensor(args: readonly Value[], fail: Fail): StoredTensor {
  const [storage, offset, shape, strides, , hooks, metadata = null] = args;
  if (args.length < 6 || args.length > 7) {
    return fail(`makes a tensor of ${args.length} arguments, expected 6 or 7`);
  }
  if (!(storage instanceof Storage))
    return fail(`makes a tensor of ${describe(storage)}, expected a storage`);
  refuseFilled('hooks', hooks, fail);
  refuseFilled('metadata', metadata, fail);
  if (!isCount(offset)) return fail(`has a tensor at offset ${describe(offset)}, expected a whole number`);
  const tensor = new StoredTensor(
    storage,
    offset,
    counts('size', shape, fail),
    counts('stride', strides, fail),
  );
  checkInside(tensor, fail);
  return tensor;
}

/** `(data, requires_grad, backward_hooks)` */
function rebuildParameter(args: readonly Value[], fail: Fail): StoredTensor {
  const [data, , hooks] = args;
  if (!(data instanceof StoredTensor) || args.length !== 3) {
    return fail(`makes a parameter of ${describe(data)}, expected a tensor`);
  }
  refuseFilled('hooks', hooks, fail);
  return data;
}

/** Hooks are functions, metadata say that the numbers mean something else: conjugated, negated. */
function refuseFilled(what: string, value: Value | undefined, fail: Fail): void {
  if (value === null || (value instanceof Dict && value.size === 0)) return;
  fail(`has a tensor with ${what} (${describe(value)}), expected none`);
}

function counts(what: string, value: Value | undefined, fail: Fail): readonly number[] {
  const items =
    value instanceof Tuple ? value.items : fail(`has a tensor whose ${what} is ${describe(value)}`);
  if (items.length > MAX_DIMENSIONS) fail(`has a tensor of ${items.length} dimensions`);
  const wrong = items.findIndex((item) => !isCount(item));
  if (wrong >= 0) {
    fail(
      `has a tensor whose ${what} ${wrong} is ${describe(items[wrong])}, expected a whole number, 0 or more`,
    );
  }
  return items as readonly number[];
}

/** Every element lies within the storage, and no two in one place: a tensor is never larger than what holds it. */
function checkInside({ storage, offset, shape, strides }: StoredTensor, fail: Fail): void {
  const refuse = (why: string) =>
    fail(`has a tensor of size [${shape}], stride [${strides}] and offset ${offset}, ${why}`);
  if (shape.length !== strides.length) refuse('expected as many strides as sizes');
  if (shape.includes(0)) return;
  const steps = shape.map((size, k) => ({ size, stride: strides[k]! })).filter(({ size }) => size > 1);
  steps.sort((a, b) => a.stride - b.stride);
  let reach = 0; // of the dimensions so far: their last element's distance from the first
  for (const { size, stride } of steps) {
    if (stride <= reach) {
      refuse('whose elements share places; save it as tensor.contiguous()');
    }
    reach += (size - 1) * stride;
  }
  if (!(offset + reach < storage.elements)) {
    refuse(`which reaches beyond its storage ${storage.key} of ${storage.elements} elements`);
  }
}

export const bytesOf = (storage: Storage) => storage.elements * ITEM_BYTES[storage.dtype];
