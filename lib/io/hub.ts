import { copyFile, readFile, rm, stat, symlink } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, isAbsolute, join, relative, resolve } from 'node:path';
import { FormatError } from '../errors';
import { makeFolder } from './folder';
import { writeAtomically } from './atomic';
import { isIndex, MAX_INDEX_BYTES, parseIndex, WEIGHTS } from './checkpoint';
import { authorizedFetch, downloadFile, NetworkError, type Progress, type RemoteFile } from './download';
import { readJson } from './json';

export interface ResolveOptions {
  /** Branch, tag or commit; default `main`. */
  readonly revision?: string;
  /** Default: HF_HUB_CACHE, or `hub` in HF_HOME, or `~/.cache/huggingface/hub`. */
  readonly cacheDir?: string;
  /** Takes what the cache has and asks nobody; default HF_HUB_OFFLINE. */
  readonly offline?: boolean;
  /** Default: HF_TOKEN, or the file that `hf auth login` leaves in HF_HOME. */
  readonly token?: string;
  /** Default: HF_ENDPOINT, or https://huggingface.co. */
  readonly endpoint?: string;
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
}

const CONFIG = 'config.json';
const OPTIONAL = [
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
];

/**
 * The folder of a model: `pathOrId` itself where it is one, else the Hugging Face model of that id, downloaded
 * into the cache that Python's huggingface_hub uses too. Files that the cache has are not downloaded again,
 * interrupted downloads continue, and every file is held against its checksum.
 */
export async function resolveModel(pathOrId: string, options: ResolveOptions = {}): Promise<string> {
  const local = await localFolder(pathOrId);
  if (local !== undefined) return local;
  const repository = await describe(pathOrId, options);
  if (options.offline ?? /^(1|on|yes|true)$/i.test(process.env['HF_HUB_OFFLINE'] ?? '')) {
    return cachedSnapshot(repository, 'offline mode forbids a download');
  }
  let commit: string;
  try {
    commit = await findCommit(repository);
  } catch (error) {
    if (error instanceof NetworkError) return cachedSnapshot(repository, error.message);
    throw explain(error, repository);
  }
  return downloadSnapshot(repository, commit).catch((error: unknown) => {
    throw explain(error, repository);
  });
}

async function localFolder(path: string): Promise<string | undefined> {
  if (typeof path !== 'string')
    throw new TypeError(`resolveModel: model is ${typeof path}, expected a string`);
  const expanded = /^~(?=$|[/\\])/.test(path) ? join(homedir(), path.slice(1)) : path;
  const stats = path === '' ? undefined : await stat(expanded).catch(() => undefined);
  if (stats?.isDirectory()) return resolve(expanded);
  const got = `resolveModel: model is ${JSON.stringify(path)}`;
  if (stats) throw new RangeError(`${got}, which is a file, expected the folder that holds it`);
  if (/^[./~]|\\/.test(path) || isAbsolute(path))
    throw new RangeError(`${got}, expected a folder that exists`);
  // The rules of the hub; they also keep the name of the cache folder free of surprises.
  const isId = /^[\w.-]{1,96}\/[\w.-]{1,96}$/.test(path) && !/(^|\/)[.-]|[.-](\/|$)|--|\.\./.test(path);
  if (!isId) throw new RangeError(`${got}, expected a folder that exists or a hub id of the form owner/name`);
  return undefined;
}

interface Repository {
  readonly id: string;
  readonly revision: string;
  /** `models--owner--name` in the cache. */
  readonly folder: string;
  readonly endpoint: string;
  readonly fetch: typeof fetch;
  readonly signal: AbortSignal | undefined;
  readonly onProgress: ResolveOptions['onProgress'];
}

/** Required when it is first needed and not imported: it takes 50 ms that models on disk need not pay. */
function hub() {
  return require('@huggingface/hub') as typeof import('@huggingface/hub');
}

async function describe(id: string, options: ResolveOptions): Promise<Repository> {
  const { revision = 'main', signal, onProgress } = options;
  if (!/^[\w][\w./-]*$/.test(revision) || revision.split('/').includes('..')) {
    throw new RangeError(
      `resolveModel: revision is ${JSON.stringify(revision)}, expected a branch, tag or commit`,
    );
  }
  const endpoint = (options.endpoint ?? (process.env['HF_ENDPOINT'] || 'https://huggingface.co')).replace(
    /\/+$/,
    '',
  );
  if (!/^https?:\/\/[^/]/.test(endpoint)) {
    throw new RangeError(
      `resolveModel: ${options.endpoint === undefined ? 'HF_ENDPOINT' : 'endpoint'} is ${JSON.stringify(endpoint)}, expected an http(s) address`,
    );
  }
  const cacheDir = options.cacheDir ?? hub().getHFHubCachePath();
  return {
    id,
    revision,
    folder: join(cacheDir, hub().getRepoFolderName({ type: 'model', name: id })),
    endpoint,
    fetch: authorizedFetch(endpoint, options.token ?? (await storedToken()), signal),
    signal,
    onProgress,
  };
}

async function storedToken(): Promise<string | undefined> {
  const { HF_TOKEN, HF_TOKEN_PATH, HF_HOME, XDG_CACHE_HOME } = process.env;
  if (HF_TOKEN) return HF_TOKEN.trim();
  const home = HF_HOME ?? join(XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'huggingface');
  const text = await readFile(HF_TOKEN_PATH ?? join(home, 'token'), 'utf8').catch(() => '');
  return text.trim() || undefined;
}

async function findCommit({ id, revision, endpoint, fetch }: Repository): Promise<string> {
  const info = await hub().modelInfo({
    name: id,
    revision,
    additionalFields: ['sha'],
    hubUrl: endpoint,
    fetch,
  });
  if (!/^[0-9a-f]{40}$/.test(info.sha)) throw new FormatError(`${endpoint} names no commit for ${id}`);
  return info.sha;
}

/** Weights come last, so that a snapshot with weights has everything. */
async function downloadSnapshot(repository: Repository, commit: string): Promise<string> {
  const snapshot = join(repository.folder, 'snapshots', commit);
  const found = await listFiles(repository, commit, [CONFIG, ...OPTIONAL, ...WEIGHTS]);
  if (!found.has(CONFIG)) throw new FormatError(`resolveModel: ${repository.id} has no ${CONFIG}`);
  const weights = WEIGHTS.find((name) => found.has(name));
  if (weights === undefined) {
    throw new FormatError(
      `resolveModel: ${repository.id} has no weights, expected one of ${WEIGHTS.join(', ')}`,
    );
  }
  for (const name of [CONFIG, ...OPTIONAL, weights]) {
    const file = found.get(name);
    if (file) await store(repository, snapshot, file);
  }
  if (isIndex(weights)) await downloadShards(repository, commit, snapshot, weights);
  if (repository.revision !== commit) await writeRef(repository, commit);
  return snapshot;
}

async function downloadShards(
  repository: Repository,
  commit: string,
  snapshot: string,
  index: string,
): Promise<void> {
  const shards = await readShards(snapshot, index);
  const found = await listFiles(repository, commit, shards);
  const missing = shards.filter((shard) => !found.has(shard));
  if (missing.length > 0) {
    throw new FormatError(`resolveModel: ${repository.id} lacks ${missing.join(', ')}, which ${index} names`);
  }
  for (const file of found.values()) await store(repository, snapshot, file);
}

async function readShards(snapshot: string, index: string): Promise<string[]> {
  const path = join(snapshot, index);
  const shards = parseIndex(await readJson(path, { maxBytes: MAX_INDEX_BYTES }), path);
  return [...new Set(shards.values())].sort();
}

/** Those of the named files that the repository has, with their sizes and checksums. */
async function listFiles(repository: Repository, commit: string, names: readonly string[]) {
  const { id, endpoint, fetch } = repository;
  const infos = await hub().pathsInfo({
    repo: { type: 'model', name: id },
    paths: [...names],
    revision: commit,
    hubUrl: endpoint,
    fetch,
  });
  const found = new Map<string, RemoteFile>();
  for (const { path, type, oid, size, lfs } of infos) {
    if (type !== 'file' || !names.includes(path)) continue;
    const digest = lfs
      ? ({ kind: 'sha256', hex: lfs.oid } as const)
      : ({ kind: 'git', hex: oid ?? '' } as const);
    const isDigest = new RegExp(`^[0-9a-f]{${lfs ? 64 : 40}}$`).test(digest.hex); // it becomes a file name
    if (!isDigest || !Number.isSafeInteger(size))
      throw new FormatError(`${endpoint} gives no checksum for ${id} ${path}`);
    const url = `${endpoint}/${id}/resolve/${commit}/${path.split('/').map(encodeURIComponent).join('/')}`;
    found.set(path, { name: path, url, size, digest });
  }
  return found;
}

/** Brings a file into the snapshot: a link to a blob, which is downloaded where the cache lacks it. */
async function store(repository: Repository, snapshot: string, file: RemoteFile): Promise<void> {
  const pointer = join(snapshot, file.name);
  if ((await sizeOf(pointer)) === file.size) return;
  const blob = join(repository.folder, 'blobs', file.digest.hex);
  if ((await sizeOf(blob)) !== file.size) {
    await makeFolder(dirname(blob));
    await downloadFile(file, blob, repository);
  }
  await makeFolder(dirname(pointer));
  await rm(pointer, { force: true });
  await symlink(relative(dirname(pointer), blob), pointer).catch(async (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') await copyFile(blob, pointer); // Windows without the right to make links
  });
}

async function sizeOf(path: string): Promise<number | undefined> {
  return (await stat(path).catch(() => undefined))?.size;
}

/** Notes what the revision means now; last of all, so that an older complete snapshot is found until then. */
async function writeRef({ folder, revision }: Repository, commit: string): Promise<void> {
  const path = join(folder, 'refs', revision);
  if ((await readFile(path, 'utf8').catch(() => '')) === commit) return;
  await makeFolder(dirname(path));
  await writeAtomically(path, async (file) => file.writeFile(commit));
}

/** The snapshot that the cache holds; where it is not whole, an error that says what is missing. */
async function cachedSnapshot({ id, revision, folder }: Repository, why: string): Promise<string> {
  const ref = await readFile(join(folder, 'refs', revision), 'utf8').catch(() => revision);
  const snapshot = join(folder, 'snapshots', ref.trim());
  const has = async (name: string) => (await sizeOf(join(snapshot, name))) !== undefined;
  let weights: string = WEIGHTS[0];
  for (const name of [...WEIGHTS].reverse()) if (await has(name)) weights = name;
  const needed = [CONFIG, ...(isIndex(weights) ? await readShards(snapshot, weights) : [weights])];
  const missing: string[] = [];
  for (const name of needed) if (!(await has(name))) missing.push(name);
  if (missing.length === 0) return snapshot;
  throw new Error(
    `resolveModel: ${why}, and the cache at ${folder} lacks ${missing.join(', ')} of ${id} (${revision})`,
  );
}

/** What the hub's status codes mean for somebody who wants a model. */
function explain(error: unknown, { id, revision, endpoint, folder, signal }: Repository): unknown {
  if (signal?.aborted) return signal.reason;
  const {
    statusCode: status,
    code,
    message,
  } = error as { statusCode?: number; code?: string; message: string };
  const as = (what: string) => new Error(`resolveModel: ${what}`, { cause: error });
  const hint = 'set HF_TOKEN, or pass token, to one that may read it';
  if (status === 401)
    return as(`${id} is no folder here and unknown at ${endpoint}, or private (401); ${hint}`);
  if (status === 403)
    return as(`${id} is restricted (403); accept its terms at ${endpoint}/${id} and ${hint}`);
  if (status === 404) {
    return as(`${id} is no folder here, and ${endpoint} has no such model with revision ${revision} (404)`);
  }
  if (status !== undefined) return as(`${endpoint} failed for ${id} (${status}); ${message}`);
  if (error instanceof NetworkError) return as(`${message}; another call continues the download`);
  if (code !== undefined) return as(`${id} cannot be stored in ${folder}; ${message}`);
  return error;
}
