/** Routing and experts, plainly and in f64. */
import { logSumExp, rmsNorm, row, sum, values } from './values';
import type { Attrs, Inputs, Reference, Round, Values } from './values';

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
const softmax = (x: Float64Array) => {
  const total = logSumExp(x);
  return x.map((v) => Math.exp(v - total));
};

/** Numbers of the best, in order: NaN last, of equal ones the earlier first. */
export const byScore = (scores: readonly number[]): number[] => {
  const of = (i: number) => (Number.isNaN(scores[i]) ? -Infinity : scores[i]!);
  return scores.map((_, i) => i).sort((a, b) => (of(a) === of(b) ? a - b : of(b) - of(a)));
};

function route({ logits, scores }: Inputs, { k, sigmoid: squash, normalize }: Attrs): Inputs {
  const t = logits!.shape[0]!;
  const experts = values(t, k as number);
  const weights = values(t, k as number);
  const probs = values(...logits!.shape);
  for (let i = 0; i < t; i++) {
    row(probs, i).set(squash ? row(logits!, i).map(sigmoid) : softmax(row(logits!, i)));
    const best = byScore([...row(scores ?? logits!, i)]).slice(0, k as number);
    row(experts, i).set(best);
    const chosen = best.map((j) => row(probs, i)[j]!);
    row(weights, i).set(normalize ? chosen.map((w) => w / sum(chosen)) : chosen);
  }
  return { experts, weights, probs };
}

export function balance({ logits }: Inputs, { classical, tolerance, epsilon, most }: Attrs): Inputs {
  const [t, e] = logits!.shape as [number, number];
  const cost = logits!.data.map((x) => Math.exp(2 * x));
  const columns = (factor: (i: number) => number) =>
    Array.from({ length: e }, (_, j) =>
      sum(Array.from({ length: t }, (_, i) => factor(i) * cost[i * e + j]!)),
    );
  let d1 = columns(() => 1).map((total) => (classical ? 1 : 1 / (e * total)));
  let d0 = Array<number>(t).fill(1);
  let turns = 0;
  for (let change = Infinity; t > 0 && e > 0 && change > Math.fround(tolerance as number); turns++) {
    if (turns === most) break;
    d0 = d0.map((_, i) => 1 / (t * (sum(d1.map((d, j) => d * cost[i * e + j]!)) + (epsilon as number))));
    const next = columns((i) => d0[i]!).map((total) => 1 / (e * (total + (epsilon as number))));
    change = sum(next.map((d, j) => Math.abs(d - d1[j]!))) / e;
    d1 = next;
  }
  const data = cost.map((c, i) => c * d1[i % e]! * d0[Math.floor(i / e)]!);
  return {
    balanced: { shape: logits!.shape, data },
    iterations: { shape: [1], data: Float64Array.of(turns) },
  };
}

export function limit({ scores, experts }: Inputs, { e, capacity }: Attrs): Inputs {
  const kept = { shape: scores!.shape, data: new Float64Array(scores!.data.length).fill(-1) };
  const k = scores!.shape[1]!;
  for (let expert = 0; expert < (experts ? (e as number) : k); expert++) {
    const to = (i: number) => (experts ? experts.data[i]! : i % k);
    const choices = [...scores!.data.keys()].filter((i) => to(i) === expert);
    const best = byScore(choices.map((i) => scores!.data[i]!)).slice(0, capacity as number);
    for (const i of best) kept.data[choices[i]!] = expert;
  }
  return { kept };
}

export function sort({ experts }: Inputs, { e }: Attrs): Inputs {
  const a = experts!.data.length;
  const order = { shape: [a], data: new Float64Array(a).fill(-1) };
  const place = { shape: [a], data: new Float64Array(a).fill(-1) };
  const offsets = values((e as number) + 1);
  let at = 0;
  for (let expert = 0; expert < (e as number); expert++) {
    experts!.data.forEach((to, i) => {
      if (to !== expert) return;
      order.data[at] = i;
      place.data[i] = at++;
    });
    offsets.data[expert + 1] = at;
  }
  return { order, place, offsets };
}

function addTotals({ balance, z, entropy, dropped, totals }: Inputs, { experts }: Attrs): Inputs {
  const share = (experts as number) > 1 ? entropy!.data[0]! / Math.log(experts as number) : 1;
  const all = [balance!.data[0]!, z!.data[0]!, share, dropped!.data[0]!, 1];
  all.forEach((value, i) => (totals!.data[i]! += value));
  return {};
}

export function statistics({ logits, experts, kept }: Inputs): Inputs {
  const [t, e] = logits!.shape as [number, number];
  const one = (x: number) => ({ shape: [1], data: Float64Array.of(x) });
  const tokens = Array.from({ length: t }, (_, i) => i);
  const all = Array.from({ length: e }, (_, j) => j);
  const f = all.map((j) => experts!.data.filter((to) => to === j).length / (experts!.data.length || 1));
  const probs = tokens.map((i) => softmax(row(logits!, i)));
  const P = all.map((j) => sum(probs.map((p) => p[j]!)) / (t || 1));
  const load = values(e);
  for (const to of kept!.data) if (to >= 0) load.data[to]! += 1;
  return {
    balance: one(e * sum(all.map((j) => f[j]! * P[j]!))),
    z: one(sum(tokens.map((i) => logSumExp(row(logits!, i)) ** 2)) / (t || 1)),
    load,
    entropy: one(-sum(f.map((share) => (share > 0 ? share * Math.log(share) : 0)))),
    dropped: one(experts!.data.filter((to, i) => to >= 0 && kept!.data[i]! < 0).length),
    unserved: one(tokens.filter((i) => row(kept!, i).every((to) => to < 0)).length),
  };
}

/** Philox 4x32-10 (Salmon et al. 2011) as a number in [0, 1). */
export function philox(seed: readonly [number, number], position: number): number {
  let c = [BigInt(position), 0n, 0n, 0n] as [bigint, bigint, bigint, bigint];
  let key = seed.map((word) => BigInt.asUintN(32, BigInt(word))) as [bigint, bigint];
  for (let round = 0; round < 10; round++) {
    const a = 0xd2511f53n * c[0];
    const b = 0xcd9e8d57n * c[2];
    const low = (x: bigint) => BigInt.asUintN(32, x);
    c = [(b >> 32n) ^ c[1] ^ key[0], low(b), (a >> 32n) ^ c[3] ^ key[1], low(a)];
    key = [low(key[0] + 0x9e3779b9n), low(key[1] + 0xbb67ae85n)];
  }
  return Number(((c[0] << 32n) | c[1]) >> 11n) * 2 ** -53;
}

/** Of all of `a` with as many of `b` from `at` on. */
function dot(a: Float64Array, b: Float64Array, at = 0): number {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += a[i]! * b[at + i]!;
  return total;
}

function expertMatmul({ x, weight, bias, order, offsets }: Inputs, { k }: Attrs): Inputs {
  const [, n, d] = weight!.shape as [number, number, number];
  const y = values(order!.data.length, n);
  for (let expert = 0; expert + 1 < offsets!.data.length; expert++)
    for (let p = offsets!.data[expert]!; p < offsets!.data[expert + 1]!; p++) {
      const from = row(x!, k ? Math.floor(order!.data[p]! / (k as number)) : p);
      for (let j = 0; j < n; j++) {
        const at = expert * n + j;
        y.data[p * n + j] = dot(from, weight!.data, at * d) + (bias?.data[at] ?? 0);
      }
    }
  return { y };
}

function expertCombine({ x, place, weights }: Inputs): Inputs {
  const [t, k] = weights!.shape as [number, number];
  const y = values(t, x!.shape[1]!);
  place!.data.forEach((p, i) => {
    if (p < 0) return;
    const to = row(y, Math.floor(i / k));
    const [from, by] = [row(x!, p), weights!.data[i]!];
    for (let j = 0; j < to.length; j++) to[j]! += by * from[j]!;
  });
  return { y };
}

/** erf by its series, and by the continued fraction of erfc where that is long. */
export function erf(x: number): number {
  const z = Math.abs(x);
  if (z > 3) {
    let fraction = z;
    for (let i = 60; i > 0; i--) fraction = z + i / 2 / fraction;
    return Math.sign(x) * (1 - Math.exp(-z * z) / (fraction * Math.sqrt(Math.PI)));
  }
  let term = x;
  let total = x;
  for (let i = 1; Math.abs(term) > 1e-18; i++) total += (term *= (-x * x) / i) / (2 * i + 1);
  return (2 / Math.sqrt(Math.PI)) * total;
}

export const activations: readonly ((x: number) => number)[] = [
  (x) => Math.max(x, 0),
  (x) => (x / 2) * (1 + erf(x / Math.SQRT2)),
  (x) => x * sigmoid(x),
  sigmoid,
];

function activate({ x, factor }: Inputs, { kind }: Attrs): Inputs {
  const f = activations[kind as number]!;
  return { y: { shape: x!.shape, data: x!.data.map((v, i) => f(v) * (factor?.data[i] ?? 1)) } };
}

function jitter({ x, seed }: Inputs, { epsilon }: Attrs): Inputs {
  const key = [...seed!.data] as [number, number];
  const noisy = (v: number, i: number) => v * (1 + (epsilon as number) * (2 * philox(key, i) - 1));
  const y: Values = { shape: x!.shape, data: x!.data.map(noisy) };
  return { y };
}

const rounded = ({ shape, data }: Values, round: Round): Values => ({ shape, data: round(data) });

/** Columns of both halves, or of the only one. */
function gated({ data, shape }: Values, { kind, h }: Attrs): Values {
  const [a, n] = shape as [number, number];
  const [f, size] = [activations[kind as number]!, h as number];
  const y = values(a, size);
  for (let p = 0; p < a; p++)
    for (let j = 0; j < size; j++)
      y.data[p * size + j] = f(data[p * n + j]!) * (n > size ? data[p * n + size + j]! : 1);
  return y;
}

const expertUp = (inputs: Inputs, attrs: Attrs, round: Round): Inputs => ({
  y: gated(rounded(expertMatmul(inputs, attrs)['y']!, round), attrs),
});

const expertDown = ({ place, weights, ...inputs }: Inputs, _: Attrs, round: Round): Inputs =>
  expertCombine({
    x: rounded(expertMatmul(inputs, { k: 0 })['y']!, round),
    place: place!,
    weights: weights!,
  });

function normRoute(inputs: Inputs, attrs: Attrs, round: Round): Inputs {
  const { x, residual, normWeight, weight, bias } = inputs;
  const total = { shape: residual!.shape, data: residual!.data.map((v, i) => v + (x?.data[i] ?? 0)) };
  const exact = rmsNorm(total, normWeight!, attrs['eps'] as number);
  const normed = rounded(exact, round);
  const [t, e] = [normed.shape[0]!, weight!.shape[0]!];
  const logits = values(t, e);
  const router = Array.from({ length: e }, (_, j) => row(weight!, j));
  for (let i = 0; i < t; i++)
    row(logits, i).set(router.map((own, j) => dot(row(normed, i), own) + (bias?.data[j] ?? 0)));
  const { experts, weights } = route({ logits }, attrs);
  return { sum: total, normed: exact, logits, experts: experts!, weights: weights! };
}

/** As if the chosen experts had been sorted already: place j is that of choice j. */
const chosen = (weight: Values, bias: Values | undefined, experts: Values): Inputs => {
  const [, n, d] = weight.shape as [number, number, number];
  const a = experts.data.length;
  const own = values(a, n, d);
  const ownBias = values(a, n);
  experts.data.forEach((expert, p) => {
    row(own, p).set(row(weight, expert));
    if (bias) row(ownBias, p).set(row(bias, expert));
  });
  const count = (length: number) => ({ shape: [length], data: Float64Array.from({ length }, (_, i) => i) });
  return { weight: own, bias: ownBias, order: count(a), offsets: count(a + 1) };
};

function normRouteUp(inputs: Inputs, attrs: Attrs, round: Round): Inputs {
  const { router, routerBias, up, upBias, ...rest } = inputs;
  const routed = normRoute(
    { ...rest, weight: router!, ...(routerBias && { bias: routerBias }) },
    attrs,
    round,
  );
  const entering = { x: rounded(routed['normed']!, round), ...chosen(up!, upBias, routed['experts']!) };
  return { ...routed, hidden: expertUp(entering, attrs, round)['y']! };
}

function expertSum({ hidden, weight, bias, experts, weights }: Inputs, _: Attrs, round: Round): Inputs {
  const places = chosen(weight!, bias, experts!);
  const { shape } = places['order']!;
  const place = { shape, data: places['order']!.data };
  return expertDown({ x: hidden!, ...places, place, weights: weights! }, {}, round);
}

function expertLayerStep({ down, downBias, ...rest }: Inputs, attrs: Attrs, round: Round): Inputs {
  const entered = normRouteUp(rest, { ...attrs, h: down!.shape[2]! }, round);
  const leaving = { hidden: rounded(entered['hidden']!, round), weight: down!, bias: downBias };
  const { experts, weights } = entered;
  return {
    ...entered,
    ...expertSum({ ...leaving, experts, weights } as Inputs, attrs, round),
  };
}

const exactly: Round = (data) => data;
const rounding =
  (reference: (inputs: Inputs, attrs: Attrs, round: Round) => Inputs): Reference =>
  (inputs, attrs, round = exactly) =>
    reference(inputs, attrs, round);

/** By op name, of those that keep values in their dtype on the way. */
export const moeRoundingReferences: Readonly<Record<string, Reference>> = {
  norm_route: rounding(normRoute),
  norm_route_up: rounding(normRouteUp),
  expert_up: rounding(expertUp),
  expert_down: rounding(expertDown),
  expert_sum: rounding(expertSum),
  expert_layer_step: rounding(expertLayerStep),
};

export const moeReferences: Readonly<Record<string, Reference>> = {
  route_experts: route,
  sinkhorn: balance,
  limit_experts: limit,
  sort_experts: sort,
  router_statistics: statistics,
  add_router_totals: addTotals,
  jitter,
  expert_matmul: expertMatmul,
  expert_combine: expertCombine,
  activate,
};
