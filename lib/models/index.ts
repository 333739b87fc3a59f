import { kindOf } from '../arguments';
import { FormatError } from '../errors';
import { isObject, kind, type JsonObject } from '../io/json';
import { blackmamba } from './blackmamba';
import type { CommonConfig, Family } from './family';
import { mamba } from './mamba';
import { moeMamba } from './moe-mamba';

/** Every family that `fromPretrained` knows. */
export const families: readonly Family[] = [mamba, moeMamba, blackmamba];

/** The family that `model_type` names, and the configuration it makes of config.json. */
export function familyOf(json: JsonObject): { readonly family: Family; readonly config: CommonConfig } {
  if (!isObject(json)) throw new TypeError(`fromConfig: json is ${kindOf(json)}, expected an object`);
  const named = json['model_type'] !== undefined;
  const family = families.find(({ type, recognizes }) =>
    named ? type === json['model_type'] : recognizes?.(json),
  );
  if (!family) {
    const known = families.map(({ type }) => type).join(', ');
    throw new FormatError(
      `config.json: model_type is ${kind(json['model_type'])}, expected one of: ${known}`,
    );
  }
  return { family, config: family.config(json) };
}
