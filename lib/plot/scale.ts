/** From values to places along an axis. */
export interface Scale {
  at(value: number): number;
  /** Values to mark, and what to write at them. */
  readonly ticks: readonly { readonly value: number; readonly label: string }[];
}

/** 1, 2 or 5 times a power of ten: about `count` of them cover `span`. */
function stepOf(span: number, count: number): number {
  const rough = span / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.99)!;
}

/** `value` with the digits that tell it from its neighbours `step` away. */
export function tickLabel(value: number, step = value): string {
  const size = Math.abs(value);
  if (value === 0) return '0';
  if (size >= 1e9 || size < 1e-4) return value.toExponential(step < size ? 1 : 0).replace('e+', 'e');
  const digits = Math.max(0, -Math.floor(Math.log10(Math.abs(step)) + 1e-9));
  return value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** Equal steps; `low` < `high` lie at `from` and `to`, or with `nice` the marks around them do. */
export function linear(
  [low, high]: readonly [number, number],
  [from, to]: readonly [number, number],
  { count = 5, nice = false } = {},
): Scale {
  const step = stepOf(high - low, count);
  if (nice) [low, high] = [Math.floor(low / step) * step, Math.ceil(high / step) * step];
  const ticks: { value: number; label: string }[] = [];
  const first = Math.ceil(low / step - 1e-9);
  for (let i = 0; i <= 2 * count + 2 && (first + i) * step <= high + 1e-9 * step; i++)
    ticks.push({ value: (first + i) * step, label: tickLabel((first + i) * step, step) });
  return { at: (value) => from + ((value - low) / (high - low)) * (to - from), ticks };
}

/** Equal factors; as `linear`, for positive numbers. */
export function logarithmic(
  [low, high]: readonly [number, number],
  [from, to]: readonly [number, number],
  { count = 5, nice = false } = {},
): Scale {
  const [least, most] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  if (nice) [low, high] = [10 ** least, 10 ** Math.max(most, least + 1)];
  const every = Math.max(1, Math.ceil((most - least) / count));
  const factors = most - least <= 2 ? [1, 2, 5] : [1];
  const ticks: { value: number; label: string }[] = [];
  for (let power = least; power <= most; power += every)
    for (const factor of factors) {
      const value = Number(`${factor}e${power}`);
      if (value >= low * 0.999 && value <= high * 1.001) ticks.push({ value, label: tickLabel(value) });
    }
  return {
    at: (value) => from + (Math.log(value / low) / Math.log(high / low)) * (to - from),
    ticks,
  };
}
