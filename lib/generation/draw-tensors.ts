import type { Device } from '../device';
import type { sample } from '../ops/sample';
import { Tensor } from '../tensor';
import { seedWords, type RowOptions } from './options';

type Names = 'temperature' | 'topK' | 'topP' | 'minP' | 'penalty' | 'seed';

/** How each row is drawn, as `sample` takes it; `own` is told of each tensor. */
export function drawTensors(
  device: Device,
  rows: readonly RowOptions[],
  own: (tensor: Tensor) => Tensor,
): Pick<Required<Parameters<typeof sample>[0]>, Names> {
  const n = rows.length;
  const floats = (of: (row: RowOptions) => number) =>
    own(Tensor.from(Float32Array.from(rows.map(of)), [n], { device }));
  const ints = (values: readonly number[], shape: readonly number[]) =>
    own(Tensor.from(Int32Array.from(values), shape, { device }));
  return {
    temperature: floats(({ temperature }) => temperature),
    topK: ints(
      rows.map(({ topK }) => topK),
      [n],
    ),
    topP: floats(({ topP }) => topP),
    minP: floats(({ minP }) => minP),
    penalty: floats(({ repetitionPenalty }) => repetitionPenalty),
    seed: ints(
      rows.flatMap(({ seed }) => seedWords(seed)),
      [n, 2],
    ),
  };
}
