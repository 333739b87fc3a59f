import { checkFunction, checkList } from '../arguments';
import { scope, Tensor } from '../tensor';
import { backward, give, isTensor } from './grad';
import {
  alias,
  derive,
  Derived,
  hold,
  isRecording,
  note,
  recording,
  track,
  valuesOf,
  variableOf,
  type Step,
  type Tape,
} from './tape';

/**
 * `fn(...inputs)`, whose intermediate tensors are computed again on the way back instead of being
 * kept (Chen et al. 2016). Its result depends on `inputs` and on parameters alone, and the second
 * run must compute what the first did.
 */
export function remat(fn: (...inputs: readonly Tensor[]) => Tensor, ...inputs: readonly Tensor[]): Tensor {
  checkFunction('remat', fn);
  checkList('remat', 'inputs', inputs, isTensor, 'tensor');
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

/**
 * Says that `op(args)` gives what `tensor` is, to the bit: while gradients are recorded it is then not kept
 * for the steps that need it, but computed from `args` on the way back, once for those that follow. Where `args`
 * are kept anyway, only time is paid for the memory of `tensor`. Returns `tensor`.
 */
export function derivedBy<A extends object>(tensor: Tensor, op: (args: A) => Tensor, args: A): Tensor {
  if (!isRecording()) return tensor;
  const kept = Object.fromEntries(
    Object.entries(args).map(([name, arg]: [string, unknown]) => [
      name,
      arg instanceof Tensor ? hold(arg) : arg,
    ]),
  ) as Step['args'];
  const derived = new Derived(() => op(valuesOf(kept) as A));
  derive(tensor, derived);
  // A step without gradients: its turn comes when those that need the tensor have had theirs.
  note({ opName: 'derived', vjp: () => ({}), args: kept, results: {}, inputs: {}, outputs: {}, derived });
  return tensor;
}
