import type { JsonObject } from '../io/json';
import { mambaBytePresets } from './mambabyte';
import { moeMambaPresets } from './moe-mamba';

/** Models of papers by name: what their config.json would hold. */
export const presets = {
  ...mambaBytePresets,
  'moe-mamba-25m': moeMambaPresets['25M'],
  'moe-mamba-100m': moeMambaPresets['100M'],
} as const satisfies Readonly<Record<string, JsonObject>>;

/**
 * The configuration of a paper's model, for `fromConfig`; change what you like in it.
 * @throws RangeError that lists the names, for one that is not among them.
 */
export function preset(name: keyof typeof presets): JsonObject {
  if (!Object.hasOwn(presets, name)) {
    throw new RangeError(
      `preset: name is ${JSON.stringify(name)}, expected one of ${Object.keys(presets).join(', ')}`,
    );
  }
  return { ...presets[name] };
}
