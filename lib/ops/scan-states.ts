/** A channel's states stay on chip: what the registers of a CUDA block can hold. */
const mostStates = 256;

/** A complaint, where a scan has more states than that. */
export const tooManyStates = (n: number): string | undefined =>
  n > mostStates ? `A has ${n} states for a channel, expected at most ${mostStates}` : undefined;
