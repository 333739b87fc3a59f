/** The gradients of routing and experts, plainly and in f64. */
import { activations, erf } from './moe-reference';
import { logSumExp, row, sum, values, type Attrs, type Inputs, type Values } from './values';

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));

const slopes: readonly ((x: number) => number)[] = [
  (x) => (x > 0 ? 1 : 0),
  (x) => (1 + erf(x / Math.SQRT2)) / 2 + (x * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI),
  (x) => sigmoid(x) * (1 + x * (1 - sigmoid(x))),
  (x) => sigmoid(x) * (1 - sigmoid(x)),
];

function activate({ x, factor, dy }: Inputs, { kind }: Attrs): Inputs {
  const [f, slope] = [activations[kind as number]!, slopes[kind as number]!];
  const given = dy!.data;
  const dfactor = factor ? { shape: factor.shape, data: x!.data.map((v, i) => given[i]! * f(v)) } : values(0);
  const dx = x!.data.map((v, i) => given[i]! * (factor?.data[i] ?? 1) * slope(v));
  return { dx: { shape: x!.shape, data: dx }, dfactor };
}

/** body(expert, place) for every place of every expert. */
function eachPlace(offsets: Values, body: (expert: number, place: number) => void): void {
  for (let expert = 0; expert + 1 < offsets.data.length; expert++)
    for (let p = offsets.data[expert]!; p < offsets.data[expert + 1]!; p++) body(expert, p);
}

function turn({ weight }: Inputs): Inputs {
  const [e, n, d] = weight!.shape as [number, number, number];
  const turned = values(e, d, n);
  turned.data.forEach((_, at) => {
    const [expert, c, r] = [Math.floor(at / (n * d)), Math.floor(at / n) % d, at % n];
    turned.data[at] = weight!.data[(expert * n + r) * d + c]!;
  });
  return { turned };
}

function weightGradient({ dy, x, order, offsets }: Inputs, { k }: Attrs): Inputs {
  const [n, d] = [dy!.shape[1]!, x!.shape[1]!];
  const dweight = values(offsets!.data.length - 1, n, d);
  eachPlace(offsets!, (expert, p) => {
    const from = row(x!, k ? Math.floor(order!.data[p]! / (k as number)) : p);
    const to = row(dweight, expert);
    row(dy!, p).forEach((given, r) => {
      for (let c = 0; c < d; c++) to[r * d + c]! += given * from[c]!;
    });
  });
  return { dweight };
}

function columnSums({ dy, offsets }: Inputs): Inputs {
  const total = values(offsets!.data.length - 1, dy!.shape[1]!);
  eachPlace(offsets!, (expert, p) => row(dy!, p).forEach((v, j) => (row(total, expert)[j]! += v)));
  return { sum: total };
}

function gather({ dx, order }: Inputs, { t }: Attrs): Inputs {
  const total = values(t as number, dx!.shape[1]!);
  const k = order!.data.length / (t as number);
  order!.data.forEach((assignment, p) => {
    if (assignment < 0) return;
    row(dx!, p).forEach((v, c) => (row(total, Math.floor(assignment / k))[c]! += v));
  });
  return { sum: total };
}

function combine({ x, place, weights, dy }: Inputs): Inputs {
  const k = weights!.shape[1]!;
  const [dx, dweights] = [values(...x!.shape), values(...weights!.shape)];
  place!.data.forEach((p, i) => {
    if (p < 0) return;
    const given = row(dy!, Math.floor(i / k));
    const [from, to, weight] = [row(x!, p), row(dx, p), weights!.data[i]!];
    for (let c = 0; c < given.length; c++) {
      to[c] = given[c]! * weight;
      dweights.data[i]! += given[c]! * from[c]!;
    }
  });
  return { dx, dweights };
}

function route({ experts, probs, dweights, dprobs }: Inputs, { sigmoid: squash, normalize }: Attrs): Inputs {
  const dlogits = values(...probs!.shape);
  for (let i = 0; i < probs!.shape[0]!; i++) {
    const p = row(probs!, i);
    const g = dprobs ? row(dprobs, i).slice() : new Float64Array(p.length);
    const chosen = row(experts!, i);
    const total = normalize ? sum(chosen.map((j) => p[j]!)) : 1;
    if (dweights) {
      const given = row(dweights, i);
      const along = normalize ? sum(given.map((v, c) => (v * p[chosen[c]!]!) / total)) : 0;
      chosen.forEach((j, c) => (g[j]! += (given[c]! - along) / total));
    }
    const level = sum(g.map((v, j) => v * p[j]!));
    row(dlogits, i).set(g.map((v, j) => p[j]! * (squash ? v * (1 - p[j]!) : v - level)));
  }
  return { dlogits };
}

function statistics({ logits, experts, dbalance, dz }: Inputs): Inputs {
  const [t, e] = logits!.shape as [number, number];
  const dlogits = values(t, e);
  const f = Array.from({ length: e }, (_, j) => experts!.data.filter((to) => to === j).length);
  const share = f.map((count) => count / (experts!.data.length || 1));
  for (let i = 0; i < t; i++) {
    const whole = logSumExp(row(logits!, i));
    const p = row(logits!, i).map((v) => Math.exp(v - whole));
    const level = sum(p.map((v, j) => v * share[j]!));
    const balance = ((dbalance?.data[0] ?? 0) * e) / t;
    const z = ((dz?.data[0] ?? 0) * 2 * whole) / t;
    row(dlogits, i).set(p.map((v, j) => v * (balance * (share[j]! - level) + z)));
  }
  return { dlogits };
}

/** By op name, for the table in `reference.ts`. */
export const moeGradientReferences: Readonly<Record<string, (inputs: Inputs, attrs: Attrs) => Inputs>> = {
  activate_backward: activate,
  turn_experts: turn,
  expert_weight_gradient: weightGradient,
  expert_column_sums: columnSums,
  expert_gather_backward: gather,
  expert_combine_backward: combine,
  route_experts_backward: route,
  router_statistics_backward: statistics,
};
