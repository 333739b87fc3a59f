import { scope, type Tensor } from '../tensor';
import { backward, give } from './grad';
import { alias, isRecording, note, recording, track, variableOf, type Tape } from './tape';

/**
 * `fn(...inputs)`, whose intermediate tensors are computed again on the way back instead of being
 * kept (Chen et al. 2016). Its result depends on `inputs` and on parameters alone, and the second
 * run must compute what the first did.
 */
export function remat(fn: (...inputs: readonly Tensor[]) => Tensor, ...inputs: readonly Tensor[]): Tensor {
  if (!isRecording()) return fn(...inputs);
  const result = recording(undefined, () => scope(() => fn(...inputs)));
  const sources = inputs.map(variableOf);
  const saved = Object.fromEntries(inputs.map((input, i) => [String(i), alias(input)]));
  const again = ({ grad }: { readonly grad: Readonly<Record<string, Tensor | undefined>> }) => {
    const tape: Tape = [];
    const aliases = Object.values(saved);
    aliases.forEach((tensor, i) => sources[i] && track(tensor, sources[i]));
    const output = variableOf(recording(tape, () => scope(() => fn(...aliases))));
    if (output) give(output, grad['result']!, 'remat');
    backward(tape);
    return {};
  };
  note({
    opName: 'remat',
    vjp: again,
    args: saved,
    results: {},
    inputs: {},
    outputs: { result: track(result) },
  });
  return result;
}
