import { capture, type Graph } from '../capture';
import type { Batch } from '../nn/mamba';
import type { Model } from '../models/model';
import type { State } from '../models/state';
import { sample } from '../ops/sample';
import { keep, scope, Tensor } from '../tensor';
import { Branches } from './branches';
import { drawTensors } from './draw-tensors';
import type { RowOptions } from './options';

/** What a drafter proposes for one row. */
export interface Draft {
  readonly tokens: readonly number[];
  /** Where they are asked for: the logits that each token was drawn from. */
  readonly logits?: readonly Float32Array[];
}

/** What one row's draft begins with: tokens that have become certain, and how many to propose. */
export interface DraftRequest {
  readonly certain: readonly number[];
  readonly count: number;
}

/** A model that says what may come next, some tokens ahead, from a state in which only what is certain stays. */
export class DraftModel {
  readonly branches: Branches;
  readonly #tensors: Tensor[] = [];
  readonly #input: Tensor; // i32[3 rows]: tokens, positions, slots
  readonly #drawn: Tensor; // i32[rows], a view of its front
  readonly #step: () => Tensor;
  #graph: Graph<Tensor> | undefined;

  /** `state` has two rows for each of `options`, and becomes the drafter's. Penalties and ids to hold back are for the verifier. */
  constructor(model: Model, state: State, options: readonly RowOptions[], useGraph: boolean) {
    const rows = options.map((row) => ({ ...row, repetitionPenalty: 1, minNewTokens: 0 }));
    const n = rows.length;
    this.branches = new Branches(model, state, { rows, stop: [], quiet: rows.map(() => 0) }, useGraph);
    const { device } = model;
    const own = (tensor: Tensor) => {
      this.#tensors.push(keep(tensor));
      return tensor;
    };
    try {
      this.#input = own(Tensor.empty([3 * n], 'i32', device));
      const part = (i: number) => own(this.#input.rows(i * n, (i + 1) * n));
      this.#drawn = part(0);
      const offsets = Int32Array.from({ length: n + 1 }, (_, i) => i);
      const batch: Batch = { offsets: own(Tensor.from(offsets, [n + 1], { device })), slots: part(2) };
      const args = {
        ...drawTensors(device, rows, own),
        position: part(1),
        token: this.#drawn,
        logprob: own(Tensor.empty([n], 'f32', device)),
      };
      this.#step = () =>
        scope(() => {
          const logits = model.head(model.step(this.#drawn, batch, state));
          sample({ ...args, logits });
          return logits;
        });
      if (useGraph) this.#graph = capture(device, this.#step);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Consumes what is certain, and goes on from there by itself. Rows without a request rest. */
  async draft(requests: readonly (DraftRequest | undefined)[], wantLogits = false): Promise<Draft[]> {
    const scanned = await this.branches.scan(
      requests.map((request) => request && { certain: request.certain, tried: [], branch: true }),
    );
    const { vocabSize: v } = this.branches.model.config;
    const lengths = requests.map((_, i) => this.branches.length(i));
    const first = requests.map((_, i) => scanned.tokens[scanned.first(i)]!);
    const found = first.map((token) => [token]);
    const reads: Promise<ArrayLike<number>>[] = [];
    const logits: Promise<ArrayLike<number>>[] = wantLogits ? [scanned.logits.data()] : [];
    const most = Math.max(0, ...requests.map((request) => request?.count ?? 0));
    if (most > 1) {
      const slots = requests.map((request, i) =>
        request && request.count > 1 ? this.branches.triedSlot(i) : -1,
      );
      this.#input.set(Int32Array.from([...first, ...lengths.map((n) => n + 1), ...slots]));
    }
    for (let i = 1; i < most; i++) {
      const own = this.#graph ? undefined : keep(this.#step());
      this.#graph?.replay();
      if (wantLogits) logits.push((own ?? this.#graph!.result).data());
      reads.push(this.#drawn.data());
      own?.dispose();
    }
    // All of them settle: none is left to fail unheard.
    const [steps, rows] = await Promise.all([Promise.all(reads), Promise.all(logits)]);
    for (const tokens of steps) found.forEach((row, i) => row.push(tokens[i]!));
    const place = (step: number, row: number) => (step === 0 ? scanned.first(row) : row);
    return requests.map((request, i) => {
      const count = request?.count ?? 0;
      const tokens = found[i]!.slice(0, count);
      const of = (step: number) =>
        (rows[step] as Float32Array).subarray(place(step, i) * v, (place(step, i) + 1) * v);
      return { tokens, ...(wantLogits && { logits: tokens.map((_, step) => of(step)) }) };
    });
  }

  dispose(): void {
    this.#graph?.result.dispose();
    this.#graph?.dispose();
    for (const tensor of this.#tensors) tensor.dispose();
    this.branches.dispose();
  }
}
