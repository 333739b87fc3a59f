/** `activate`'s `kind`: ReLU, GELU (the exact one, by erf), SiLU, and the sigmoid, which no expert has. */
export const activations = { relu: 0, gelu: 1, silu: 2, sigmoid: 3 } as const;

const numbers: readonly number[] = Object.values(activations);
const listed = (kinds: readonly number[]) => `${kinds.slice(0, -1).join(', ')} or ${kinds.at(-1)}`;
const oneOf = (kinds: readonly number[], kind: number) =>
  kinds.includes(kind) ? undefined : `kind is ${kind}, expected ${listed(kinds)}`;

/** Complaints about a `kind` that is none. */
export const kindOfActivation = (kind: number): string | undefined => oneOf(numbers, kind);
export const kindOfExpert = (kind: number): string | undefined =>
  oneOf(
    numbers.filter((each) => each !== activations.sigmoid),
    kind,
  );
