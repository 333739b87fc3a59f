/** What sizes must agree on in ops of experts, forwards and backwards: a complaint where they do not. */
type Size = (name: string) => number | undefined;

export const placesOfRows = (size: Size): string | undefined => {
  const rows = size('t')! * (size('k')! || 1);
  return size('k')! >= 0 && rows === size('a')
    ? undefined
    : `order has ${size('a')} places, expected ${rows}: k, which is ${size('k')}, for each row of x`;
};

/** `has` names the argument of [a, ..]. */
export const rowOfEachWeight =
  (has: string) =>
  (size: Size): string | undefined =>
    size('a') === size('t')! * size('k')!
      ? undefined
      : `${has} has ${size('a')} rows, expected ${size('t')! * size('k')!}: one for each weight`;
