/** The gradients of ops, plainly and in f64. */
import {
  logSumExp,
  rmsNorm as normOf,
  row,
  sum,
  values,
  type Attrs,
  type Inputs,
  type Round,
  type Values,
} from './values';

const sigmoid = (x: number) => 1 / (1 + Math.exp(-x));
const silu = (x: number) => x * sigmoid(x);
const siluSlope = (x: number) => sigmoid(x) * (1 + x * (1 - sigmoid(x)));
const softplus = (x: number) => (x > 20 ? x : Math.log1p(Math.exp(x)));
const like = (x: Values | undefined): Values => (x ? values(...x.shape) : values(0));

function product(left: Values, right: Values, turned: boolean): Values {
  const [m, n] = left.shape as [number, number];
  const k = right.shape[1]!;
  const y = values(turned ? n : m, k); // dyᵀ x, or dy W
  for (let i = 0; i < m; i++) {
    const of = row(left, i);
    for (let j = 0; j < n; j++) {
      const by = of[j]!;
      const to = row(y, turned ? j : i);
      const from = row(right, turned ? i : j);
      for (let c = 0; c < k; c++) to[c]! += by * from[c]!;
    }
  }
  return y;
}

/** y, with `plus` added where it is given. */
function withSum(y: Values, plus: Values | undefined): Values {
  plus?.data.forEach((v, i) => (y.data[i]! += v));
  return y;
}

function columnSums(x: Values): Values {
  const y = values(x.shape[1]!);
  for (let i = 0; i < x.shape[0]!; i++) row(x, i).forEach((v, j) => (y.data[j]! += v));
  return y;
}

function embedding({ dy, ids, plus }: Inputs, { rows }: Attrs): Inputs {
  const dweight = values(rows as number, dy!.shape[1]!);
  ids!.data.forEach((id, i) => row(dy!, i).forEach((v, j) => (row(dweight, id)[j]! += v)));
  return { dweight: withSum(dweight, plus) };
}

function rmsNorm(x: Values, weight: Values, dy: Values, eps: number): { dx: Values; dweight: Values } {
  const [t, d] = x.shape as [number, number];
  const dx = values(t, d);
  const dweight = values(d);
  for (let i = 0; i < t; i++) {
    const [from, of] = [row(x, i), row(dy, i)];
    const r = 1 / Math.sqrt(sum(from.map((v) => v * v)) / d + eps);
    const g = of.map((v, j) => v * weight.data[j]!);
    const along = (sum(g.map((v, j) => v * from[j]!)) / d) * r * r;
    row(dx, i).set(from.map((v, j) => r * (g[j]! - v * along)));
    from.forEach((v, j) => (dweight.data[j]! += of[j]! * v * r));
  }
  return { dx, dweight };
}

function addRmsNorm(inputs: Inputs, { eps }: Attrs): Inputs {
  const { dx, dweight } = rmsNorm(inputs['sum']!, inputs['weight']!, inputs['dy']!, eps as number);
  const { dsum, normed } = inputs;
  normed?.data.set(normOf(inputs['sum']!, inputs['weight']!, eps as number).data);
  const all = { shape: dx.shape, data: dx.data.map((v, i) => v + (dsum?.data[i] ?? 0)) };
  return { dx: all, dresidual: all, dweight };
}

function layerNorm({ x, weight, dy }: Inputs, { eps }: Attrs): Inputs {
  const [t, d] = x!.shape as [number, number];
  const dx = values(t, d);
  const dweight = values(d);
  for (let i = 0; i < t; i++) {
    const [from, of] = [row(x!, i), row(dy!, i)];
    const mean = sum(from) / d;
    const r = 1 / Math.sqrt(sum(from.map((v) => (v - mean) ** 2)) / d + (eps as number));
    const v = from.map((each) => (each - mean) * r);
    const g = of.map((each, j) => each * (weight?.data[j] ?? 1));
    const level = sum(g) / d;
    const along = sum(g.map((each, j) => each * v[j]!)) / d;
    row(dx, i).set(g.map((each, j) => r * (each - level - v[j]! * along)));
    of.forEach((each, j) => (dweight.data[j]! += each * v[j]!));
  }
  return { dx, dweight, dbias: columnSums(dy!) };
}

function causalConv1d({ x, weight, bias, offsets, dy }: Inputs, { silu: squash }: Attrs): Inputs {
  const [d, w] = weight!.shape as [number, number];
  const [dx, dweight, dbias] = [like(x), like(weight), like(bias)];
  for (let s = 0; s + 1 < offsets!.data.length; s++) {
    const begin = offsets!.data[s]!;
    for (let t = begin; t < offsets!.data[s + 1]!; t++) {
      const first = t - w + 1;
      for (let c = 0; c < d; c++) {
        const weights = weight!.data;
        let total = bias?.data[c] ?? 0;
        const least = Math.max(0, begin - first);
        for (let k = least; k < w; k++) total += weights[c * w + k]! * x!.data[(first + k) * d + c]!;
        const slope = dy!.data[t * d + c]! * (squash ? siluSlope(total) : 1);
        if (bias) dbias.data[c]! += slope;
        for (let k = least; k < w; k++) {
          dweight.data[c * w + k]! += slope * x!.data[(first + k) * d + c]!;
          dx.data[(first + k) * d + c]! += slope * weights[c * w + k]!;
        }
      }
    }
  }
  return { dx, dweight, dbias };
}

function selectiveScan(inputs: Inputs, attrs: Attrs): Inputs {
  const { u, delta, A, B, C, D, z, deltaBias, offsets, dy, y: result } = inputs;
  const [d, n] = A!.shape as [number, number];
  const [du, ddelta, dA, dB, dC, dD, dz, ddeltaBias] = [u, delta, A, B, C, D, z, deltaBias].map(like) as [
    Values,
    Values,
    Values,
    Values,
    Values,
    Values,
    Values,
    Values,
  ];
  // Where a channel's coefficients of B or C begin: at each token those of its group, or always the same.
  const place = ({ shape }: Values, t: number, c: number) =>
    shape.length === 2 ? c * n : (t * shape[1]! + Math.floor(c / (d / shape[1]!))) * n;
  for (let s = 0; s + 1 < offsets!.data.length; s++)
    for (let c = 0; c < d; c++) {
      const [begin, end] = [offsets!.data[s]!, offsets!.data[s + 1]!];
      const raw = (t: number) => delta!.data[t * d + c]! + (deltaBias?.data[c] ?? 0);
      const time = (t: number) => (attrs['deltaSoftplus'] ? softplus(raw(t)) : raw(t));
      const [a, da] = [row(A!, c), row(dA, c)];
      const states = new Float64Array((end - begin + 1) * n); // before each token, and at the end
      for (let t = begin; t < end; t++) {
        const [step, b, at] = [time(t), place(B!, t, c), (t - begin) * n];
        const input = step * u!.data[t * d + c]!;
        for (let j = 0; j < n; j++)
          states[at + n + j] = Math.exp(step * a[j]!) * states[at + j]! + input * B!.data[b + j]!;
      }
      const dh = new Float64Array(n);
      for (let t = end - 1; t >= begin; t--) {
        const [step, input, at] = [time(t), u!.data[t * d + c]!, (t - begin) * n];
        const gate = z ? z.data[t * d + c]! : 0;
        const given = dy!.data[t * d + c]!;
        const g = z ? given * silu(gate) : given;
        const [toB, toC] = [place(B!, t, c), place(C!, t, c)];
        let y = (D?.data[c] ?? 0) * input;
        let dstep = 0;
        let dinput = (D?.data[c] ?? 0) * g;
        for (let j = 0; j < n; j++) {
          const [b, out, h] = [B!.data[toB + j]!, C!.data[toC + j]!, states[at + n + j]!];
          const grown = dh[j]! + out * g;
          const decay = Math.exp(step * a[j]!);
          const flow = grown * decay * states[at + j]!;
          y += h * out;
          dC.data[toC + j]! += h * g;
          dB.data[toB + j]! += grown * step * input;
          dstep += flow * a[j]! + grown * b * input;
          dinput += grown * step * b;
          da[j]! += flow * step;
          dh[j] = grown * decay;
        }
        if (z) dz.data[t * d + c] = given * y * siluSlope(gate);
        if (result) result.data[t * d + c] = y * (z ? silu(gate) : 1);
        const slope = dstep * (attrs['deltaSoftplus'] ? sigmoid(raw(t)) : 1);
        du.data[t * d + c] = dinput;
        ddelta.data[t * d + c] = slope;
        if (D) dD.data[c]! += g * input;
        if (deltaBias) ddeltaBias.data[c]! += slope;
      }
    }
  return { du, ddelta, dA, dB, dC, dD, dz, ddeltaBias };
}

function crossEntropy(logits: Values, labels: Values, factor: (t: number) => number): Values {
  const dlogits = values(...logits.shape);
  labels.data.forEach((label, t) => {
    if (label === -100) return;
    const total = logSumExp(row(logits, t));
    row(dlogits, t).set(
      row(logits, t).map((v, j) => factor(t) * (Math.exp(v - total) - (j === label ? 1 : 0))),
    );
  });
  return dlogits;
}

function crossEntropyGradient({ logits, labels, scale }: Inputs): Inputs {
  const loss = values(labels!.data.length);
  labels!.data.forEach((label, t) => {
    if (label !== -100) loss.data[t] = logSumExp(row(logits!, t)) - row(logits!, t)[label]!;
  });
  logits!.data.set(crossEntropy(logits!, labels!, () => scale!.data[0]!).data);
  return { loss };
}

/** By op name, of those that keep values in their dtype on the way: `round` does that to them. */
export const roundingGradients: Readonly<
  Record<string, (inputs: Inputs, attrs: Attrs, round?: Round) => Inputs>
> = {
  conv_project_backward: (inputs, attrs, round = (data) => data) => {
    const dy = withSum(product(inputs['dproduct']!, inputs['projection']!, false), inputs['dy']);
    return causalConv1d({ ...inputs, dy: { shape: dy.shape, data: round(dy.data) } }, attrs);
  },
};

/** By op name. */
export const gradientReferences: Readonly<Record<string, (inputs: Inputs, attrs: Attrs) => Inputs>> = {
  matmul_input_gradient: ({ dy, weight, plus }) => ({ dx: withSum(product(dy!, weight!, false), plus) }),
  matmul_weight_gradient: ({ dy, x, plus }) => ({ dweight: withSum(product(dy!, x!, true), plus) }),
  column_sums: ({ x }) => ({ sum: columnSums(x!) }),
  embedding_backward: embedding,
  rms_norm_backward: ({ x, weight, dy }, { eps }) => ({ ...rmsNorm(x!, weight!, dy!, eps as number) }),
  add_rms_norm_backward: addRmsNorm,
  layer_norm_backward: layerNorm,
  causal_conv1d_backward: causalConv1d,
  ...roundingGradients,
  selective_scan_backward: selectiveScan,
  cross_entropy_backward: ({ logits, labels, dloss }) => ({
    dlogits: crossEntropy(logits!, labels!, (t) => dloss!.data[t]!),
  }),
  cross_entropy_gradient: crossEntropyGradient,
};
