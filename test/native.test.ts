/** The addon's own surface, called as lib/ never would: exceptions, never a crash. */
import { device as open } from '../lib/device';
import { native, type Native } from '../lib/native';
import { child } from './child';
import { fresh } from './devices';

type Loose = Readonly<Record<keyof Native, (...args: readonly unknown[]) => unknown>>;

describe('the addon', () => {
  const addon = native() as unknown as Loose;
  const device = fresh(open('cpu'));
  const kernel = (name: string) => device.kernels.get(name)!.id;
  const alloc = (...shape: readonly number[]) => addon.alloc(device.handle, 0, shape);
  const x = alloc(4, 6);

  it('has the functions that lib/native.ts declares, and no others', () => {
    expect(Object.keys(native()).sort()).toEqual(
      // prettier-ignore
      ['alloc', 'beginCapture', 'describe', 'drop', 'endCapture', 'fft', 'open', 'read', 'release', 'replay', 'run',
       'setMemoryLimit', 'stamp', 'threads', 'trim', 'usage', 'view', 'write'],
    );
  });

  it.each<[string, keyof Native, () => readonly unknown[], string]>([
    ['no device', 'run', () => [], 'is not a device'],
    ['a tensor for a device', 'run', () => [x, 0], 'is not a device'],
    ['a kernel that is none', 'run', () => [device.handle, 1000], 'is not a device with such a kernel'],
    ['a negative kernel', 'run', () => [device.handle, -1], 'is not a device with such a kernel'],
    [
      'too few arguments',
      'run',
      () => [device.handle, kernel('cast'), x],
      'cast: argument 1 is one too many or too few',
    ],
    [
      'too many arguments',
      'run',
      () => [device.handle, kernel('cast'), x, x, x],
      'cast: argument 3 is one too many',
    ],
    [
      'very many arguments',
      'run',
      () => [device.handle, kernel('cast'), ...Array(100).fill(x)],
      'one too many',
    ],
    [
      'a number for a tensor',
      'run',
      () => [device.handle, kernel('cast'), 1, x],
      'cast: argument 0 is not a live tensor',
    ],
    [
      'a device for a tensor',
      'run',
      () => [device.handle, kernel('cast'), device.handle, x],
      'argument 0 is not a live',
    ],
    [
      'nothing for a tensor',
      'run',
      () => [device.handle, kernel('cast'), undefined, x],
      'argument 0 is not a live',
    ],
    [
      'a tensor for a number',
      'run',
      () => [device.handle, kernel('rms_norm'), x, x, x, x],
      'rms_norm: argument 2 is not a number',
    ],
    [
      'a tensor of another queue',
      'run',
      () => [device.handle, kernel('cast'), foreign(), x],
      'lives on another device',
    ],
    ['no dtype', 'alloc', () => [device.handle, 4, [1]], 'not a dtype'],
    ['a negative size', 'alloc', () => [device.handle, 0, [-1]], 'negative size'],
    ['too large a size', 'alloc', () => [device.handle, 0, [2 ** 40, 2 ** 40]], 'too large'],
    ['too many dimensions', 'alloc', () => [device.handle, 0, [1, 1, 1, 1, 1]], '1 to 4 dimensions'],
    ['no dimensions', 'alloc', () => [device.handle, 0, []], '1 to 4 dimensions'],
    ['a live handle to use again', 'alloc', () => [device.handle, 0, [1], x], 'not a released'],
    ['a view in a live handle', 'view', () => [x, 0, 0, [4, 6], 6, x], 'not a released'],
    ['a view of another size', 'view', () => [x, 1, 0, [4, 6], 6], 'not a dtype of the same size'],
    ['a view of no dtype', 'view', () => [x, 4, 0, [4, 6], 6], 'not a dtype'],
    ['a view that begins late', 'view', () => [x, 0, 1, [4, 6], 6], 'reaches beyond'],
    ['a view that is long', 'view', () => [x, 0, 0, [5, 6], 6], 'reaches beyond'],
    ['a view that is wide', 'view', () => [x, 0, 0, [4, 6], 7], 'reaches beyond'],
    ['a negative offset', 'view', () => [x, 0, -1, [1], 1], 'negative'],
    ['a negative stride', 'view', () => [x, 0, 23, [2, 1], -1], 'negative'],
    ['rows that overlap', 'view', () => [x, 0, 0, [1000, 6], 0], 'cannot overlap'],
    ['one dimension with gaps', 'view', () => [x, 0, 0, [4], 6], 'one dimension is dense'],
    ['an offset that overflows', 'view', () => [x, 0, 2 ** 53, [1], 1], 'reaches beyond'],
    ['a stride that overflows', 'view', () => [x, 0, 0, [4, 1], 2 ** 62], 'reaches beyond'],
    ['a read of strided rows', 'read', () => [addon.view(x, 0, 0, [4, 2], 6)], 'strided'],
    ['a read of nothing', 'read', () => [undefined], 'not a live tensor handle'],
    [
      'a write of strided rows',
      'write',
      () => [addon.view(x, 0, 0, [4, 2], 6), 0, new Uint8Array(8), true],
      'strided',
    ],
    [
      'a write that is long',
      'write',
      () => [x, 0, new Uint8Array(97), true],
      'more bytes than the tensor holds',
    ],
    ['a write that begins late', 'write', () => [x, 95, new Uint8Array(2), false], 'more bytes than'],
    ['a write that begins early', 'write', () => [x, -1, new Uint8Array(2), false], 'more bytes than'],
    ['the end of no capture', 'endCapture', () => [device.handle], 'no capture is under way'],
    ['a replay of a tensor', 'replay', () => [x], 'not a live graph handle'],
    ['a device that is none', 'open', () => ['tpu', 0], 'no such device'],
    ['a second CPU', 'open', () => ['cpu', 1], 'no such device'],
  ])('refuses %s', (_, name, args, message) => {
    const before = device.memoryUsage().used;
    expect(() => addon[name](...args())).toThrow(message);
    expect(device.memoryUsage().used).toBe(before);
  });
  const foreign = () => addon.alloc(open('cpu').handle, 0, [4, 6]);

  it('refuses released handles everywhere', () => {
    const gone = alloc(4, 6);
    addon.release(gone);
    addon.release(gone);
    for (const use of [
      () => addon.view(gone, 0, 0, [1], 1),
      () => addon.read(gone),
      () => addon.write(gone, 0, new Uint8Array(1), true),
      () => addon.run(device.handle, kernel('cast'), gone, x),
    ])
      expect(use).toThrow('not a live tensor');
  });

  it('uses a released handle again', () => {
    const { tensors } = device.memoryUsage();
    const spent = alloc(4, 6);
    addon.release(spent);
    expect(addon.alloc(device.handle, 0, [2], spent)).toBe(spent);
    expect(device.memoryUsage().tensors).toBe(tensors + 1);
    addon.release(spent);
    expect(addon.view(x, 0, 0, [4, 6], 6, spent)).toBe(spent);
    addon.release(spent);
    expect(device.memoryUsage().tensors).toBe(tensors);
  });

  it('drops a graph once', () => {
    addon.beginCapture(device.handle);
    expect(() => addon.beginCapture(device.handle)).toThrow('a capture is under way already');
    const graph = addon.endCapture(device.handle);
    addon.drop(graph);
    addon.drop(graph);
    expect(() => addon.replay(graph)).toThrow('not a live graph handle');
  });

  it.each([1, 2, 3])('survives 6,000 random calls, seed %i', async (seed) => {
    const { code, signal, stdout, stderr } = await child(['test/native-fuzz.ts', String(seed)]);
    expect({ code, signal, stderr }).toEqual({ code: 0, signal: null, stderr: '' });
    const { thrown, tensors } = JSON.parse(stdout) as { thrown: number; tensors: number };
    expect(thrown).toBeGreaterThan(2000);
    expect(tensors).toBeGreaterThanOrEqual(0);
  });
});
