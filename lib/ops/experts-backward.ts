/** What the gradients of the ops of experts are made of. */
import { op } from '../op';

/** The gradients of `activate`: `dx = dy·factor·f'(x)` and `dfactor = dy·f(x)`. */
export const activateBackward = op('activate_backward', {
  in: { x: 'T[t,d]', factor: 'T[t,d]?', dy: 'T[t,d]' },
  attrs: { kind: 0 },
  out: { dx: 'T[t,d]', dfactor: '=factor' },
  check: (size) =>
    [0, 1, 2, 3].includes(size('kind')!) ? undefined : `kind is ${size('kind')}, expected 0, 1, 2 or 3`,
});
