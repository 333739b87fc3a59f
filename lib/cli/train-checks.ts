import { resolve } from 'node:path';
import { tooManyRows } from '../training/windows';
import { UsageError } from './exit';
import { flagOf, type Name, type Settings } from './train-settings';

/** What may differ when a training is gone on with: nothing that would change its numbers. */
const free: ReadonlySet<string> = new Set<Name>([
  ...(['data', 'validation', 'evaluateEvery', 'saveEvery', 'logEvery', 'keep', 'device', 'threads'] as const),
]);

/** Settings that say the same thing twice, and what a pair of them is for. */
const contradictions: readonly (readonly [Name, Name, string])[] = [
  ['steps', 'epochs', 'both say when to end'],
  ['validation', 'validationShare', 'both say what is held out'],
  ['from', 'model', 'the model is that of --from'],
  ...(['family', 'layers', 'width', 'stateSize', 'experts'] as const).map(
    (name) => ['from', name, 'the model is that of --from'] as const,
  ),
  ...(['family', 'layers', 'width', 'stateSize', 'experts'] as const).map(
    (name) => ['model', name, 'the model is that of --model'] as const,
  ),
];

/** What the command line says, and of a config what it does not contradict. */
export function overridden(config: Settings, flags: Settings): Settings {
  const settings: Partial<Record<Name, unknown>> = { ...config };
  for (const [one, other] of contradictions)
    for (const [mine, theirs] of [
      [one, other],
      [other, one],
    ] as const)
      if (flags[mine] !== undefined && flags[theirs] === undefined) delete settings[theirs];
  return { ...settings, ...flags } as Settings;
}

/** @throws UsageError that names two settings which cannot both be meant, or one that would do nothing. */
export function checkSettings(settings: Settings): void {
  const given = (name: Name) => settings[name] !== undefined;
  for (const [one, other, why] of contradictions)
    if (given(one) && given(other))
      throw new UsageError(`${flagOf(other)} is given beside ${flagOf(one)}; ${why}`);
  const idle = (name: Name, unless: boolean, why: string) => {
    if (given(name) && !unless) throw new UsageError(`${flagOf(name)} is given, ${why}`);
  };
  const { dtype, schedule, family, validationShare, batch = 8, microBatches = 1, length = 256 } = settings;
  for (const name of ['lossScale', 'lossScaleInterval'] as const)
    idle(name, dtype === 'f16', `but it is for --dtype f16 alone`);
  idle('minimumLearningRate', schedule !== 'constant', 'but --schedule is constant');
  idle('experts', family === 'moe-mamba' || family === 'blackmamba', `but --family has no experts`);
  idle('tokenizer', family !== 'mambabyte', 'but the tokens of mambabyte are bytes');
  for (const name of ['evaluateEvery', 'keepBest', 'validationBatches'] as const)
    idle(name, validationShare !== 0, 'but --validation-share is 0');
  for (const name of [
    ...(['layers', 'width', 'stateSize', 'experts'] as const),
    ...(['batch', 'microBatches', 'length', 'steps', 'epochs', 'validationBatches'] as const),
    ...(['evaluateEvery', 'saveEvery', 'logEvery', 'keep'] as const),
  ]) {
    const value = settings[name];
    if (value !== undefined && !(Number.isSafeInteger(value) && value >= 1))
      throw new UsageError(`${flagOf(name)} is ${value}, expected a whole number, 1 or more`);
  }
  if (validationShare !== undefined && !(validationShare >= 0 && validationShare < 1))
    throw new UsageError(`--validation-share is ${validationShare}, expected 0 or more and less than 1`);
  if (batch % microBatches !== 0)
    throw new UsageError(
      `--micro-batches is ${microBatches}, expected a divisor of --batch, which is ${batch}`,
    );
  const wrong = tooManyRows(batch / microBatches, length);
  if (wrong !== undefined)
    throw new UsageError(`--batch${microBatches === 1 ? '' : ' over --micro-batches'} ${wrong}`);
}

/** @throws UsageError for a setting that would make the training in `folder` something else than it was. */
export function checkResumed(given: Settings, before: Settings, folder: string): void {
  if (given.out !== undefined && resolve(given.out) !== resolve(folder))
    throw new UsageError(
      `--out is ${given.out}, but --resume goes on in ${folder}; leave --out away, or begin another training by --from ${folder} --out ${given.out}`,
    );
  for (const [name, value] of Object.entries(given)) {
    if (free.has(name) || name === 'out') continue;
    if (JSON.stringify(before[name as Name]) === JSON.stringify(value)) continue;
    throw new UsageError(
      `${flagOf(name as Name)} is given with --resume, which goes on with what was; start anew with --from for another training`,
    );
  }
}
