import type { Device } from '../device';
import type { Routing } from '../nn/moe';
import { Tensor } from '../tensor';
import type { Dense } from './inputs';
import type { Piece } from './pieces';
import { eachToken } from './unpack';

/** What one mixture of experts did with a batch. */
export interface RouterOutput {
  /** i32[batch, length, k]: the experts of each token, best first; -1 at padding, and where one had no room. */
  readonly experts: Tensor;
  /** i32[experts]: how many tokens each expert has seen. */
  readonly load: Tensor;
  /** f32[1]: of the load, in nats; log(experts) is the most. */
  readonly entropy: Tensor;
  /** i32[1]: choices that had no room. */
  readonly dropped: Tensor;
}

interface Seen {
  readonly routing: Routing;
  readonly pieces: readonly Piece[];
}

/** Gathers what the routers of a model do, chunk by chunk. */
export class RouterRecord {
  readonly #device: Device;
  readonly #dense: Dense;
  readonly #layers: Seen[][] = [];
  #pieces: readonly Piece[] | undefined;
  #layer = 0;

  constructor(device: Device, dense: Dense) {
    this.#device = device;
    this.#dense = dense;
  }

  /** Takes what a router did with a chunk; routers come in the order of the layers. */
  see(routing: Routing, pieces: readonly Piece[]): void {
    if (this.#pieces !== pieces) this.#layer = 0;
    this.#pieces = pieces;
    (this.#layers[this.#layer++] ??= []).push({ routing, pieces });
  }

  /** Once all chunks are queued: one output for each layer with experts. */
  async outputs(): Promise<RouterOutput[]> {
    return Promise.all(this.#layers.map((seen) => this.#output(seen)));
  }

  async #output(seen: readonly Seen[]): Promise<RouterOutput> {
    const { batch, length } = this.#dense;
    const k = seen[0]!.routing.experts.shape[1]!;
    const experts = new Int32Array(batch * length * k).fill(-1);
    const load = new Int32Array(seen[0]!.routing.load.shape[0]!);
    let dropped = 0;
    for (const { routing, pieces } of seen) {
      const [ids, counts, lost] = (await Promise.all(
        [routing.experts, routing.load, routing.dropped].map((tensor) => tensor.data()),
      )) as Int32Array[];
      eachToken(pieces, this.#dense, (packed, row, column) =>
        experts.set(ids!.subarray(packed * k, (packed + 1) * k), (row * length + column) * k),
      );
      counts!.forEach((count, i) => (load[i]! += count));
      dropped += lost![0]!;
    }
    const total = load.reduce((sum, count) => sum + count, 0);
    const entropy = load.reduce((sum, n) => (n > 0 ? sum - (n / total) * Math.log(n / total) : sum), 0);
    const ints = (values: Int32Array, shape: readonly number[]) =>
      Tensor.from(values, shape, { device: this.#device });
    return {
      experts: ints(experts, [batch, length, k]),
      load: ints(load, [load.length]),
      entropy: Tensor.from([entropy], [1], { device: this.#device }),
      dropped: ints(Int32Array.of(dropped), [1]),
    };
  }

  dispose(): void {
    for (const { routing } of this.#layers.flat())
      for (const tensor of Object.values(routing) as Tensor[]) tensor.dispose();
  }
}
