import { crc32 } from '../../lib/io/zip';

/** Pickles and the ZIP files around them, made by hand as torch.save does, and as no one should. */
export const op = (...bytes: readonly (number | string | Uint8Array)[]): Buffer =>
  Buffer.concat(
    bytes.map((b) => (typeof b === 'number' ? Uint8Array.of(b) : typeof b === 'string' ? Buffer.from(b) : b)),
  );

const u32 = (n: number) => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(n);
  return bytes;
};

export const text = (s: string) => op('X', u32(Buffer.byteLength(s)), s);
export const none = op('N');
export const no = op(0x89);
export const global = (module: string, name: string) => op('c', `${module}\n${name}\n`);
export const tuple = (...items: readonly Uint8Array[]) => op('(', ...items, 't');
export const list = (...items: readonly Uint8Array[]) => op(']', '(', ...items, 'e');
export const reduce = (callee: Uint8Array, args: Uint8Array) => op(callee, args, 'R');
export const items = (entries: readonly (readonly [Uint8Array, Uint8Array])[]) =>
  op('(', ...entries.flat(), 'u');
export const dict = (...entries: readonly (readonly [Uint8Array, Uint8Array])[]) => op('}', items(entries));
export const ordered = (...entries: readonly (readonly [Uint8Array, Uint8Array])[]) =>
  op(reduce(global('collections', 'OrderedDict'), op(')')), items(entries));
export const pickle = (value: Uint8Array, protocol = 2) => op(0x80, protocol, value, '.');

/** A whole number as torch writes it: in one, two, four or eight bytes. */
export function int(n: number): Buffer {
  if (n >= 0 && n < 256) return op('K', n);
  if (n >= 0 && n < 65536) return op('M', n & 255, n >> 8);
  const bytes = Buffer.alloc(8);
  bytes.writeBigInt64LE(BigInt(n));
  return n === (n | 0) ? op('J', bytes.subarray(0, 4)) : op(0x8a, 8, bytes);
}

export const ints = (...values: readonly number[]) => tuple(...values.map(int));

export const storage = (key: string, elements: number, type = 'FloatStorage') =>
  op(tuple(text('storage'), global('torch', type), text(key), text('cpu'), int(elements)), 'Q');

export const rebuild = global('torch._utils', '_rebuild_tensor_v2');

export const tensor = (from: Uint8Array, shape: readonly number[], strides: readonly number[], offset = 0) =>
  reduce(rebuild, tuple(from, int(offset), ints(...shape), ints(...strides), no, ordered()));

export interface Entry {
  readonly name: string;
  readonly data: Uint8Array;
  /** What the file says of the entry, where that is not the truth. */
  readonly method?: number;
  readonly flags?: number;
  readonly crc?: number;
  readonly size?: number;
  readonly localName?: string;
  readonly at?: number;
}

export interface ZipOptions {
  /** Sizes, offsets and the directory in 64 bits. */
  readonly zip64?: boolean;
  /** Sizes and checksum after the data, and zero before them, as torch writes them. */
  readonly descriptors?: boolean;
  /** Rather than the number of entries. */
  readonly count?: number;
}

const u16 = (n: number) => u32(n).subarray(0, 2);
const u64 = (n: number) => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(n));
  return bytes;
};
const ALL = 0xffffffff;

export function zip(entries: readonly Entry[], options: ZipOptions = {}): Buffer {
  const { zip64 = false, descriptors = false } = options;
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let offset = 0;
  const write = (bytes: Buffer) => {
    parts.push(bytes);
    offset += bytes.length;
  };
  for (const entry of entries) {
    const { name, data, method = 0, crc = crc32(data), size = data.length, localName = name } = entry;
    const flags = (entry.flags ?? 0) | 0x800 | (descriptors ? 8 : 0);
    const at = entry.at ?? offset;
    const head = op(u16(20), u16(flags), u16(method), u32(0));
    const now = descriptors
      ? op(u32(0), u32(0), u32(0))
      : op(u32(crc), u32(Math.min(size, ALL)), u32(Math.min(size, ALL)));
    write(op('PK\x03\x04', head, now, u16(localName.length), u16(0), localName));
    write(Buffer.from(data));
    if (descriptors)
      write(op('PK\x07\x08', u32(crc), ...(zip64 ? [u64(size), u64(size)] : [u32(size), u32(size)])));
    const extra = zip64 ? op(u16(1), u16(24), u64(size), u64(size), u64(at)) : op();
    const sizes = zip64 ? op(u32(ALL), u32(ALL)) : op(u32(size), u32(size));
    const rest = op(
      u16(name.length),
      u16(extra.length),
      u16(0),
      u16(0),
      u16(0),
      u32(0),
      u32(zip64 ? ALL : at),
    );
    directory.push(op('PK\x01\x02', u16(20), head, u32(crc), sizes, rest, name, extra));
  }
  const begin = offset;
  const central = op(...directory);
  const count = options.count ?? entries.length;
  write(central);
  if (zip64) {
    const end = offset;
    write(
      op(
        'PK\x06\x06',
        u64(44),
        u16(45),
        u16(45),
        u32(0),
        u32(0),
        u64(count),
        u64(count),
        u64(central.length),
        u64(begin),
      ),
    );
    write(op('PK\x06\x07', u32(0), u64(end), u32(1)));
  }
  const counts = zip64 ? op(u16(0xffff), u16(0xffff)) : op(u16(count), u16(count));
  const where = zip64 ? op(u32(ALL), u32(ALL)) : op(u32(central.length), u32(begin));
  return op(...parts, 'PK\x05\x06', u16(0), u16(0), counts, where, u16(0));
}

export interface TorchFile {
  readonly root: Uint8Array;
  readonly storages?: Readonly<Record<string, Uint8Array>>;
  readonly byteorder?: string;
  readonly prefix?: string;
  readonly protocol?: number;
}

/** The entries of what torch.save would write for the pickled value `root`. */
export function entriesOf({
  root,
  storages = {},
  byteorder,
  prefix = 'archive',
  protocol,
}: TorchFile): Entry[] {
  return [
    { name: `${prefix}/data.pkl`, data: pickle(root, protocol) },
    ...(byteorder === undefined ? [] : [{ name: `${prefix}/byteorder`, data: Buffer.from(byteorder) }]),
    ...Object.entries(storages).map(([key, data]) => ({ name: `${prefix}/data/${key}`, data })),
    { name: `${prefix}/version`, data: Buffer.from('3\n') },
  ];
}

export const torchFile = (file: TorchFile, options?: ZipOptions) => zip(entriesOf(file), options);

/** The bytes of f32 numbers. */
export const floats = (...values: readonly number[]) => new Uint8Array(Float32Array.from(values).buffer);
