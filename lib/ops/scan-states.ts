/** A channel's states stay on chip: what the registers of a CUDA block can hold. */
const mostStates = 256;

/** A complaint, where a scan has more states than that; `name` is the argument that has them. */
export const tooManyStates = (n: number, name = 'A'): string | undefined =>
  n > mostStates ? `${name} has ${n} states for a channel, expected at most ${mostStates}` : undefined;

/** What the sizes of a scan and of its gradient must agree on. */
export const scanComplaint = (size: (name: string) => number | undefined): string | undefined => {
  const d = size('d')!;
  const g = size('g') ?? 1;
  if (d % g !== 0) return `B and C have ${g} groups, expected a divisor of d, which is ${d}`;
  return tooManyStates(size('n')!);
};
