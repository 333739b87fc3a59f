import { noGrad } from '../autograd/grad';
import type { Device } from '../device';
import type { RouterSetup } from '../models/family';
import type { Routing } from '../nn/moe';
import { add, cast, fill, mul } from '../ops/elementwise';
import { addRouterTotals } from '../ops/routing';
import { keep, Tensor } from '../tensor';

/** What the routers of a model did in a step: means over them and over micro-batches. */
export interface RouterReport {
  /** e · Σ f_e · P_e of each: 1 where loads are even, e where one expert has all. */
  readonly balance: number;
  /** The mean squared logsumexp of the logits. */
  readonly z: number;
  /** Of the choices, as a share of the most there could be: 1 where loads are even. */
  readonly entropy: number;
  /** Choices that had no room, all together. */
  readonly dropped: number;
}

const one = (x: Tensor) => x.reshape([1, 1]);

/**
 * What training adds to a model with routers: their balancing and z-loss, weighed and summed over the
 * routers (Fedus et al. 2021, eq. 4; Zoph et al. 2022, eq. 5), numbers for their noise, and a report.
 */
export class RouterLosses {
  /** i32[routers, 2] */
  readonly seeds: Tensor;
  readonly #share: Tensor; // f32[1]: a micro-batch's part of its step
  readonly #weights: readonly Tensor[]; // f32[1]: of the balancing loss, and of the z-loss
  readonly #totals: Tensor; // f32[5]: see addRouterTotals
  readonly #report: Tensor; // f32[5]: the last step's
  #factors: readonly Tensor[] = [];
  #sum: Tensor | undefined;

  constructor(device: Device, { count, balance, z }: RouterSetup) {
    const f32 = (...values: readonly number[]) => keep(Tensor.from(values, [values.length], { device }));
    this.seeds = keep(Tensor.empty([count, 2], 'i32', device));
    this.#share = f32(1);
    this.#weights = [f32(balance), f32(z)];
    this.#totals = f32(0, 0, 0, 0, 0);
    this.#report = f32(0, 0, 0, 0, 0);
  }

  /** Before a micro-batch: its part of the step's labels. Its noise depends on its number in the training alone. */
  begin(share: number, step: number, part: number): void {
    this.#share.set(Float32Array.of(share));
    const [count] = this.seeds.shape as [number];
    this.seeds.set(
      Int32Array.from({ length: 2 * count }, (_, i) => (i % 2 ? part : (step * count + i / 2) | 0)),
    );
  }

  /** Takes what each router does. Ops only; between `open` and `close`. */
  readonly see = (routing: Routing): void => {
    const { balance, z, entropy, dropped, load } = routing;
    const experts = load.shape[0]!;
    noGrad(() => addRouterTotals({ balance, z, entropy, dropped, totals: this.#totals, experts }));
    [balance, z].forEach((loss, i) => this.#add(mul(one(loss), this.#factors[i]!)));
    for (const tensor of Object.values(routing) as Tensor[]) tensor.dispose();
  };

  #add(loss: Tensor): void {
    const before = this.#sum;
    this.#sum = keep(before ? add(before, loss) : loss);
    before?.dispose();
  }

  /** Before a forward pass whose losses are multiplied by `scale`, f32[1]. Ops only. */
  open(scale: Tensor): void {
    const factor = mul(one(this.#share), one(scale));
    this.#factors = this.#weights.map((weight) => mul(one(weight), factor));
  }

  /** After it: `loss`, f32[1], with those of the routers. */
  close(loss: Tensor): Tensor {
    const sum = this.#sum!;
    this.#sum = undefined;
    const all = add(one(loss), sum).reshape([1]);
    sum.dispose();
    return all;
  }

  /** At a step's end: its totals become the report. Ops only. */
  update(): void {
    const row = (tensor: Tensor) => tensor.reshape([1, 5]);
    cast({ x: row(this.#totals), out: { y: row(this.#report) } });
    fill({ x: row(this.#totals) });
  }

  /** What the last step that was queued did. */
  async report(): Promise<RouterReport> {
    const [balance, z, entropy, dropped, routers] = [...(await this.#report.data())] as [
      number,
      number,
      number,
      number,
      number,
    ];
    return { balance: balance / routers, z: z / routers, entropy: entropy / routers, dropped };
  }

  dispose(): void {
    for (const tensor of [this.seeds, this.#share, ...this.#weights, this.#totals, this.#report])
      tensor.dispose();
  }
}
