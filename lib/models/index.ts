import { FormatError } from '../errors';
import { kind, type JsonObject } from '../io/json';
import { falconMamba } from './falcon-mamba';
import type { CommonConfig, Family } from './family';
import { mamba } from './mamba';
import { stateSpaces } from './state-spaces';

/** Every family that `fromPretrained` knows. */
export const families: readonly Family[] = [mamba, falconMamba, stateSpaces];

/**
 * The family that `model_type` names, and the configuration it makes of config.json. Without `model_type` it
 * is the first family that recognises its own fields.
 */
export function familyOf(json: JsonObject): { readonly family: Family; readonly config: CommonConfig } {
  const type = json['model_type'];
  const family = families.find((family) =>
    type === undefined ? family.recognises?.(json) : family.type === type && !family.recognises,
  );
  if (!family) {
    const known = families.filter(({ recognises }) => !recognises).map(({ type }) => type);
    throw new FormatError(
      `config.json: model_type is ${kind(type)}, expected one of: ${known.join(', ')}`,
    );
  }
  return { family, config: family.config(json) };
}
