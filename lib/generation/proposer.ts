import type { State } from '../models/state';
import { assign } from './branches';
import type { Draft, DraftModel } from './draft-model';

/** Proposes what may come next. Rows are those of the generation. */
export interface Proposer {
  /** Whether the verifier adds a token of its own to a draft that it accepts whole. */
  readonly bonus: boolean;
  /** A draft for each row, of at most `room` tokens of the verifier; empty where there is none to make. */
  propose(room: readonly number[], wantLogits: boolean): Promise<readonly Draft[]>;
  /** What row `row` said next, and how many tokens of its draft are in it. */
  said(row: number, tokens: readonly number[], accepted: number): void;
  /** Consumes all that was said, and leaves it in `state`. */
  finish(state: State): Promise<void>;
  dispose(): void;
}

export const noDraft: Draft = { tokens: [] };

/** A drafter with the verifier's own tokens. */
export class TokenProposer implements Proposer {
  readonly bonus = true;
  readonly #drafter: DraftModel;
  readonly #count: number;
  /** What each row said that the drafter has not consumed. */
  readonly #said: number[][];

  constructor(drafter: DraftModel, count: number, rows: number) {
    this.#drafter = drafter;
    this.#count = count;
    this.#said = Array.from({ length: rows }, () => []);
  }

  async propose(room: readonly number[], wantLogits: boolean): Promise<readonly Draft[]> {
    const { branches } = this.#drafter;
    const requests = room.map((most, i) => {
      // The verifier's own token comes last, so there is none to propose for it.
      const count = Math.min(this.#count, most - 1);
      const certain = this.#said[i]!;
      return count < 1 || branches.length(i) + certain.length === 0 ? undefined : { certain, count };
    });
    if (requests.every((request) => !request)) return room.map(() => noDraft);
    const drafts = await this.#drafter.draft(requests, wantLogits);
    requests.forEach((request, i) => request && (this.#said[i] = []));
    return drafts;
  }

  said(row: number, tokens: readonly number[]): void {
    this.#said[row]!.push(...tokens);
  }

  async finish(state: State): Promise<void> {
    const { branches } = this.#drafter;
    await branches.catchUp(this.#said);
    assign(state, branches.state);
  }

  dispose(): void {
    this.#drafter.dispose();
  }
}
