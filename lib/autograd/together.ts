import { scope, type Tensor } from '../tensor';
import { isTracked, record, recording, type Vjp } from './tape';

type Inputs = Readonly<Record<string, Tensor | number | boolean | undefined>>;

/** Of calls that have one rule. */
export interface Together {
  /** For messages. */
  readonly name: string;
  /** Inputs and results that the rule reads. */
  readonly saves: readonly string[];
  readonly vjp: Vjp;
}

/**
 * `fn`, whose calls are one step on the tape with a gradient rule of its own: for what is cheaper to undo
 * together. Its results are by name; what else it makes is not kept.
 */
export const together =
  <
    A extends { readonly [name in keyof A]: Inputs[string] },
    R extends { readonly [name in keyof R]: Tensor },
  >(
    { name, saves, vjp }: Together,
    fn: (args: A) => R,
  ) =>
  (args: A): R => {
    if (!isTracked(args)) return scope(() => fn(args));
    const results = recording(undefined, () => scope(() => fn(args)));
    record({ opName: name, vjp, saves, inPlace: [] }, args, results);
    return results;
  };
