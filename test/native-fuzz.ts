/** A process of its own: thousands of pseudo-random calls of the addon's functions, nearly all of them wrong. */
import { native, type Native } from '../lib/native';
import { randomFrom } from '../lib/verify/cases';

const addon = native() as unknown as Record<keyof Native, (...args: readonly unknown[]) => unknown>;
const random = randomFrom(Number(process.argv[2] ?? 1));
const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)]!;

const device = addon.open('cpu', 0);
const { kernels } = addon.describe(device) as { kernels: readonly { signature: string }[] };
addon.setMemoryLimit(device, 2 ** 28);

const handles: unknown[] = [device];
const numbers = [
  0,
  1,
  2,
  3,
  5,
  16,
  -1,
  -7,
  0.5,
  NaN,
  Infinity,
  -Infinity,
  2 ** 31,
  2 ** 32 + 1,
  2 ** 53,
  1e300,
];
const oddities = [
  undefined,
  null,
  true,
  '',
  'cpu',
  'x'.repeat(1000),
  Symbol('x'),
  10n,
  {},
  [],
  () => 1,
  new Map(),
  new Proxy({}, {}),
  new Date(),
];
const buffers = () => [
  new Uint8Array(8),
  new Float32Array(4),
  new ArrayBuffer(8),
  new DataView(new ArrayBuffer(8)),
  new Uint8Array(0),
  new SharedArrayBuffer(8),
];
const shapes = [
  [],
  [0],
  [4],
  [2, 3],
  [2, 3, 4],
  [1, 2, 3, 4],
  [1, 1, 1, 1, 1],
  [-1],
  ['2'],
  [2 ** 40, 2 ** 40],
  [NaN],
  [1000],
  Array(1000).fill(1),
];

const anything = (): unknown => {
  const kind = random();
  if (kind < 0.45) return pick(handles);
  if (kind < 0.65) return pick(numbers);
  if (kind < 0.8) return pick(shapes);
  return kind < 0.9 ? pick(buffers()) : pick(oddities);
};
const often = <T>(value: () => T): unknown => (random() < 0.85 ? value() : anything());
const small = () => Math.floor(random() * 6);

const calls: Readonly<Record<keyof Native, () => readonly unknown[]>> = {
  open: () => [often(() => pick(['cuda', 'tpu', ''])), often(small)],
  describe: () => [often(() => device)],
  fft: () => [often(() => device)],
  usage: () => [often(() => device)],
  setMemoryLimit: () => [pick([device, undefined, 3]), 2 ** 28],
  trim: () => [often(() => device)],
  threads: () => [often(() => 1 + small())],
  alloc: () => [often(() => device), often(small), often(() => pick(shapes)), often(() => undefined)],
  view: () => [
    ...[anything(), often(small), often(small), often(() => pick(shapes)), often(small)],
    often(() => undefined),
  ],
  release: () => [anything()],
  read: () => [anything()],
  write: () => [anything(), often(small), often(() => pick(buffers())), random() < 0.5],
  stamp: () => [often(() => device)],
  run: () => {
    // Kernels trust their arguments, which the op table has checked: only wrong counts and kinds get here.
    const id = Math.floor(random() * kernels.length);
    const wanted = kernels[id]!.signature.length;
    const count = wanted + pick([-wanted, -1, 1, 2, 40]);
    return [often(() => device), often(() => id), ...Array.from({ length: Math.max(0, count) }, anything)];
  },
  beginCapture: () => [often(() => device)],
  endCapture: () => [often(() => device)],
  replay: () => [anything()],
  drop: () => [anything()],
};

async function fuzz(): Promise<void> {
  let thrown = 0;
  const settled: Promise<unknown>[] = [];
  for (let i = 0; i < 6000; i++) {
    const name = pick(Object.keys(calls) as (keyof Native)[]);
    const args = calls[name]();
    try {
      const result = addon[name](...args.slice(0, random() < 0.05 ? small() : undefined));
      if (result instanceof Promise) settled.push(result.catch(() => (thrown += 1)));
      else if ((name === 'alloc' || name === 'view' || name === 'endCapture') && handles.length < 200)
        handles.push(result);
    } catch {
      thrown += 1;
    }
    if (i % 100 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  try {
    addon.drop(addon.endCapture(device)); // in case it was recording
  } catch {
    thrown += 1;
  }
  for (const handle of handles.slice(1)) addon.release(handle);
  await Promise.all(settled);
  await addon.stamp(device);
  const { tensors } = addon.usage(device) as { tensors: number };
  console.log(JSON.stringify({ thrown, tensors }));
}

void fuzz();
