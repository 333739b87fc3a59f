import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { readdir, readFile, rename, rm } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { checkFunction, checkJson, checkNames, kindOf } from '../arguments';
import { FormatError, TrainingError } from '../errors';
import { writeAtomically, writeFully } from '../io/atomic';
import { isFolder, makeFolder } from '../io/folder';
import { isObject, parseJsonObject, type JsonObject } from '../io/json';
import { runs } from '../io/lock';
import { openSafetensors, writeSafetensors } from '../io/safetensors';
import type { Tensor } from '../tensor';
import { checkTrainer, type Trainer } from './trainer';

const version = 4; // 1 had the parameters in other places, 2 no digest of the state, 3 none of the data
const tensorsFile = 'training.safetensors';
const stateFile = 'training.json'; // written last: a folder without it is not complete
const pattern = /^step-(\d+)$/;

/** The tensors from which a training goes on to the same bits. */
function tensorsOf({ parameters, optimizer }: Trainer): ReadonlyMap<string, Tensor> {
  const blocks = parameters.blocks.flatMap(({ parameter, m, v, average }, i) =>
    Object.entries({ parameter, m, v, average }).map(([name, tensor]) => [`${name}.${i}`, tensor] as const),
  );
  const all = [...blocks, ['scaler', optimizer.scaler] as const];
  return new Map(all.flatMap(([name, tensor]) => (tensor ? [[name, tensor]] : [])));
}

/** Names and sizes of the parameters, which must be those of the training that goes on. */
const layoutOf = ({ parameters }: Trainer): string =>
  createHash('sha256')
    .update(JSON.stringify(parameters.leaves.map(({ name, parameter: { shape } }) => [name, shape])))
    .digest('hex');

function check(call: string, folder: unknown, trainer: Trainer): void {
  if (typeof folder !== 'string')
    throw new TypeError(`${call}: folder is ${kindOf(folder)}, expected a path`);
  checkTrainer(call, trainer);
  trainer.checkNotAveraging(call);
}

/** What is written just now, by its folder: one after the other. */
const writing = new Map<string, Promise<unknown>>();

/**
 * Saves all that a training needs to go on, in `folder/step-<n>`, and keeps the last `keep` of them. A
 * folder appears under its name only when it is complete. `data` is a `BatchSource`'s state, or anything else that
 * JSON gives back as it is. Calls at the same time take turns; processes that write into one folder have to agree.
 * @throws TypeError for `data` that JSON does not give back, before anything is written; TrainingError where a step
 * is taken meanwhile, or another process changes the folder.
 */
export async function saveCheckpoint(
  folder: string,
  trainer: Trainer,
  options: { readonly data?: unknown; readonly keep?: number } = {},
): Promise<string> {
  check('saveCheckpoint', folder, trainer);
  checkNames('saveCheckpoint', options, ['data', 'keep'], 'options');
  const { data = null, keep = 2 } = options;
  if (!(Number.isInteger(keep) && keep >= 1))
    throw new RangeError(`saveCheckpoint: keep is ${String(keep)}, expected a whole number, 1 or more`);
  checkJson('saveCheckpoint', data, 'data');
  const own: unknown = JSON.parse(JSON.stringify(data)); // as it is now
  const { steps } = trainer;
  const place = resolve(folder);
  const turn = (writing.get(place) ?? Promise.resolve())
    .catch(() => {})
    .then(() => write(folder, trainer, steps, own, keep));
  writing.set(place, turn);
  try {
    return await turn;
  } finally {
    if (writing.get(place) === turn) writing.delete(place);
  }
}

async function write(
  folder: string,
  trainer: Trainer,
  steps: number,
  data: unknown,
  keep: number,
): Promise<string> {
  const checkSteps = () => {
    if (trainer.steps !== steps)
      throw new TrainingError(
        `saveCheckpoint: trainer has gone on from step ${steps} to ${trainer.steps} meanwhile; wait for the checkpoint before the next step`,
      );
  };
  checkSteps();
  const name = `step-${String(steps).padStart(8, '0')}`;
  const [target, temporary] = [join(folder, name), join(folder, `.${name}.${process.pid}.tmp`)];
  await rm(temporary, { recursive: true, force: true });
  await makeFolder(temporary);
  try {
    const digests: Record<string, string> = {};
    const sources = [...tensorsOf(trainer)].map(([name, tensor]) => ({
      name,
      dtype: 'F32' as const,
      shape: tensor.shape,
      read: async () => {
        const { buffer, byteOffset, byteLength } = await tensor.data();
        const bytes = new Uint8Array(buffer, byteOffset, byteLength);
        digests[name] = sha256(bytes);
        return bytes;
      },
    }));
    const state = { version, steps, layout: layoutOf(trainer), data };
    await writeSafetensors(join(temporary, tensorsFile), sources);
    checkSteps();
    await writeAtomically(join(temporary, stateFile), (file) =>
      writeFully(file, sealed({ ...state, digests })),
    );
    await rm(target, { recursive: true, force: true });
    await rename(temporary, target);
    const all = await findCheckpoints(folder);
    for (const old of all.slice(0, Math.max(0, all.length - keep)))
      await rm(join(folder, old), { recursive: true, force: true });
    await removeUnfinished(folder);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw interfered(error as NodeJS.ErrnoException) ? new Interference(folder, error) : error;
  }
  return target;
}

/** What the system says when something of ours is gone, or something else in its place. */
const interfered = ({ code }: NodeJS.ErrnoException) =>
  code === 'ENOENT' || code === 'ENOTEMPTY' || code === 'EEXIST';

class Interference extends TrainingError {
  constructor(folder: string, cause: unknown) {
    super(
      `saveCheckpoint: ${folder} was changed by another process meanwhile, expected one that writes into it at a time`,
      { cause },
    );
  }
}

/** What `saveCheckpoint` of a process that has died left of a checkpoint. */
async function removeUnfinished(folder: string): Promise<void> {
  for (const name of await readdir(folder)) {
    const pid = /^\.step-\d+\.(\d+)\.tmp$/.exec(name)?.[1];
    if (pid !== undefined && (Number(pid) === process.pid || !runs(Number(pid), null)))
      await rm(join(folder, name), { recursive: true, force: true });
  }
}

/** Bytes that a checkpoint takes. */
export const checkpointBytes = (trainer: Trainer): number =>
  [...tensorsOf(trainer).values()].reduce((sum, { size }) => sum + 4 * size, 0);

/** The names of the complete and damaged checkpoints in a folder, oldest first. */
export async function findCheckpoints(folder: string): Promise<string[]> {
  const names = await readdir(folder).catch(() => [] as string[]);
  const steps = (name: string) => Number(pattern.exec(name)![1]);
  return names.filter((name) => pattern.test(name)).sort((a, b) => steps(a) - steps(b));
}

/** Steps of the newest checkpoint in a folder; 0 where there is none. */
export async function stepsIn(folder: string): Promise<number> {
  const newest = (await findCheckpoints(folder)).at(-1);
  return newest === undefined ? 0 : Number(pattern.exec(newest)![1]);
}

/**
 * Takes up the newest checkpoint in `folder`: undefined where it has none. One that is damaged is passed
 * over, and `onWarning` says so. Returns what was saved as `data`, and the checkpoint's path.
 * @throws FormatError where there is no such folder, when a checkpoint belongs to another model, and when there are
 * some but each is damaged.
 */
export async function loadCheckpoint(
  folder: string,
  trainer: Trainer,
  onWarning: (message: string) => void = () => {},
): Promise<{ readonly data: unknown; readonly path: string } | undefined> {
  check('loadCheckpoint', folder, trainer);
  checkFunction('loadCheckpoint', onWarning, 'onWarning');
  await checkFolder(folder);
  const names = await findCheckpoints(folder);
  for (const name of names.reverse()) {
    const path = join(folder, name);
    try {
      const { steps, layout, data, contents } = await readCheckpoint(path, trainer);
      if (layout !== layoutOf(trainer)) throw new OtherModel(path);
      for (const [tensor, bytes] of contents) await tensor.write(bytes);
      trainer.resumed(steps);
      return { data, path };
    } catch (error) {
      if (error instanceof OtherModel) throw error;
      onWarning(`${path} is damaged and passed over: ${(error as Error).message}`);
    }
  }
  if (names.length > 0) throw new AllDamaged(folder, names.length);
  return undefined;
}

/** @throws FormatError for a path that cannot be meant. */
async function checkFolder(folder: string): Promise<void> {
  const wrong = (what: string) => new FormatError(`loadCheckpoint: folder is ${folder}, ${what}`);
  if (!existsSync(folder)) throw wrong('which does not exist, expected a folder with checkpoints');
  if (!(await isFolder(folder))) throw wrong('which is a file, expected a folder with checkpoints');
  if (pattern.test(basename(resolve(folder))) && existsSync(join(folder, stateFile)))
    throw wrong(`a checkpoint itself, expected the folder that it is in, ${dirname(resolve(folder))}`);
}

/** There are checkpoints, but none that could be gone on from. */
export class AllDamaged extends FormatError {
  constructor(folder: string, count: number) {
    super(
      `${folder}: ${count === 1 ? 'its only checkpoint is' : `all of its ${count} checkpoints are`} damaged; to begin the training anew, move that folder away first, or take another`,
    );
  }
}

class OtherModel extends FormatError {
  constructor(path: string) {
    super(`${path}: its parameters have other names or shapes; it belongs to another model`);
  }
}

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

/** JSON whose last field is the digest of all that is before it. */
function sealed(state: object): Buffer {
  const text = Buffer.from(JSON.stringify(state).slice(0, -1));
  return Buffer.concat([text, Buffer.from(`,"digest":"${sha256(text)}"}\n`)]);
}

/** What `sealed` made. @throws FormatError where a byte is another. */
function unsealed(bytes: Buffer, path: string): JsonObject {
  const state = parseJsonObject(bytes, path);
  if (state['version'] !== version)
    throw new FormatError(`version is ${String(state['version'])}, expected ${version}`);
  const text = bytes.subarray(0, Math.max(0, bytes.lastIndexOf(',"digest":"')));
  if (!bytes.subarray(text.length).equals(Buffer.from(`,"digest":"${sha256(text)}"}\n`)))
    throw new FormatError(`${stateFile} is not what was written`);
  return state;
}

/** Everything is read and checked before anything is written. */
async function readCheckpoint(path: string, trainer: Trainer) {
  const state = unsealed(await readFile(join(path, stateFile)), join(path, stateFile));
  const { steps, layout, digests, data } = state;
  if (!Number.isSafeInteger(steps) || typeof layout !== 'string' || !isObject(digests))
    throw new FormatError(`${stateFile} lacks what it should hold`);
  const contents: (readonly [Tensor, Uint8Array])[] = [];
  if (layout !== layoutOf(trainer)) return { steps: steps as number, layout, data, contents };
  const file = await openSafetensors(join(path, tensorsFile));
  try {
    for (const [name, tensor] of tensorsOf(trainer)) {
      const info = file.tensors.get(name);
      if (!info || info.dtype !== 'F32' || info.shape.join() !== tensor.shape.join())
        throw new FormatError(`tensor ${name} is missing or of another shape`);
      const bytes = new Uint8Array(info.end - info.begin);
      await file.read(info, bytes);
      if (sha256(bytes) !== digests[name]) throw new FormatError(`tensor ${name} is not what was written`);
      contents.push([tensor, bytes]);
    }
  } finally {
    await file.close();
  }
  return { steps: steps as number, layout, data, contents };
}
