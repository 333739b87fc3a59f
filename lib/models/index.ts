import { kindOf } from '../arguments';
import { FormatError } from '../errors';
import { isObject, kind, type JsonObject } from '../io/json';
import { blackmamba } from './blackmamba';
import { falconMamba } from './falcon-mamba';
import type { CommonConfig, Family } from './family';
import { mamba } from './mamba';
import { mambaByte } from './mambabyte';
import { moeMamba } from './moe-mamba';
import { s4d } from './s4d';
import { stateSpaces } from './state-spaces';

/** Every family that `fromPretrained` knows. */
export const families: readonly Family[] = [
  mamba,
  mambaByte,
  falconMamba,
  moeMamba,
  blackmamba,
  s4d,
  stateSpaces,
];

/** The family that `model_type` names; without `model_type` the first that recognises its own fields. */
export function findFamily(json: JsonObject): Family | undefined {
  const type = json['model_type'];
  return families.find(({ recognises, type: own }) =>
    type === undefined ? recognises?.(json) : !recognises && own === type,
  );
}

/** The family of a model, and the configuration it makes of config.json. */
export function familyOf(json: JsonObject): { readonly family: Family; readonly config: CommonConfig } {
  if (!isObject(json)) throw new TypeError(`fromConfig: json is ${kindOf(json)}, expected an object`);
  const family = findFamily(json);
  if (!family) {
    const names = (has: boolean) =>
      families.filter(({ recognises }) => (recognises === undefined) === has).map((each) => each.type);
    throw new FormatError(
      `config.json: model_type is ${kind(json['model_type'])}, expected one of: ${names(true).join(', ')}; files of ${names(false).join(' and ')} have none`,
    );
  }
  return { family, config: family.config(json) };
}
