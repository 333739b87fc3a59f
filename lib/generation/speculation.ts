/** What became of a sequence's drafts. */
export interface Speculation {
  /** Tokens that the drafter proposed. */
  readonly drafted: number;
  /** Those of them that are in the text. */
  readonly accepted: number;
  /** Scans of the model: without a drafter there would be one for each token. */
  readonly calls: number;
  /** Scans that verified a draft. */
  readonly blocks: number;
  /** accepted / blocks */
  readonly meanAccepted: number;
}

export const summary = (counts: Omit<Speculation, 'meanAccepted'>): Speculation => ({
  ...counts,
  meanAccepted: counts.blocks === 0 ? 0 : counts.accepted / counts.blocks,
});
