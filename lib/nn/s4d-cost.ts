import type { Device } from '../device';

/** How an S4D layer is computed: as the faster one, step by step, or as one long convolution. */
export const s4dModes = ['auto', 'recurrent', 'convolutional'] as const;
export type S4DMode = (typeof s4dModes)[number];

/** Packed sequences through `d` channels of `n` conjugate pairs. */
export interface S4DShape {
  readonly sequences: number;
  readonly tokens: number;
  readonly longest: number;
  readonly d: number;
  readonly n: number;
}

/** In nanoseconds; fitted to the times in docs/kernels/s4d.md. */
interface Cost {
  /** Of a call, however small, of each execution. */
  readonly recurrent: number;
  readonly convolutional: number;
  /** For a token and state of the recurrence. */
  readonly step: number;
  /** For a tap and state of the kernel, whose powers are as dear as some more taps. */
  readonly tap: number;
  readonly taps: (length: number) => number;
  /** For a token of a transform, and for each factor 2 in its length. */
  readonly token: number;
  readonly octave: number;
}
const costs: Readonly<Record<'cpu' | 'cuda', Cost>> = {
  // Of one thread: more of them divide all of it alike.
  cpu: {
    ...{ recurrent: 0, convolutional: 0, step: 0.17, tap: 0.35, token: 0, octave: 0.65 },
    taps: (length) => length + 750,
  },
  cuda: {
    ...{ recurrent: 8e3, convolutional: 15e3, step: 6.5e-4, tap: 1.55e-4, token: 4e-3, octave: 8e-4 },
    taps: (length) => Math.max(length, 4096),
  },
};

/** Nanoseconds that each execution takes, about. */
function estimate(deviceId: string, { sequences, tokens, longest, d, n }: S4DShape) {
  const cost = costs[deviceId === 'cpu' ? 'cpu' : 'cuda'];
  // Of u and of y for each sequence, of the kernel once.
  const transformed = (2 * sequences + 1) * longest;
  const transforms = transformed * (cost.token + cost.octave * Math.log2(2 * longest));
  return {
    recurrent: cost.recurrent + cost.step * tokens * d * Math.max(n, 8),
    convolutional: cost.convolutional + d * (cost.tap * cost.taps(longest) * n + transforms),
  };
}

/** The execution that `mode` asks for, or that takes less time; a device without FFTs has one only. */
export function chooseExecution(
  mode: S4DMode,
  device: Device,
  shape: S4DShape,
): 'recurrent' | 'convolutional' {
  if (mode !== 'auto') return mode;
  const { recurrent, convolutional } = estimate(device.id, shape);
  return recurrent <= convolutional || !device.fft.found ? 'recurrent' : 'convolutional';
}
