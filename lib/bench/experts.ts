import { capture } from '../capture';
import type { CausalLM } from '../generation/causal-lm';
import { MixtureBackbone } from '../models/mixture';
import { seeded } from '../nn/init';
import { activated } from '../nn/experts';
import { MoE, type Routing } from '../nn/moe';
import { copySlots, takeRows, zeroSlots } from '../ops/elementwise';
import { expertCombine } from '../ops/experts';
import { matmul } from '../ops/matmul';
import { rmsNorm } from '../ops/norm';
import { normRoute, routeExperts, sortExperts } from '../ops/routing';
import { scope, Tensor, tensorsIn } from '../tensor';
import type { Bandwidth } from './bandwidth';
import { quantile, timeQueued } from './measure';
import { expertLayers, weightDtype } from './model';
import type { Result } from './result';

interface Layer {
  readonly moe: MoE;
  readonly norm: Tensor;
}

/** Times a model's layers of experts alone, one after the other, so that their weights come from memory. */
export async function benchExperts(
  model: CausalLM,
  name: string,
  tokens: number,
  bandwidth: Bandwidth,
  runs: number,
): Promise<Result> {
  const { device } = model;
  const layers = layersOf(model);
  const dtype = weightDtype(model);
  const random = seeded(2);
  const values = Float32Array.from({ length: tokens * model.config.hiddenSize }, () => random() - 0.5);
  const residual = Tensor.from(values, [tokens, model.config.hiddenSize], { device });
  const { eps } = (model.backbone as MixtureBackbone).parts;
  const entering = ({ norm }: Layer) => ({ residual, normWeight: norm, eps, dtype });
  const each = async (work: (layer: Layer) => void) => {
    const graph = capture(device, () => layers.forEach((layer) => scope(() => work(layer))));
    const { median, p10, p90 } = await timeQueued(device, () => graph.replay(), runs).finally(() =>
      graph.dispose(),
    );
    return {
      median: median / layers.length,
      p10: p10 / layers.length,
      p90: p90 / layers.length,
      runs,
    };
  };
  try {
    const ms = await each((layer) => void layer.moe.layer(entering(layer)));
    const routing = await each((layer) => void routeAlone(layer, entering(layer)));
    const loop: number[] = [];
    for (let run = -1; run < runs; run++) {
      const begin = performance.now();
      for (const layer of layers) {
        const normed = rmsNorm({ x: residual, weight: layer.norm, eps, dtype });
        const y = await loopOverExperts(layer.moe, normed);
        y.dispose();
        normed.dispose();
      }
      await device.stamp();
      if (run >= 0) loop.push((performance.now() - begin) / layers.length);
    }
    const read = await chosenBy(layers, entering);
    const bytes =
      expertLayers(model).reduce((sum, { bytes }, i) => sum + bytes * read[i]!, 0) / layers.length;
    const { size } = expertLayers(model)[0]!;
    return {
      bench: 'experts',
      name: `${name}, ${tokens} tokens`,
      model: name,
      dtype,
      shape: { tokens },
      ms,
      figures: {
        routingMs: routing.median,
        loopMs: quantile(loop, 0.5),
        toLoop: quantile(loop, 0.5) / ms.median,
        expertsRead: read.reduce((sum, n) => sum + n, 0) / read.length,
        bytes,
        toCopy: ms.median / (bytes / bandwidth.copy / 1e6),
        gflopPerSecond: (2 * tokens * size * layers[0]!.moe.config.topK) / ms.median / 1e6,
      },
    };
  } finally {
    residual.dispose();
  }
}

function layersOf(model: CausalLM): Layer[] {
  const { backbone } = model;
  const layers = backbone instanceof MixtureBackbone ? backbone.parts.layers : [];
  const found = layers.flatMap(({ network, networkNorm, norm }) =>
    network instanceof MoE ? [{ moe: network, norm: networkNorm ?? norm }] : [],
  );
  if (found.length === 0) throw new TypeError('bench experts: the model has no layers of experts');
  return found;
}

/** What the layer does before its experts' products: norm, router and the sort by expert. */
function routeAlone(
  { moe }: Layer,
  entering: { readonly residual: Tensor; readonly normWeight: Tensor; readonly eps: number },
): Tensor {
  const { topK: k, router, normalize, experts: e } = moe.config;
  const { experts } = normRoute({
    ...entering,
    weight: moe.router,
    bias: moe.routerBias,
    k,
    sigmoid: router !== 'softmax',
    normalize,
  });
  return experts.shape[0] === 1
    ? experts
    : sortExperts({ experts: experts.reshape([experts.size]), e }).order;
}

async function chosenBy(
  layers: readonly Layer[],
  entering: (layer: Layer) => Parameters<MoE['layer']>[0],
): Promise<number[]> {
  const counts: number[] = [];
  for (const layer of layers) {
    const seen: Routing[] = [];
    const { y, sum } = layer.moe.layer(entering(layer), { visit: (routing) => seen.push(routing) });
    counts.push((await seen[0]!.load.data()).filter((count) => count > 0).length);
    for (const tensor of tensorsIn([y, sum, { ...seen[0] }])) tensor.dispose();
  }
  return counts;
}

/**
 * The plain reference: as the code released with BlackMamba does it, expert by expert, where the
 * host learns which tokens each one has: gather them, two products, weigh and scatter. For
 * mixtures whose tokens have one expert. x [t, dModel] to [t, dModel].
 */
export async function loopOverExperts(moe: MoE, x: Tensor): Promise<Tensor> {
  const { device } = x;
  const { router, experts: count } = moe.config;
  const ints = (values: readonly number[]) =>
    Tensor.from(Int32Array.from(values), [values.length], { device });
  const { experts, weights, y } = scope(() => {
    const logits = matmul({ x, weight: moe.router, bias: moe.routerBias, dtype: 'f32' });
    const { experts, weights } = routeExperts({ logits, sigmoid: router !== 'softmax' });
    const y = Tensor.empty(x.shape, x.dtype, device);
    zeroSlots({ pool: y, slots: ints([...Array(x.shape[0]).keys()]) });
    return { experts, weights, y };
  });
  const chosen = [...(await experts.data())];
  scope(() => {
    const { up, upBias, down, downBias, sizes } = moe.experts;
    const matrix = (all: Tensor, i: number) => all.rows(i, i + 1).reshape(all.shape.slice(1));
    const vector = (all: Tensor | undefined, i: number) => all && matrix(all, i);
    for (let i = 0; i < count; i++) {
      const mine = chosen.flatMap((expert, token) => (expert === i ? [token] : []));
      if (mine.length === 0) continue;
      scope(() => {
        const rows = ints(mine);
        const each = ints([...mine.keys()]);
        const own = takeRows({ x, rows });
        const hidden = activated(matmul({ x: own, weight: matrix(up, i), bias: vector(upBias, i) }), sizes);
        const out = matmul({ x: hidden, weight: matrix(down, i), bias: vector(downBias, i) });
        const weighed = expertCombine({ x: out, place: each, weights: takeRows({ x: weights, rows }) });
        copySlots({ from: weighed, fromSlots: each, to: y, toSlots: rows });
      });
    }
  });
  experts.dispose();
  weights.dispose();
  return y;
}
