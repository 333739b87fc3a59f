/** A channel's states stay on chip: what the registers of a CUDA block can hold. */
const mostStates = 256;

/** A complaint, where a scan has more states than that; `name` is the argument that has them. */
export const tooManyStates = (n: number, name = 'A'): string | undefined =>
  n > mostStates ? `${name} has ${n} states for a channel, expected at most ${mostStates}` : undefined;
