/** Valid calls of the ops of routing and experts: see `cases.ts`. */
import { below, fixed, narrow, normal, type Fill, type Sizes } from './fills';

const { abs, floor, max, min } = Math; // jest's globals are slow

/** Experts of assignments, some of them dropped. */
const experts =
  (count: string): Fill =>
  (random, sizes) =>
    floor(random() * (sizes[count]! + 1)) - 1;
/** One expert without rows, and places that none has. */
const expertOffsets: Fill = (_, { a, e }, i) => floor((0.9 * a! * i * abs(i - 1)) / (e! * e!));
const fromLast: Fill = (_, { a }, i) => a! - 1 - i;
const somePlaces: Fill = (_, { a }, i) => (i % 3 === 2 ? -1 : a! - 1 - i);
const places: Fill = (random, sizes, i) => {
  const place = fromLast(random, sizes, i);
  return place < expertOffsets(random, sizes, sizes['e']!) ? place : -1;
};

/** What makes logits that are far apart, so that no rounding changes the choice: almost the same everywhere. */
const near =
  (middle: number, width: number): Fill =>
  (random) =>
    middle + width * normal(random);
const apart: Fill = (random, { d, e }, i) =>
  (min(0.5, 16 / e!) * (((floor(i / d!) * 7919) % e!) + 0.05 * normal(random))) / d!;
const entering = { x: near(0, 0.2), residual: near(1, 0.2), normWeight: near(1, 0.1) };

export const moeFills: Readonly<Record<string, Readonly<Record<string, Fill>>>> = {
  limit_experts: { experts: experts('e') },
  sort_experts: { experts: experts('e') },
  router_statistics: {
    experts: below('e'),
    kept: (random, sizes, i) => (i % 4 === 3 ? -1 : below('e')(random, sizes)),
  },
  expert_matmul: { order: fromLast, offsets: expertOffsets },
  norm_route: { ...entering, weight: apart, bias: fixed(0.1) },
  norm_route_up: { ...entering, router: apart, routerBias: fixed(0.1), up: narrow('d') },
  expert_layer_step: {
    ...entering,
    router: apart,
    routerBias: fixed(0.1),
    up: narrow('d'),
    down: narrow('h'),
  },
  expert_up: { order: fromLast, offsets: expertOffsets, weight: narrow('d') },
  expert_down: { order: fromLast, offsets: expertOffsets, place: places, weight: narrow('d') },
  expert_sum: { experts: below('e'), weight: narrow('h') },
  expert_combine: { place: somePlaces },
  expert_combine_backward: { place: somePlaces },
  expert_weight_gradient: { order: fromLast, offsets: expertOffsets },
  expert_column_sums: { offsets: expertOffsets },
  expert_gather_backward: { order: somePlaces },
  route_experts_backward: {
    experts: (_, { e, k }, i) => ((i % k!) + 3 * floor(i / k!)) % e!,
    probs: (random) => 0.05 + 0.9 * random(),
  },
  router_statistics_backward: { experts: below('e') },
  add_router_totals: { dropped: (random) => floor(100 * random()) },
};

/** Some of the experts, if there are any. */
const someOf = (sizes: Sizes): Sizes => {
  const e = max(sizes['e']!, 1);
  return { ...sizes, e, k: max(1, min(sizes['k']!, e)) };
};

const intoSome = (sizes: Sizes): Sizes => ({
  ...someOf(sizes),
  n: sizes['n']! < 5 ? sizes['h']! : 2 * sizes['h']!,
});
/** Two experts a token. */
const twoEach = (sizes: Sizes): Sizes => ({ ...sizes, e: max(sizes['e']!, 1), k: 2, a: 2 * sizes['t']! });

export const moeSizes: Readonly<Record<string, (sizes: Sizes) => Sizes>> = {
  route_experts: someOf,
  route_experts_backward: someOf,
  router_statistics: (sizes) => ({ ...sizes, e: max(sizes['e']!, 1) }),
  router_statistics_backward: (sizes) => ({ ...sizes, e: max(sizes['e']!, 1) }),
  limit_experts: (sizes) => ({ ...sizes, e: 7, capacity: 2 }),
  expert_matmul: twoEach,
  expert_weight_gradient: twoEach,
  expert_column_sums: (sizes) => ({ ...sizes, e: max(sizes['e']!, 1) }),
  expert_gather_backward: (sizes) => ({ ...sizes, a: 2 * sizes['t']! }),
  norm_route: someOf,
  norm_route_up: intoSome,
  expert_layer_step: intoSome,
  expert_up: (sizes) => ({
    ...sizes,
    e: max(sizes['e']!, 1),
    k: 2,
    a: 2 * sizes['t']!,
    n: sizes['n']! < 5 ? sizes['h']! : 2 * sizes['h']!,
  }),
  expert_down: (sizes) => ({ ...sizes, e: max(sizes['e']!, 1), a: sizes['t']! * sizes['k']! }),
  expert_sum: (sizes) => ({ ...sizes, e: max(sizes['e']!, 1), a: sizes['t']! * sizes['k']! }),
  expert_combine: (sizes) => ({ ...sizes, a: sizes['t']! * sizes['k']! }),
  expert_combine_backward: (sizes) => ({ ...sizes, a: sizes['t']! * sizes['k']! }),
};
