/** What references compute with: arrays in f64. */
export interface Values {
  readonly shape: readonly number[];
  readonly data: Float64Array;
}
export type Inputs = Readonly<Record<string, Values>>;
export type Attrs = Readonly<Record<string, number | boolean>>;

/** What an op does to a value that it keeps in its dtype on the way. */
export type Round = (data: Float64Array) => Float64Array;
/** An op in f64: updates in-place inputs, returns outputs. */
export type Reference = (inputs: Inputs, attrs: Attrs, round?: Round) => Inputs;

export const values = (...shape: readonly number[]): Values => ({
  shape,
  data: new Float64Array(shape.reduce((a, b) => a * b, 1)),
});
export const row = ({ shape, data }: Values, i: number): Float64Array => {
  let length = 1;
  for (let axis = 1; axis < shape.length; axis++) length *= shape[axis]!;
  return data.subarray(i * length, (i + 1) * length);
};
export const sum = (x: Iterable<number>) => {
  let total = 0;
  for (const each of x) total += each;
  return total;
};
export const logSumExp = (x: Float64Array) => {
  const most = x.reduce((a, b) => Math.max(a, b), -Infinity);
  return most + Math.log(sum(x.map((each) => Math.exp(each - most))));
};

/** `x · rsqrt(mean(x²) + eps) · weight` of each row. */
export function rmsNorm(x: Values, weight: Values, eps: number): Values {
  const y = values(...x.shape);
  for (let t = 0; t < x.shape[0]!; t++) {
    const from = row(x, t);
    const scale = 1 / Math.sqrt(sum(from.map((v) => v * v)) / from.length + eps);
    row(y, t).set(from.map((v, j) => v * scale * weight.data[j]!));
  }
  return y;
}
