import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { optionalJson, readJson, type JsonObject } from '../io/json';
import { familyOf } from '../models';
import type { CommonConfig, Family } from '../models/family';
import { asMambaByte, withoutByteIds } from '../models/mambabyte';

/** What the files of a model's folder say beside its weights. */
export interface ModelFolder {
  /** Whose names the weights have. */
  readonly stored: Family;
  /** Of the model that is made of them. */
  readonly config: CommonConfig;
  readonly generationConfig: JsonObject | undefined;
  readonly isOfBytes: boolean;
}

/**
 * Reads config.json and generation_config.json. `bytes` makes a Mamba a model of bytes that does not say so.
 * @throws FormatError that names the file and field.
 */
export async function readModelFolder(folder: string, bytes = false): Promise<ModelFolder> {
  const { family: stored, config } = familyOf(await readJson(join(folder, 'config.json')));
  const generation = await optionalJson(join(folder, 'generation_config.json'));
  if (!bytes || stored.codec === 'bytes')
    return { stored, config, generationConfig: generation, isOfBytes: stored.codec === 'bytes' };
  const told = asMambaByte(config.json, existsSync(join(folder, 'tokenizer.json')));
  const generationConfig = generation && withoutByteIds(generation);
  return { stored, config: familyOf(told).config, generationConfig, isOfBytes: true };
}
