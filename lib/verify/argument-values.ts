/** What the arguments of each op may hold, where that is not any number. */
import { below, fixed, narrow, normal, type Fill } from './fills';
import { moeFills } from './moe-cases';

/** Sequences of unequal lengths, empty ones among them. */
const offsets: Fill = (_, { t, s }, i) => (i === s ? t! : Math.floor((t! * i * i) / (s! * s!)));
/** Each row once, not in order, and none for the second one. */
const slots =
  (pool: string): Fill =>
  (_, sizes, i) =>
    i === 1 ? -1 : sizes[pool]! - 1 - i;

const scan: Readonly<Record<string, Fill>> = {
  offsets,
  slots: slots('p'),
  A: (random) => -0.1 - 4 * random(),
  // Time does not run backwards, where no softplus sees to it.
  delta: (random) => 0.5 * random(),
  deltaBias: (random) => 0.3 * random(),
};

/** Real and imaginary part of Ā - 1 in turn, with |Ā| below 1. */
const decay: Fill = (random, _, i) => (i % 2 === 0 ? -0.05 - 0.9 * random() : 0.6 * random() - 0.3);

const system: Readonly<Record<string, Fill>> = {
  logDt: (random) => Math.log(1e-3) + Math.log(1e2) * random(),
  logAReal: (random) => Math.log(0.5) + 0.5 * normal(random),
  aImag: (random) => 30 * normal(random),
};

const labels: Fill = (random, sizes, i) => (i % 3 === 2 ? -100 : below('v')(random, sizes));

/** By op and argument. */
export const fills: Readonly<Record<string, Readonly<Record<string, Fill>>>> = {
  ...moeFills,
  embedding: { ids: below('v') },
  cross_entropy: { labels },
  cross_entropy_backward: { labels },
  cross_entropy_gradient: { labels },
  take_rows: { rows: below('t') },
  zero_slots: { slots: slots('p') },
  copy_slots: { fromSlots: slots('p'), toSlots: (_, { q }, i) => (i === 2 ? -1 : (i + 1) % q!) },
  causal_conv1d: { offsets, slots: slots('p') },
  causal_conv1d_backward: { offsets },
  conv_matmul: { offsets, slots: slots('p'), weight: narrow('d') },
  selective_scan: scan,
  selective_scan_backward: scan,
  embedding_backward: { ids: below('rows') },
  plan_step: {
    squares: (random) => 1e6 * (1 + random()),
    learningRate: fixed(0.01),
    scaler: (_, _sizes, i) => [1024, 3, 7, 1, 0.5, 2][i]!,
  },
  adamw: { v: (random) => random(), control: (_, _sizes, i) => [1, 0.5, 0.01, 0.3, 0.2][i]! },
  s4d_discretize: system,
  s4d_discretize_backward: system,
  s4d_scan: { offsets, slots: slots('p'), E: decay },
  s4d_scan_backward: { offsets, E: decay },
  s4d_kernel: { E: decay },
  s4d_kernel_backward: { E: decay },
  fft_conv: { offsets, kernel: narrow('l') },
  fft_conv_backward: { offsets, kernel: narrow('l') },
  mamba_step: {
    offsets: (_, _sizes, i) => i,
    slots: slots('p'),
    A: (random) => -0.1 - 4 * random(),
    xProj: narrow('d'),
    dtWeight: narrow('r'),
  },
  mamba_layer_step: {
    offsets: (_, _sizes, i) => i,
    slots: slots('p'),
    A: (random) => -0.1 - 4 * random(),
    inProj: narrow('m'),
    xProj: narrow('d'),
    dtWeight: narrow('r'),
    outProj: narrow('d'),
  },
  sample: {
    temperature: fixed(0),
    topK: fixed(0),
    topP: fixed(1),
    minP: fixed(0),
    penalty: fixed(1.25),
    stop: (_, { v }, i) => (i * 5) % v!,
    quiet: fixed(4),
    position: (_, _sizes, i) => i,
    token: fixed(0),
  },
};
