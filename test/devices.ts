import { Device, device } from '../lib/device';
import { native } from '../lib/native';

/** Why there is no GPU to test, or undefined. */
export let noGpu: string | undefined;

function present(): Device[] {
  if (process.env['SELECTIVE_SCAN_DEVICE']) return [device()];
  try {
    return [device('cpu'), device('cuda')];
  } catch (error) {
    noGpu = (error as Error).message;
    return [device('cpu')];
  }
}

/** The devices that tests run on: all that are present, or the one of SELECTIVE_SCAN_DEVICE. */
export const devices: readonly Device[] = present();
export const onEach: readonly (readonly [string, Device])[] = devices.map((on) => [on.id, on]);

/** The same device once more, with a queue and memory of its own: what other tests forgot is not in its count. */
export function fresh({ id }: Device): Device {
  const [kind, index] = id.split(':') as [string, string?];
  return new Device(id, native().open(kind, Number(index ?? 0)));
}
