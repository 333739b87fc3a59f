/** Every op once more, plainly and in f64: what the kernels are held to. */
import { gradientReferences, roundingGradients } from './gradient-reference';
import { moeGradientReferences } from './moe-gradient-reference';
import { moeReferences, moeRoundingReferences } from './moe-reference';
import { optimizerReferences } from './optimizer-reference';
import { s4dGradientReferences } from './s4d-gradient-reference';
import { s4dReferences } from './s4d-reference';
import { logSumExp, rmsNorm, row, sum, values } from './values';
import type { Attrs, Inputs, Reference, Round, Values } from './values';

export { logSumExp, row, sum, values };
export type { Attrs, Inputs, Values };

const map = (f: (...x: readonly number[]) => number, ...all: readonly Values[]): Values => ({
  shape: all[0]!.shape,
  data: all[0]!.data.map((_, i) => f(...all.map(({ data }) => data[i]!))),
});
const silu = (x: number) => x / (1 + Math.exp(-x));
const softplus = (x: number) => (x > 20 ? x : Math.log1p(Math.exp(x)));

function layerNorm({ x, weight, bias }: Inputs, eps: number): Values {
  const y = values(...x!.shape);
  for (let t = 0; t < x!.shape[0]!; t++) {
    const from = row(x!, t);
    const mean = sum(from) / from.length;
    const scale = 1 / Math.sqrt(sum(from.map((v) => (v - mean) ** 2)) / from.length + eps);
    row(y, t).set(from.map((v, j) => (v - mean) * scale * (weight?.data[j] ?? 1) + (bias?.data[j] ?? 0)));
  }
  return y;
}

function matmul({ x, weight, bias }: Inputs): Values {
  const [m, n] = [x!.shape[0]!, weight!.shape[0]!];
  const k = x!.data.length / m || 0;
  const y = values(m, n);
  for (let i = 0; i < m; i++)
    for (let j = 0; j < n; j++) {
      let total = bias?.data[j] ?? 0;
      for (let l = 0; l < k; l++) total += x!.data[i * k + l]! * weight!.data[j * k + l]!;
      y.data[i * n + j] = total;
    }
  return y;
}

/** The sequences of packed tokens, each with the row of its state, if it has one. */
function* sequences({
  offsets,
  slots,
  state,
}: Inputs): Generator<[number, number, Float64Array | undefined]> {
  for (let s = 0; s + 1 < offsets!.data.length; s++) {
    const slot = slots ? slots.data[s]! : s;
    yield [offsets!.data[s]!, offsets!.data[s + 1]!, state && slot >= 0 ? row(state, slot) : undefined];
  }
}

function causalConv1d(inputs: Inputs, attrs: Attrs): Values {
  const { x, weight, bias } = inputs;
  const [d, w] = weight!.shape as [number, number];
  const y = values(...x!.shape);
  for (const [begin, end, state] of sequences(inputs))
    for (let c = 0; c < d; c++) {
      const past = new Float64Array(w - 1 + end - begin);
      if (state) past.set(state.subarray(c * (w - 1), (c + 1) * (w - 1)));
      for (let t = begin; t < end; t++) {
        past[w - 1 + t - begin] = x!.data[t * d + c]!;
        let total = bias?.data[c] ?? 0;
        for (let k = 0; k < w; k++) total += weight!.data[c * w + k]! * past[t - begin + k]!;
        y.data[t * d + c] = attrs['silu'] ? silu(total) : total;
      }
      state?.set(past.subarray(end - begin), c * (w - 1));
    }
  return y;
}

function selectiveScan(inputs: Inputs, attrs: Attrs): Values {
  const { u, delta, A, B, C, D, z, deltaBias } = inputs;
  const [d, n] = A!.shape as [number, number];
  const y = values(...u!.shape);
  // Where a channel's coefficients begin: at each token those of its group, or always the same.
  const places = ({ shape }: Values, c: number): [number, number] =>
    shape.length === 2 ? [c * n, 0] : [Math.floor(c / (d / shape[1]!)) * n, shape[1]! * n];
  for (const [begin, end, state] of sequences(inputs))
    for (let c = 0; c < d; c++) {
      const h = state ? state.subarray(c * n, (c + 1) * n) : new Float64Array(n);
      const a = row(A!, c);
      const [firstB, nextB] = places(B!, c);
      const [firstC, nextC] = places(C!, c);
      for (let t = begin; t < end; t++) {
        const raw = delta!.data[t * d + c]! + (deltaBias?.data[c] ?? 0);
        const step = attrs['deltaSoftplus'] ? softplus(raw) : raw;
        const input = u!.data[t * d + c]!;
        let total = (D?.data[c] ?? 0) * input;
        for (let j = 0; j < n; j++) {
          const next = Math.exp(step * a[j]!) * h[j]! + step * B!.data[firstB + t * nextB + j]! * input;
          h[j] = next;
          total += next * C!.data[firstC + t * nextC + j]!;
        }
        y.data[t * d + c] = z ? total * silu(z.data[t * d + c]!) : total;
      }
    }
  return y;
}

export interface Filters {
  readonly temperature: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
}

/** The probabilities that a row of logits is sampled with. */
export function distribution(
  logits: readonly number[],
  { temperature, topK = 0, topP = 1, minP = 0 }: Filters,
): number[] {
  const order = logits.map((_, i) => i).sort((a, b) => logits[b]! - logits[a]! || a - b);
  const most = logits[order[0]!]!;
  const weight = logits.map((x) => Math.exp((x - most) / temperature));
  let kept = topK > 0 ? order.slice(0, topK) : order;
  const total = sum(kept.map((i) => weight[i]!));
  let before = 0;
  // The nucleus: the fewest best tokens that hold top-p of what top-k has left.
  kept = kept.filter((i) => {
    const inside = before === 0 || before < topP * total;
    before += weight[i]!;
    return inside;
  });
  kept = kept.filter((i) => weight[i]! >= minP); // the best one has weight 1
  const mass = sum(kept.map((i) => weight[i]!));
  return logits.map((_, i) => (kept.includes(i) ? weight[i]! / mass : 0));
}

/** Greedy rows only; a draw has no one right answer. */
function sampleGreedy({ logits, penalty, stop, quiet, seen, position, token, logprob }: Inputs): void {
  for (let b = 0; b < logits!.shape[0]!; b++) {
    const raw = row(logits!, b);
    const marks = seen && row(seen, b);
    const x = raw.map((v, i) => {
      if (!((marks?.[i >> 5] ?? 0) & (1 << (i & 31)))) return v;
      return v > 0 ? v / penalty!.data[b]! : v * penalty!.data[b]!;
    });
    if (stop && quiet && position!.data[b]! < quiet.data[b]!) for (const id of stop.data) x[id] = -Infinity;
    const best = x.indexOf(x.reduce((a, c) => Math.max(a, c), -Infinity));
    token!.data[b] = best;
    logprob!.data[b] = raw[best]! - logSumExp(raw);
    position!.data[b]! += 1;
    if (marks) marks[best >> 5] = marks[best >> 5]! | (1 << (best & 31));
  }
}

function takeRows(x: Values, rows: Float64Array): Values {
  const y = values(rows.length, ...x.shape.slice(1));
  rows.forEach((from, i) => row(y, i).set(row(x, from)));
  return y;
}

const columns = ({ shape: [rows, width], data }: Values, begin: number, end: number): Values => {
  const y = values(rows!, end - begin);
  for (let i = 0; i < rows!; i++) row(y, i).set(data.subarray(i * width! + begin, i * width! + end));
  return y;
};

/** `round` is applied to what the op keeps in its dtype on the way. */
function mambaStep(inputs: Inputs, round: Round): Inputs {
  const { xz, convWeight, convBias, convState, xProj, dtWeight, scanState, offsets, slots } = inputs;
  const [d, r] = dtWeight!.shape as [number, number];
  const [, n] = inputs['A']!.shape as [number, number];
  const rounded = ({ shape, data }: Values): Values => ({ shape, data: round(data) });
  const group = (begin: number): Values => {
    const { shape, data } = columns(dbc, begin, begin + n);
    return { shape: [shape[0]!, 1, n], data };
  };
  const conv = {
    x: columns(xz!, 0, d),
    weight: convWeight!,
    state: convState!,
    offsets: offsets!,
    slots: slots!,
  };
  const u = rounded(causalConv1d({ ...conv, ...(convBias && { bias: convBias }) }, { silu: true }));
  const dbc = rounded(matmul({ x: u, weight: xProj! }));
  const scan: Inputs = {
    u,
    delta: rounded(matmul({ x: columns(dbc, 0, r), weight: dtWeight! })),
    A: inputs['A']!,
    B: group(r),
    C: group(r + n),
    D: inputs['D']!,
    z: columns(xz!, d, 2 * d),
    deltaBias: inputs['dtBias']!,
    offsets: offsets!,
    slots: slots!,
    state: scanState!,
  };
  return { y: selectiveScan(scan, { deltaSoftplus: true }), u, dbc };
}

/** A convolution and a product of what it gives. */
function convMatmul(inputs: Inputs, round: Round): Inputs {
  const { x, convWeight, convBias, offsets, slots, state, weight } = inputs;
  const given = { ...(convBias && { bias: convBias }), ...(slots && { slots }), ...(state && { state }) };
  const u = causalConv1d({ x: x!, weight: convWeight!, offsets: offsets!, ...given }, { silu: true });
  return { y: matmul({ x: { ...u, data: round(u.data) }, weight: weight! }), u };
}

/** The same with the norm and the projections around it. */
function mambaLayerStep(inputs: Inputs, eps: number, round: Round): Inputs {
  const { x, residual, normWeight, inProj, outProj } = inputs;
  const rounded = ({ shape, data }: Values): Values => ({ shape, data: round(data) });
  const total = x ? map((p, q) => p + q, x, residual!) : residual!;
  const normed = rounded(rmsNorm(total, normWeight!, eps));
  const xz = rounded(matmul({ x: normed, weight: inProj! }));
  const { y, u, dbc } = mambaStep({ ...inputs, xz }, round);
  const gated = rounded(y!);
  return { y: matmul({ x: gated, weight: outProj! }), sum: total, normed, xz, u: u!, dbc: dbc!, gated };
}

/** By op name, of those that keep values in their dtype on the way: `round` does that to them. */
export const roundingReferences: Readonly<Record<string, Reference>> = {
  conv_matmul: (inputs, _attrs, round = (data) => data) => convMatmul(inputs, round),
  mamba_step: (inputs, _attrs, round = (data) => data) => mambaStep(inputs, round),
  mamba_layer_step: (inputs, { eps }, round = (data) => data) => mambaLayerStep(inputs, eps as number, round),
  ...moeRoundingReferences,
  ...roundingGradients,
};

/** By op name. */
export const references: Readonly<Record<string, Reference>> = {
  cast: ({ x }) => ({ y: x! }),
  add: ({ a, b }) => ({ y: map((p, q) => p + q, a!, b!) }),
  mul: ({ a, b }) => ({ y: map((p, q) => p * q, a!, b!) }),
  fill: ({ x }, { value }) => {
    x!.data.fill(Number(value));
    return {};
  },
  accumulate: ({ x, sum }) => {
    sum!.data.forEach((_, i) => (sum!.data[i]! += x!.data[i]!));
    return {};
  },
  scale: ({ x, factor }) => {
    x!.data.forEach((v, i) => (x!.data[i] = v * factor!.data[0]!));
    return {};
  },
  neg_exp: ({ x }) => ({ y: map((v) => -Math.exp(v), x!) }),
  take_rows: ({ x, rows }) => ({ y: takeRows(x!, rows!.data) }),
  zero_slots: ({ pool, slots }) => {
    for (const slot of slots!.data) if (slot >= 0) row(pool!, slot).fill(0);
    return {};
  },
  copy_slots: ({ from, fromSlots, to, toSlots }) => {
    toSlots!.data.forEach((target, i) => {
      const source = fromSlots!.data[i]!;
      if (target >= 0 && source >= 0) row(to!, target).set(row(from!, source));
      else if (target >= 0) row(to!, target).fill(0);
    });
    return {};
  },
  cross_entropy: ({ logits, labels }) => {
    const loss = values(labels!.data.length);
    labels!.data.forEach((label, t) => {
      if (label !== -100) loss.data[t] = logSumExp(row(logits!, t)) - row(logits!, t)[label]!;
    });
    return { loss };
  },
  embedding: ({ ids, weight }) => ({ y: takeRows(weight!, ids!.data) }),
  matmul: (inputs) => ({ y: matmul(inputs) }),
  matmul_add: ({ residual, ...inputs }) => ({ sum: map((p, q) => p + q, matmul(inputs), residual!) }),
  rms_norm: ({ x, weight }, { eps }) => ({ y: rmsNorm(x!, weight!, eps as number) }),
  add_rms_norm: ({ x, residual, weight }, { eps }) => {
    const total = map((p, q) => p + q, x!, residual!);
    return { y: rmsNorm(total, weight!, eps as number), sum: total };
  },
  norm_matmul: ({ x, residual, normWeight, weight, bias }, { eps }) => {
    const total = x ? map((p, q) => p + q, x, residual!) : residual!;
    const normed = rmsNorm(total, normWeight!, eps as number);
    return { y: matmul({ x: normed, weight: weight!, ...(bias && { bias }) }), sum: total, normed };
  },
  layer_norm: (inputs, { eps }) => ({ y: layerNorm(inputs, eps as number) }),
  causal_conv1d: (inputs, attrs) => ({ y: causalConv1d(inputs, attrs) }),
  selective_scan: (inputs, attrs) => ({ y: selectiveScan(inputs, attrs) }),
  sample: (inputs) => {
    sampleGreedy(inputs);
    return {};
  },
  ...roundingReferences,
  ...moeReferences,
  ...moeGradientReferences,
  ...gradientReferences,
  ...optimizerReferences,
  ...s4dReferences,
  ...s4dGradientReferences,
};
