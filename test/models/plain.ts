import { cast, scope, type CausalLM } from '../../lib';

/** Mamba (Gu and Dao 2023) as `MambaForCausalLM` spells it, in plain f64 loops, one token after the other. */
export interface PlainConfig {
  readonly vocab_size: number;
  readonly hidden_size: number;
  readonly num_hidden_layers: number;
  readonly state_size: number;
  readonly conv_kernel: number;
  readonly expand: number;
  readonly time_step_rank: number;
  readonly layer_norm_epsilon: number;
  readonly tie_word_embeddings: boolean;
}

type Parameters = ReadonlyMap<string, Float32Array>;
type Vector = readonly number[];

/** All parameters as f32, whatever the model keeps them in. */
export async function parametersOf(model: CausalLM): Promise<Parameters> {
  const values = new Map<string, Float32Array>();
  for (const [name, tensor] of model.parameters) {
    const wide = scope(() =>
      tensor.dtype === 'f32' ? tensor.reshape(tensor.shape) : cast({ x: tensor, dtype: 'f32' }),
    );
    values.set(name, (await wide.data()) as Float32Array);
    wide.dispose();
  }
  return values;
}

const silu = (x: number) => x / (1 + Math.exp(-x));
const softplus = (x: number) => (x > 20 ? x : Math.log1p(Math.exp(x)));

/** W x + b, W [outputs, x.length] */
function linear(x: Vector, weight: Float32Array, bias?: Float32Array): number[] {
  return Array.from({ length: weight.length / x.length }, (_, i) =>
    x.reduce((sum, value, j) => sum + value * weight[i * x.length + j]!, bias?.[i] ?? 0),
  );
}

function rmsNorm(x: Vector, weight: Float32Array, eps: number): number[] {
  const scale = 1 / Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length + eps);
  return x.map((value, i) => value * scale * weight[i]!);
}

/** One layer's mixer: takes its tokens one by one and remembers what it needs. */
function mixer(
  config: PlainConfig,
  parameters: Parameters,
  prefix: string,
): (x: Vector, muted: boolean) => number[] {
  const { state_size: n, conv_kernel: width, time_step_rank: rank } = config;
  const d = Math.trunc(config.expand * config.hidden_size);
  const get = (name: string) => parameters.get(prefix + name)!;
  const past: number[][] = Array.from({ length: width }, () => Array<number>(d).fill(0)); // oldest first
  const h = new Float64Array(d * n);
  return (x, muted) => {
    const xz = linear(x, get('in_proj.weight'), parameters.get(`${prefix}in_proj.bias`));
    past.shift();
    past.push(muted ? Array<number>(d).fill(0) : xz.slice(0, d));
    const conv = get('conv1d.weight'); // [d, 1, width]
    const convBias = parameters.get(`${prefix}conv1d.bias`);
    const u = Array.from({ length: d }, (_, i) =>
      muted
        ? 0
        : silu(past.reduce((sum, row, k) => sum + row[i]! * conv[i * width + k]!, convBias?.[i] ?? 0)),
    );
    const dbc = linear(u, get('x_proj.weight'));
    const delta = linear(dbc.slice(0, rank), get('dt_proj.weight'), get('dt_proj.bias')).map(softplus);
    const [B, C] = [dbc.slice(rank, rank + n), dbc.slice(rank + n)];
    const y = u.map((value, i) => {
      let sum = get('D')[i]! * value;
      for (let j = 0; j < n; j++) {
        const A = -Math.exp(get('A_log')[i * n + j]!);
        const at = i * n + j;
        h[at] = Math.exp(delta[i]! * A) * h[at]! + delta[i]! * B[j]! * value;
        sum += C[j]! * h[at]!;
      }
      return sum * silu(xz[d + i]!);
    });
    return linear(y, get('out_proj.weight'), parameters.get(`${prefix}out_proj.bias`));
  };
}

/**
 * The logits of a sequence, [length · vocab_size]. Where `mask` is 0 the mixers see no input, before
 * the convolution and after it, as in transformers.
 */
export function plainLogits(
  config: PlainConfig,
  parameters: Parameters,
  ids: ArrayLike<number>,
  mask?: readonly number[],
): number[] {
  const { hidden_size: size, layer_norm_epsilon: eps } = config;
  const embeddings = parameters.get('backbone.embeddings.weight')!;
  const head = config.tie_word_embeddings ? embeddings : parameters.get('lm_head.weight')!;
  const layers = Array.from({ length: config.num_hidden_layers }, (_, i) => ({
    norm: parameters.get(`backbone.layers.${i}.norm.weight`)!,
    mix: mixer(config, parameters, `backbone.layers.${i}.mixer.`),
  }));
  return Array.from(ids).flatMap((id, t) => {
    let x: Vector = [...embeddings.subarray(id * size, (id + 1) * size)];
    for (const { norm, mix } of layers) {
      const mixed = mix(rmsNorm(x, norm, eps), mask?.[t] === 0);
      x = x.map((value, i) => value + mixed[i]!);
    }
    return linear(rmsNorm(x, parameters.get('backbone.norm_f.weight')!, eps), head);
  });
}
