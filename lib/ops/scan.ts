import type { Call, InputGradients } from '../autograd/tape';
import { op } from '../op';
import type { Tensor } from '../tensor';
import { causalConv1dBackward, selectiveScanBackward } from './scan-backward';
import { scanComplaint, tooManyStates } from './scan-states';

/** What the sizes of a mixer's parameters must satisfy; `has` names what holds x and z. */
function mixerComplaint(size: (name: string) => number | undefined, has: string, of: string) {
  const [d, e, k, w, r, n] = ['d', 'e', 'k', 'w', 'r', 'n'].map((name) => size(name)!);
  if (w === 0) return 'convWeight has no taps, expected 1 or more';
  if (e !== 2 * d!) return `${has} ${e} ${of}, expected 2 d = ${2 * d!}; d is ${d} by convWeight`;
  if (k !== r! + 2 * n!) return `xProj has ${k} rows, expected r + 2 n = ${r! + 2 * n!}`;
  return tooManyStates(n!);
}

/** The gradients of a scan's inputs, from that of its result, which is left in `y` if it is given. */
export function scanGradients({ args, room }: Call, dy: Tensor, y?: Tensor): InputGradients {
  const tensor = (name: string) => args[name] as Tensor;
  // Rows may lie apart where there is one for each token.
  const roomOf = (name: string) => room(name, tensor(name).shape.length === 3 ? 'apart' : undefined);
  const { du, ddelta, dA, dB, dC, dD, dz, ddeltaBias } = selectiveScanBackward({
    u: tensor('u'),
    delta: tensor('delta'),
    A: tensor('A'),
    B: tensor('B'),
    C: tensor('C'),
    D: args['D'] as Tensor | undefined,
    z: args['z'] as Tensor | undefined,
    deltaBias: args['deltaBias'] as Tensor | undefined,
    offsets: tensor('offsets'),
    ...{ dy, y },
    deltaSoftplus: args['deltaSoftplus'] as boolean | undefined,
    out: {
      dA: room('A'),
      dB: roomOf('B'),
      dC: roomOf('C'),
      dD: room('D'),
      dz: room('z', 'apart'),
      ddeltaBias: room('deltaBias'),
    },
  });
  return { u: du, delta: ddelta, A: dA, B: dB, C: dC, D: dD, z: dz, deltaBias: ddeltaBias };
}

/** What the gradients of a convolution are made of, but for that of its result. */
export const convolutionOf = ({ args, room }: Call) => ({
  x: args['x'] as Tensor,
  weight: args['weight'] as Tensor,
  bias: args['bias'] as Tensor | undefined,
  offsets: args['offsets'] as Tensor,
  silu: args['silu'] as boolean | undefined,
  out: { dx: room('x', 'apart'), dweight: room('weight'), dbias: room('bias') },
});

/**
 * The selective scan over packed sequences (Gu and Dao 2023, algorithm 2; ZOH for A, Euler for B):
 * with `δ = softplus(delta + deltaBias)`,
 *
 *     h = exp(δ·A) · h + δ·B·u,   y = C·h + D·u,   y = y · silu(z)
 *
 * Sequences are rows `offsets[i]` to `offsets[i+1]`. Channel c uses group `c / (d / g)` of B and C,
 * which are given per token, or once per channel (time-invariant). `state` is a pool; sequence i
 * starts from and leaves its state in row `slots[i]` (row i without `slots`); a negative slot means
 * none: it starts from zero. Arithmetic is f32. On the CPU full, chunked and step by step give the same
 * bits where `state` is f32 too; a narrower one is rounded at the end of each call, up or down by a hash
 * of the states (docs/decisions/0004-state-dtype.md).
 */
export const selectiveScanPacked = op('selective_scan', {
  in: {
    u: 'T[t,d]',
    delta: 'T[t,d]',
    A: 'f32[d,n]',
    B: 'T[t,g,n]|f32[d,n]',
    C: 'T[t,g,n]|f32[d,n]',
    D: 'f32[d]?',
    z: 'T[t,d]?',
    deltaBias: 'f32[d]?',
    offsets: 'i32[s+1]',
    slots: 'i32[s]?',
    state: 'S[p,d,n]?!',
  },
  attrs: { deltaSoftplus: false },
  out: { y: 'T[t,d]' },
  check: scanComplaint,
  saves: ['u', 'delta', 'A', 'B', 'C', 'D', 'z', 'deltaBias', 'offsets'],
  vjp: (call): InputGradients => scanGradients(call, call.grad['y']!),
});

/**
 * Depthwise causal convolution over packed sequences:
 * `y[t] = act(bias + Σ_k weight[k] · x[t-w+1+k])`, act being silu or nothing. `state` holds the last
 * w-1 inputs of each slot, oldest first; `offsets` and `slots` as in `selectiveScanPacked`.
 */
export const causalConv1dPacked = op('causal_conv1d', {
  in: {
    x: 'T[t,d]',
    weight: 'f32[d,w]',
    bias: 'f32[d]?',
    offsets: 'i32[s+1]',
    slots: 'i32[s]?',
    state: 'T[p,d,w-1]?!',
  },
  attrs: { silu: false },
  out: { y: 'T[t,d]' },
  check: (size) => (size('w') === 0 ? 'weight has no taps, expected 1 or more' : undefined),
  saves: ['x', 'weight', 'bias', 'offsets'],
  vjp: (call): InputGradients => {
    const { dx, dweight, dbias } = causalConv1dBackward({ ...convolutionOf(call), dy: call.grad['y']! });
    return { x: dx, weight: dweight, bias: dbias };
  },
});

/**
 * `causalConv1dPacked` with silu and a product of its result, the start of a Mamba mixer without gradients:
 * `u = silu(conv(x) + convBias)`, rounded to T, and `y = u · weightᵀ`, summed in f32. On the CPU the bits of the
 * two ops. On CUDA u has those bits too; for many tokens of halves (d a multiple of 128, n even and 192 at most,
 * four taps) one kernel on Hopper, which reads x once and u not at all: docs/kernels/prefill.md.
 */
export const convMatmul = op('conv_matmul', {
  in: {
    x: 'T[t,d]',
    convWeight: 'f32[d,w]',
    convBias: 'f32[d]?',
    offsets: 'i32[s+1]',
    slots: 'i32[s]?',
    state: 'T[p,d,w-1]?!',
    weight: 'W[n,d]',
  },
  out: { y: 'T[t,n]', u: 'T[t,d]' },
  check: (size) => (size('w') === 0 ? 'convWeight has no taps, expected 1 or more' : undefined),
});

/**
 * A Mamba mixer between its `in_proj` and its `out_proj` (Gu and Dao 2023, figure 3), for sequences
 * of one token each: `xz` holds x, then z. With `r`, `n` columns of dbc for Δ, B and C each,
 *
 *     u = silu(conv(x)),   dbc = u · xProjᵀ,   y = scan(u, dbc[:r] · dtWeightᵀ, A, B, C, D) · silu(z)
 *
 * as `causalConv1dPacked`, `matmul` and `selectiveScanPacked` (softplus on, `dtBias`) do it, each result
 * rounded to T. `offsets` are 0, 1, .., b; a negative slot has no states. On the CPU the bits are those
 * of the ops; CUDA adds up in an order of its own.
 */
export const mambaStep = op('mamba_step', {
  in: {
    xz: 'T[b,e]',
    convWeight: 'f32[d,w]',
    convBias: 'f32[d]?',
    convState: 'T[p,d,w-1]!',
    xProj: 'W[k,d]',
    dtWeight: 'W[d,r]',
    dtBias: 'f32[d]',
    A: 'f32[d,n]',
    D: 'f32[d]',
    scanState: 'S[p,d,n]!',
    offsets: 'i32[b+1]',
    slots: 'i32[b]',
  },
  out: { y: 'T[b,d]', u: 'T[b,d]', dbc: 'T[b,k]' },
  check: (size) => mixerComplaint(size, 'xz has', 'columns'),
});

/**
 * A layer of Mamba in a decode step, from the norm to `out_proj` (Gu and Dao 2023, figure 3), for
 * sequences of one token each: `sum = residual + x` in f32, or `residual` itself without `x`;
 *
 *     normed = rmsNorm(sum),   xz = normed · inProjᵀ,   gated = mambaStep(xz, ..),   y = gated · outProjᵀ
 *
 * each result rounded to T; `offsets` and `slots` as in `mambaStep`. On the CPU the bits are those of the
 * ops. On CUDA, for one sequence, halves of one type and the sizes of a published model, or for up to 168
 * sequences and 768 columns with states of f32 or of that type, one kernel; in a captured graph one for all layers that follow one another, `expertLayerStep`'s too, as long as none of their
 * outputs was disposed before the last was called. There the rank r is a multiple of 16: m / 16, filled up.
 */
export const mambaLayerStep = op('mamba_layer_step', {
  in: {
    x: 'T[b,m]?',
    residual: 'f32[b,m]',
    normWeight: 'f32[m]',
    inProj: 'W[e,m]',
    convWeight: 'f32[d,w]',
    convBias: 'f32[d]?',
    convState: 'T[p,d,w-1]!',
    xProj: 'W[k,d]',
    dtWeight: 'W[d,r]',
    dtBias: 'f32[d]',
    A: 'f32[d,n]',
    D: 'f32[d]',
    scanState: 'S[p,d,n]!',
    outProj: 'W[m,d]',
    offsets: 'i32[b+1]',
    slots: 'i32[b]',
  },
  attrs: { eps: 1e-5 },
  out: {
    y: 'T[b,m]',
    sum: 'f32[b,m]',
    normed: 'T[b,m]',
    xz: 'T[b,e]',
    u: 'T[b,d]',
    dbc: 'T[b,k]',
    gated: 'T[b,d]',
  },
  check: (size) => mixerComplaint(size, 'inProj has', 'rows'),
});
