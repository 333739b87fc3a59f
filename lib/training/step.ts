import { grad } from '../autograd/grad';
import { capture, type Graph } from '../capture';
import type { Device } from '../device';
import type { Model } from '../models/model';
import { accumulate, mul } from '../ops/elementwise';
import { keep, scope, Tensor } from '../tensor';
import { longestOf, type TrainingBatch } from './batch';
import type { Optimizer } from './optimizer';
import type { Parameters } from './parameters';

/** The tensors that a pass reads its batch from, and the pass itself, recorded for batches of one shape. */
interface Pass {
  readonly ids: Tensor;
  readonly labels: Tensor;
  readonly offsets: Tensor;
  readonly slots: Tensor;
  readonly graph: Graph;
}

/** Shapes whose passes are kept: each holds the memory of its activations. */
const mostPasses = 2;

/** Forward and backward passes over a model's parameters, recorded once for each shape of batch. */
export class Passes {
  readonly #device: Device;
  readonly #model: Model;
  readonly #parameters: Parameters;
  readonly #optimizer: Optimizer;
  readonly #factor: Tensor; // f32[1]: 1 / the labels of a step
  readonly #passes = new Map<string, Pass>();
  #update: Graph | undefined;

  constructor(model: Model, parameters: Parameters, optimizer: Optimizer) {
    this.#device = model.device;
    this.#model = model;
    this.#parameters = parameters;
    this.#optimizer = optimizer;
    this.#factor = keep(Tensor.from([1], [1], { device: this.#device }));
  }

  /** Queues the gradients of a batch, as a share of `count` labels, and adds them to those before. */
  add(batch: TrainingBatch, count: number): void {
    const { ids, labels, offsets, graph } = this.#pass(batch.ids.length, batch.offsets);
    this.#factor.set(Float32Array.of(1 / count));
    ids.set(batch.ids);
    labels.set(batch.labels);
    offsets.set(batch.offsets);
    graph.replay();
  }

  /** Queues the optimizer's step. */
  update(learningRate: number): void {
    this.#optimizer.learningRate.set(Float32Array.of(learningRate));
    this.#update ??= capture(this.#device, () => scope(() => this.#optimizer.update()));
    this.#update.replay();
  }

  /** Records the passes of batches of such sequences, for when they come. */
  prepare(offsets: Int32Array): void {
    this.#pass(offsets.at(-1)!, offsets);
  }

  #pass(tokens: number, offsets: Int32Array): Pass {
    const longest = this.#model.backbone.bounded ? boundOf(offsets) : undefined;
    const key = [tokens, offsets.length, longest].join(':');
    const known = this.#passes.get(key);
    if (known) {
      this.#passes.delete(key); // the last used stays longest
      this.#passes.set(key, known);
      return known;
    }
    if (this.#passes.size >= mostPasses) {
      const [oldest, pass] = [...this.#passes][0]!;
      release(pass);
      this.#passes.delete(oldest);
    }
    const ints = (length: number) => keep(Tensor.empty([length], 'i32', this.#device));
    const inputs = {
      ids: ints(tokens),
      labels: ints(tokens),
      offsets: ints(offsets.length),
      slots: ints(offsets.length - 1),
    };
    try {
      const graph = capture(this.#device, () => scope(() => this.#record(inputs, longest)));
      const pass = { ...inputs, graph };
      this.#passes.set(key, pass);
      return pass;
    } catch (error) {
      for (const tensor of Object.values(inputs)) tensor.dispose();
      throw error;
    }
  }

  #record({ ids, labels, offsets, slots }: Omit<Pass, 'graph'>, longest: number | undefined): void {
    const { leaves, copies } = this.#parameters;
    const { scale, loss } = this.#optimizer;
    const one = (x: Tensor) => x.reshape([1, 1]);
    const factor = mul(one(this.#factor), one(scale)).reshape([1]);
    const packing = { offsets, slots, ...(longest !== undefined && { longest }) };
    const { value } = grad(
      () => this.#model.loss(ids, packing, labels, factor),
      leaves.map(({ parameter }) => parameter),
      { into: leaves.map(({ gradient }) => gradient), copies },
    );
    accumulate({ x: one(value), sum: one(loss) });
    value.dispose();
  }

  dispose(): void {
    for (const pass of this.#passes.values()) release(pass);
    this.#update?.dispose();
    this.#factor.dispose();
  }
}

/** What no sequence is longer than: one of few numbers, so that few passes are recorded. */
function boundOf(offsets: Int32Array): number {
  const longest = longestOf(offsets);
  return Math.min(offsets.at(-1)!, longest % 256 === 0 ? longest : 2 ** Math.ceil(Math.log2(longest)));
}

function release({ graph, ids, labels, offsets, slots }: Pass): void {
  graph.dispose();
  for (const tensor of [ids, labels, offsets, slots]) tensor.dispose();
}
