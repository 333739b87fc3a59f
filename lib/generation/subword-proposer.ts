import type { Codec } from '../io/codec';
import type { State } from '../models/state';
import { assign } from './branches';
import type { Draft, DraftModel } from './draft-model';
import { noDraft, type Proposer } from './proposer';

/** Tokens that are decoded before a draft, for rules that look back. */
const contextTokens = 6;
/** Bytes that the verifier writes at most before the drafter is asked again, where no word ends. */
const longestWord = 32;
const space = 0x20;
const lineBreak = 0x0a;

/** One row, from where the drafter has consumed it. */
interface Row {
  /** The last tokens that the drafter has consumed. */
  context: number[];
  /** Accepted tokens that it has still to consume. */
  tokens: number[];
  /** Bytes after these that are not tokenized. */
  bytes: number[];
  /** What was proposed last, and where in the bytes each token of it ends. */
  draft: readonly { readonly token: number; readonly end: number }[];
  proposed: number;
  /** Bytes since a rejection, while the verifier finishes the word by itself. */
  alone: number | undefined;
}

/**
 * A drafter of subword tokens for a verifier of bytes (Wang et al. 2024): it proposes the bytes of a few
 * tokens. After a rejection the verifier goes on by itself to the end of the word, so that the drafter
 * begins again where its tokens begin; tokens that were accepted whole stay as they are. The space that
 * ends a word belongs to the token that follows in most vocabularies: it is not tokenized, but held
 * against what the drafter proposes.
 */
export class SubwordProposer implements Proposer {
  readonly bonus = false;
  readonly #drafter: DraftModel;
  readonly #codec: Codec;
  readonly #ends: ReadonlySet<number>;
  readonly #count: number;
  readonly #rows: Row[];

  /** `ends`: tokens that end a text, and that nothing is proposed after. */
  constructor(drafter: DraftModel, codec: Codec, ends: readonly number[], count: number, rows: number) {
    this.#drafter = drafter;
    this.#codec = codec;
    this.#ends = new Set(ends);
    this.#count = count;
    this.#rows = Array.from({ length: rows }, () => ({
      ...{ context: [], tokens: [], bytes: [], draft: [], proposed: 0, alone: undefined },
    }));
  }

  async propose(room: readonly number[]): Promise<readonly Draft[]> {
    const texts = this.#rows.map((row, i) =>
      room[i]! > 0 && row.alone === undefined ? textOf(row.bytes) : undefined,
    );
    const held = texts.map((text) => text?.endsWith(' ') ?? false);
    const { branches } = this.#drafter;
    const requests = this.#rows.map((row, i) => {
      const text = held[i] ? texts[i]!.slice(0, -1) : texts[i];
      if (text === undefined) return undefined;
      const fresh = text === '' ? [] : this.#codec.encode(text, { addSpecialTokens: false });
      const certain = [...row.tokens, ...fresh];
      return branches.length(i) + certain.length === 0 ? undefined : { certain, count: this.#count };
    });
    for (const row of this.#rows) row.draft = [];
    if (requests.every((request) => !request)) return room.map(() => noDraft);
    const drafts = await this.#drafter.draft(requests);
    return requests.map((request, i) => {
      if (!request) return noDraft;
      const row = this.#rows[i]!;
      row.context = [...row.context, ...request.certain].slice(-contextTokens);
      row.tokens = [];
      row.bytes = held[i] ? [space] : [];
      return { tokens: this.#bytesOf(row, drafts[i]!.tokens, room[i]!) };
    });
  }

  /** The bytes of tokens that continue a row, without those that it has already. */
  #bytesOf(row: Row, tokens: readonly number[], room: number): number[] {
    const stream = this.#codec.decodeStream({ skipSpecialTokens: true });
    for (const token of row.context) stream.push(token);
    const bytes: number[] = [];
    const ends: { token: number; end: number }[] = [];
    for (const token of tokens) {
      if (this.#ends.has(token)) break;
      const text = stream.push(token);
      if (text.includes('\ufffd')) break; // no text: these bytes are not what it means
      bytes.push(...Buffer.from(text));
      ends.push({ token, end: bytes.length - row.bytes.length });
    }
    if (!row.bytes.every((byte, i) => byte === bytes[i])) return [];
    const fresh = bytes.slice(row.bytes.length, row.bytes.length + room);
    row.draft = ends;
    row.proposed = fresh.length;
    return fresh;
  }

  said(index: number, said: readonly number[], accepted: number): void {
    const row = this.#rows[index]!;
    const { draft } = row;
    // A token within a character ends nowhere that anyone could go on from.
    const last = draft.findLastIndex(
      ({ end }, i) => end > 0 && end <= accepted && end > (draft[i - 1]?.end ?? 0),
    );
    if (last >= 0) {
      row.tokens = draft.slice(0, last + 1).map(({ token }) => token);
      row.bytes = said.slice(draft[last]!.end);
    } else row.bytes.push(...said);
    const rejected = row.draft.length > 0 && accepted < row.proposed;
    row.draft = [];
    if (rejected) row.alone = 0;
    if (row.alone === undefined) return;
    row.alone += rejected ? said.length - accepted : said.length;
    const byte = said.at(-1);
    if (byte === space || byte === lineBreak || row.alone >= longestWord) row.alone = undefined;
  }

  async finish(state: State): Promise<void> {
    const left = this.#rows.map(({ tokens, bytes }) => {
      const text = Buffer.from(bytes).toString();
      return text === '' ? tokens : [...tokens, ...this.#codec.encode(text, { addSpecialTokens: false })];
    });
    await this.#drafter.branches.catchUp(left);
    assign(state, this.#drafter.branches.state);
  }

  dispose(): void {
    this.#drafter.dispose();
  }
}

/** Bytes as text; undefined while they end within a character. What is no UTF-8 becomes U+FFFD. */
function textOf(bytes: readonly number[]): string | undefined {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  const text = decoder.decode(Uint8Array.from(bytes), { stream: true });
  return decoder.decode() === '' ? text : undefined;
}
