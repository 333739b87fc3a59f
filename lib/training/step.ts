import { grad } from '../autograd/grad';
import { capture, type Graph } from '../capture';
import type { Device } from '../device';
import type { Model } from '../models/model';
import { observing, type Observer } from '../op';
import { accumulate, mul } from '../ops/elementwise';
import { keep, scope, Tensor } from '../tensor';
import { countLabels, longestOf, type TrainingBatch } from './batch';
import type { Optimizer } from './optimizer';
import type { CompleteOptions } from './options';
import type { Parameters } from './parameters';
import { RouterLosses, type RouterReport } from './routers';

/** The tensors that a pass reads its batch from. */
interface Inputs {
  readonly ids: Tensor;
  readonly labels: Tensor;
  readonly offsets: Tensor;
  readonly slots: Tensor;
}

/** A pass, recorded for batches of one shape. */
interface Pass extends Inputs {
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
  readonly #routers: RouterLosses | undefined;
  readonly #passes = new Map<string, Pass>();
  #update: Graph | undefined;

  constructor(
    model: Model,
    parameters: Parameters,
    optimizer: Optimizer,
    { routerBalance, routerZ }: Partial<Pick<CompleteOptions, 'routerBalance' | 'routerZ'>> = {},
  ) {
    this.#device = model.device;
    this.#model = model;
    this.#parameters = parameters;
    this.#optimizer = optimizer;
    const { routers } = model.backbone;
    if (routers) {
      const { count, balance, z } = routers;
      const weights = { balance: routerBalance ?? balance, z: routerZ ?? z };
      this.#routers = new RouterLosses(this.#device, { count, ...weights });
    }
    this.#factor = keep(Tensor.from([1], [1], { device: this.#device }));
  }

  /**
   * Queues the gradients of a batch, as a share of `count` labels; it is number `part` of the `parts` of the step
   * after `steps` others. Those of several are added up; those of one take the place of what was there.
   */
  add(batch: TrainingBatch, count: number, steps = 0, part = 0, parts = 1): void {
    const pass = this.#pass(batch.ids.length, batch.offsets, parts === 1);
    if (parts > 1 && part === 0) this.#parameters.clearGradients();
    pass.ids.set(batch.ids);
    pass.labels.set(batch.labels);
    pass.offsets.set(batch.offsets);
    this.#begin(batch, count, steps, part);
    pass.graph.replay();
  }

  /** The same op by op, nothing being recorded as a graph: to see what each takes. */
  addDirectly(batch: TrainingBatch, count: number, steps = 0, part = 0): void {
    this.#begin(batch, count, steps, part);
    scope(() => {
      const ints = (values: Int32Array) => Tensor.from(values, [values.length], { device: this.#device });
      const [ids, labels, offsets] = [ints(batch.ids), ints(batch.labels), ints(batch.offsets)];
      const slots = ints(new Int32Array(batch.offsets.length - 1));
      this.#record({ ids, labels, offsets, slots }, this.#bound(batch.offsets), true);
    });
  }

  /** The same while `observer` is told of each op. */
  observe(observer: Observer, batch: TrainingBatch, count: number, steps: number, part: number): void {
    observing(observer, () => this.addDirectly(batch, count, steps, part));
    this.#optimizer.loss.set(Float32Array.of(0));
  }

  #begin(batch: TrainingBatch, count: number, steps: number, part: number): void {
    this.#factor.set(Float32Array.of(1 / count));
    this.#routers?.begin(countLabels([batch]) / count, steps, part);
  }

  /** Queues the optimizer's step. */
  update(learningRate: number): void {
    this.#optimizer.learningRate.set(Float32Array.of(learningRate));
    const update = () => {
      this.#optimizer.update();
      this.#routers?.update();
    };
    this.#update ??= capture(this.#device, () => scope(update));
    this.#update.replay();
  }

  /** Records the passes of batches of such sequences, for when each is a step by itself. */
  prepare(offsets: Int32Array): void {
    this.#pass(offsets.at(-1)!, offsets, true);
  }

  /** What the routers of the last step that was queued did, if there are any. */
  report(): Promise<RouterReport> | undefined {
    return this.#routers?.report();
  }

  #inputs(tokens: number, offsets: Int32Array): Inputs {
    const ints = (length: number) => keep(Tensor.empty([length], 'i32', this.#device));
    return {
      ids: ints(tokens),
      labels: ints(tokens),
      offsets: ints(offsets.length),
      slots: ints(offsets.length - 1),
    };
  }

  #pass(tokens: number, offsets: Int32Array, alone: boolean): Pass {
    const longest = this.#bound(offsets);
    const key = [tokens, offsets.length, longest, alone].join(':');
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
    const inputs = this.#inputs(tokens, offsets);
    try {
      const graph = capture(this.#device, () => scope(() => this.#record(inputs, longest, alone)));
      const pass = { ...inputs, graph };
      this.#passes.set(key, pass);
      return pass;
    } catch (error) {
      releaseInputs(inputs);
      throw error;
    }
  }

  #bound(offsets: Int32Array): number | undefined {
    return this.#model.backbone.bounded ? boundOf(offsets) : undefined;
  }

  /** `alone`: gradients take the place of those before. */
  #record({ ids, labels, offsets, slots }: Inputs, longest: number | undefined, alone: boolean): void {
    const { leaves, copies } = this.#parameters;
    const { scale, loss } = this.#optimizer;
    const one = (x: Tensor) => x.reshape([1, 1]);
    const factor = mul(one(this.#factor), one(scale)).reshape([1]);
    const routers = this.#routers;
    const packing = {
      ...{ offsets, slots },
      ...(longest !== undefined && { longest }),
      ...(routers && { router: routers.see, seeds: routers.seeds }),
    };
    routers?.open(scale);
    let own: Tensor | undefined; // without what the routers add
    const { value } = grad(
      () => {
        own = this.#model.loss(ids, packing, labels, factor);
        return routers ? routers.close(own) : own;
      },
      leaves.map(({ parameter }) => parameter),
      { into: leaves.map(({ gradient }) => gradient), overwrite: alone, copies },
    );
    accumulate({ x: one(own!), sum: one(loss) });
    value.dispose();
  }

  dispose(): void {
    for (const pass of this.#passes.values()) release(pass);
    this.#update?.dispose();
    this.#routers?.dispose();
    this.#factor.dispose();
  }
}

/** What no sequence is longer than: one of few numbers, so that few passes are recorded. */
function boundOf(offsets: Int32Array): number {
  const longest = longestOf(offsets);
  return Math.min(offsets.at(-1)!, longest % 256 === 0 ? longest : 2 ** Math.ceil(Math.log2(longest)));
}

function releaseInputs({ ids, labels, offsets, slots }: Inputs): void {
  for (const tensor of [ids, labels, offsets, slots]) tensor.dispose();
}

function release(pass: Pass): void {
  pass.graph.dispose();
  releaseInputs(pass);
}
