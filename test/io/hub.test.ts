import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { FormatError } from '../../lib/errors';
import { openCheckpoint } from '../../lib/io/checkpoint';
import type { Progress } from '../../lib/io/download';
import { resolveModel, type ResolveOptions } from '../../lib/io/hub';
import { FIXTURES, temporaryFolder } from './folder';
import { COMMIT, HubServer } from './hub-server';

const folder = temporaryFolder();
const WEIGHTS = 'model.safetensors';
let server: HubServer;
let environment: NodeJS.ProcessEnv;

beforeEach(async () => {
  environment = process.env;
  process.env = { ...environment, HF_HOME: folder.at('home') };
  for (const name of Object.keys(process.env))
    if (/^(HF_(?!HOME)|HUGGING)/.test(name)) delete process.env[name];
  server = new HubServer();
  await server.start();
  serve('mamba-text');
});

afterEach(async () => {
  process.env = environment;
  await server.stop();
});

function serve(fixture: string): void {
  server.files.clear();
  for (const name of readdirSync(join(FIXTURES, fixture)))
    server.files.set(name, readFileSync(join(FIXTURES, fixture, name)));
}

const fetchTiny = (options: ResolveOptions = {}) =>
  resolveModel('owner/tiny', { endpoint: server.endpoint, ...options });
const cache = (...names: string[]) => folder.at('home', 'hub', 'models--owner--tiny', ...names);
const partials = () => readdirSync(cache('blobs')).filter((name) => name.endsWith('.incomplete'));

function expectWhole(snapshot: string, names: string[]): void {
  expect(readdirSync(snapshot).sort()).toEqual([...names].sort());
  for (const name of names)
    expect(readFileSync(join(snapshot, name)).equals(server.files.get(name)!)).toBe(true);
}

const TEXT_FILES = [
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  WEIGHTS,
];

describe('folders', () => {
  it('takes a folder that exists', async () => {
    expect(await resolveModel(join(FIXTURES, 'mamba-tiny'))).toBe(join(FIXTURES, 'mamba-tiny'));
    expect(await resolveModel('test/fixtures/mamba-tiny')).toBe(join(FIXTURES, 'mamba-tiny'));
    expect(await resolveModel('~')).toBe(homedir());
  });

  it.each(['./nowhere', '../nowhere', '/no/where', '~/no-such-model-folder', 'no\\where'])(
    'does not take the path %s for a hub id',
    async (path) => {
      await expect(resolveModel(path)).rejects.toThrow(RangeError);
      await expect(resolveModel(path)).rejects.toThrow(/expected a folder that exists$/);
    },
  );

  it.each([
    '',
    'tiny',
    'a/b/c',
    'owner/',
    'owner/..',
    'owner/a--b',
    'own er/tiny',
    'owner/-a',
    'a.b/.c',
    'ü/x',
  ])('refuses the id "%s"', async (id) => {
    await expect(resolveModel(id)).rejects.toThrow(/resolveModel: model is .*expected a folder that exists/);
  });

  it('refuses a file and what is no string', async () => {
    await expect(resolveModel(join(FIXTURES, 'README.md'))).rejects.toThrow(/is a file, expected the folder/);
    await expect(resolveModel(3 as unknown as string)).rejects.toThrow(TypeError);
  });

  it.each<[string, ResolveOptions]>([
    ['revision', { revision: '../main' }],
    ['revision', { revision: 'a/../../b' }],
    ['revision', { revision: '' }],
    ['endpoint', { endpoint: 'huggingface.co' }],
  ])('refuses a bad %s', async (name, options) => {
    await expect(fetchTiny(options)).rejects.toThrow(new RegExp(`resolveModel: ${name} is "`));
  });
});

describe('downloads', () => {
  it('fill the cache in the layout that other tools share', async () => {
    const progress: Progress[] = [];
    const snapshot = await fetchTiny({ onProgress: (step) => progress.push(step) });
    expect(snapshot).toBe(cache('snapshots', COMMIT));
    expectWhole(snapshot, TEXT_FILES);
    expect(readFileSync(cache('refs', 'main'), 'utf8')).toBe(COMMIT);
    expect(readlinkSync(join(snapshot, WEIGHTS))).toMatch(/^\.\.\/\.\.\/blobs\/[0-9a-f]{64}$/);
    expect(readlinkSync(join(snapshot, 'config.json'))).toMatch(/^\.\.\/\.\.\/blobs\/[0-9a-f]{40}$/);
    expect(partials()).toEqual([]);
    expect([...new Set(progress.map(({ file }) => file))]).toEqual(TEXT_FILES);
    const weights = progress.filter(({ file }) => file === WEIGHTS);
    const { size } = statSync(join(snapshot, WEIGHTS));
    expect(weights.at(-1)).toEqual({ file: WEIGHTS, received: size, total: size });
    expect(weights.map(({ received }) => received)).toEqual(
      weights.map(({ received }) => received).sort((a, b) => a - b),
    );
  });

  it('happen once', async () => {
    const snapshot = await fetchTiny();
    server.forget();
    expect(await fetchTiny()).toBe(snapshot);
    expect(server.bodies).toEqual([]);
    expect(server.seen).toHaveLength(2);
  });

  it('fetch only what changed with a new commit', async () => {
    await fetchTiny();
    server.forget();
    server.commit = 'f'.repeat(40);
    server.files.set('config.json', Buffer.from('{"changed":true}'));
    const snapshot = await fetchTiny();
    expect(snapshot).toBe(cache('snapshots', 'f'.repeat(40)));
    expectWhole(snapshot, TEXT_FILES);
    expect(server.bodies).toEqual(['config.json']);
    expect(readFileSync(cache('refs', 'main'), 'utf8')).toBe('f'.repeat(40));
  });

  it('take shards, also from a folder below', async () => {
    serve('mamba-sharded-bf16');
    const index = JSON.parse(server.files.get('model.safetensors.index.json')!.toString());
    for (const [name, shard] of Object.entries<string>(index.weight_map)) {
      if (!shard.includes('00001')) continue;
      index.weight_map[name] = `below/${shard}`;
      server.files.set(`below/${shard}`, server.files.get(shard) ?? server.files.get(`below/${shard}`)!);
    }
    server.files.set('model.safetensors.index.json', Buffer.from(JSON.stringify(index)));
    const snapshot = await fetchTiny();
    const checkpoint = await openCheckpoint(snapshot);
    expect(checkpoint.bytes).toBe(index.metadata.total_size);
    await checkpoint.close();
    expect(readdirSync(snapshot)).not.toContain('expected.safetensors');
    expect(readlinkSync(join(snapshot, 'below', 'model-00001-of-00005.safetensors'))).toMatch(
      /^\.\.\/\.\.\/\.\.\/blobs/,
    );
    server.forget();
    await fetchTiny();
    expect(server.bodies).toEqual([]);
  });

  it('know branches, tags and commits', async () => {
    await fetchTiny({ revision: 'refs/pr/1' });
    expect(readFileSync(cache('refs', 'refs', 'pr', '1'), 'utf8')).toBe(COMMIT);
    await fetchTiny({ revision: COMMIT });
    expect(existsSync(cache('refs', COMMIT))).toBe(false);
  });

  it('go where cacheDir or HF_HUB_CACHE say', async () => {
    expect(await fetchTiny({ cacheDir: folder.at('here') })).toBe(
      folder.at('here', 'models--owner--tiny', 'snapshots', COMMIT),
    );
    process.env['HF_HUB_CACHE'] = folder.at('there');
    process.env['HF_ENDPOINT'] = 'nowhere';
    await expect(resolveModel('owner/tiny')).rejects.toThrow(
      'resolveModel: HF_ENDPOINT is "nowhere", expected an http(s) address',
    );
    process.env['HF_ENDPOINT'] = `${server.endpoint}/`;
    expect(await resolveModel('owner/tiny')).toBe(
      folder.at('there', 'models--owner--tiny', 'snapshots', COMMIT),
    );
  });

  it('replace a file in the snapshot that is no longer whole', async () => {
    const snapshot = await fetchTiny();
    rmSync(join(snapshot, 'config.json'));
    writeFileSync(join(snapshot, 'config.json'), '{');
    server.forget();
    await fetchTiny();
    expectWhole(snapshot, TEXT_FILES);
    expect(lstatSync(join(snapshot, 'config.json')).isSymbolicLink()).toBe(true);
    expect(server.bodies).toEqual([]); // the blob was still there
  });

  it('of one model at the same time do each other no harm', async () => {
    server.pause = 20;
    const [one, two, three] = await Promise.all([fetchTiny(), fetchTiny(), fetchTiny()]);
    expect([two, three]).toEqual([one, one]);
    expectWhole(one!, TEXT_FILES);
    expect(partials()).toEqual([]);
  });
});

describe('interruptions', () => {
  it('by an abort keep what arrived, and the next call continues there', async () => {
    const controller = new AbortController();
    server.pause = 10_000;
    server.onBody = () => setTimeout(() => controller.abort(), 100);
    await expect(fetchTiny({ signal: controller.signal })).rejects.toThrow(/abort/);
    server.pause = 0;
    server.onBody = () => {};
    const weights = new AbortController();
    const stopped = fetchTiny({
      signal: weights.signal,
      onProgress: ({ file, received }) =>
        file === WEIGHTS && received > 100_000 && weights.abort(new Error('enough')),
    });
    await expect(stopped).rejects.toThrow('enough');
    const [partial] = partials();
    const { size } = statSync(cache('blobs', partial!));
    expect(size).toBeGreaterThan(100_000);
    expect(existsSync(cache('refs', 'main'))).toBe(false);

    server.forget();
    const progress: Progress[] = [];
    const snapshot = await fetchTiny({ onProgress: (step) => progress.push(step) });
    expectWhole(snapshot, TEXT_FILES);
    expect(server.bodies).toEqual([WEIGHTS]);
    expect(server.cdnSeen.map(({ range }) => range)).toEqual([`bytes=${size}-`]);
    expect(progress[0]!.received).toBeGreaterThan(size);
    expect(partials()).toEqual([]);
  });

  it('by a broken connection are mended within one call', async () => {
    server.disturb(WEIGHTS, { cut: 100_000 }, { status: 503 }, { cut: 50_000 });
    const snapshot = await fetchTiny();
    expectWhole(snapshot, TEXT_FILES);
    expect(server.cdnSeen.map(({ range }) => range)).toEqual([
      undefined,
      'bytes=100000-',
      'bytes=100000-',
      'bytes=150000-',
    ]);
  });

  it('end in an error when nothing more arrives', async () => {
    server.disturb(WEIGHTS, ...Array.from({ length: 5 }, () => ({ cut: 0 })));
    await expect(fetchTiny()).rejects.toThrow(
      /model.safetensors: connection broke at byte 0: .*continues the download/,
    );
    expectWhole(await fetchTiny(), TEXT_FILES);
  });

  it('start again where the server ignores ranges', async () => {
    server.ignoreRange = true;
    server.disturb(WEIGHTS, { cut: 100_000 });
    expectWhole(await fetchTiny(), TEXT_FILES);
    expect(server.cdnSeen.map(({ range }) => range)).toEqual([undefined, 'bytes=100000-']);
  });

  it('leave garbage behind that is not used', async () => {
    await fetchTiny();
    const snapshot = cache('snapshots', COMMIT);
    const blob = join(snapshot, readlinkSync(join(snapshot, WEIGHTS)));
    rmSync(blob);
    writeFileSync(`${blob}.incomplete`, Buffer.alloc(2_000_000));
    expectWhole(await fetchTiny(), TEXT_FILES);
  });

  it.each([
    ['weights', WEIGHTS, () => server.disturb(WEIGHTS, { corrupt: true })],
    ['other files', 'config.json', () => server.disturb('config.json', { corrupt: true })],
  ])('by damage in transit are found: %s', async (_, name, prepare) => {
    prepare();
    const error = await fetchTiny().catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(FormatError);
    expect((error as Error).message).toMatch(new RegExp(`^${name}: checksum is .*, expected .*deleted`));
    expect(partials()).toEqual([]);
    expect(existsSync(cache('snapshots', COMMIT, name))).toBe(false);
    expectWhole(await fetchTiny(), TEXT_FILES);
  });

  it('refuse more bytes than were announced', async () => {
    const content = server.files.get(WEIGHTS)!;
    server.onBody = () => server.files.set(WEIGHTS, Buffer.concat([content, content]));
    await expect(fetchTiny()).rejects.toThrow(/server sent more than the \d+ bytes it announced/);
    expect(partials()).toEqual([]);
  });
});

describe('tokens', () => {
  it('go to the hub and to no other host', async () => {
    server.token = 'secret-of-any-form';
    await fetchTiny({ token: server.token });
    expect(new Set(server.seen.map(({ authorization }) => authorization))).toEqual(
      new Set(['Bearer secret-of-any-form']),
    );
    expect(server.cdnSeen.map(({ authorization }) => authorization)).toEqual([undefined]);
  });

  it('come from HF_TOKEN, or from the file of a login', async () => {
    server.token = 'hf_one';
    process.env['HF_TOKEN'] = ' hf_one\n';
    await fetchTiny();
    delete process.env['HF_TOKEN'];
    server.token = 'hf_two';
    await expect(fetchTiny()).rejects.toThrow(/401/);
    mkdirSync(folder.at('home'), { recursive: true });
    writeFileSync(folder.at('home', 'token'), 'hf_two\n');
    await fetchTiny();
  });

  it('are asked for by name', async () => {
    server.token = 'hf_one';
    await expect(fetchTiny()).rejects.toThrow(
      /owner\/tiny is no folder here and unknown at .*, or private \(401\); set HF_TOKEN/,
    );
  });
});

describe('pickled weights', () => {
  it('are downloaded where there are no others', async () => {
    serve('mamba-ssm-bin');
    server.files.delete('expected.safetensors');
    const names = ['config.json', 'pytorch_model.bin'];
    const snapshot = await fetchTiny();
    expectWhole(snapshot, names);
    expect(await fetchTiny({ offline: true })).toBe(snapshot);
    const checkpoint = await openCheckpoint(snapshot);
    expect(checkpoint.has('backbone.embedding.weight')).toBe(true);
    await checkpoint.close();
  });

  it('are left where safetensors are', async () => {
    server.files.set('pytorch_model.bin', Buffer.from('x'));
    expectWhole(await fetchTiny(), TEXT_FILES);
  });

  it('are downloaded in shards', async () => {
    serve('mamba-ssm-bin');
    const weights = server.files.get('pytorch_model.bin')!;
    const index = { weight_map: { 'backbone.embedding.weight': 'pytorch_model-00001-of-00001.bin' } };
    server.files.delete('pytorch_model.bin');
    server.files.delete('expected.safetensors');
    server.files.set('pytorch_model-00001-of-00001.bin', weights);
    server.files.set('pytorch_model.bin.index.json', Buffer.from(JSON.stringify(index)));
    const snapshot = await fetchTiny();
    expectWhole(snapshot, [...server.files.keys()]);
    rmSync(join(snapshot, 'pytorch_model-00001-of-00001.bin'));
    await expect(fetchTiny({ offline: true })).rejects.toThrow(/lacks pytorch_model-00001-of-00001.bin of/);
  });
});

describe('answers that are errors', () => {
  it.each<[number, RegExp]>([
    [403, /owner\/tiny is restricted \(403\); accept its terms at http.*\/owner\/tiny and set HF_TOKEN/],
    [404, /owner\/tiny is no folder here, and http.* has no such model with revision main \(404\)/],
    [500, /http.* failed for owner\/tiny \(500\); reason of the server/],
  ])('%i', async (status, message) => {
    server.status = status;
    await expect(fetchTiny()).rejects.toThrow(message);
  });

  it('unknown model and revision', async () => {
    await expect(resolveModel('owner/other', { endpoint: server.endpoint })).rejects.toThrow(
      /owner\/other .*revision main \(404\)/,
    );
    await expect(fetchTiny({ revision: 'nowhere' })).rejects.toThrow(/revision nowhere \(404\)/);
  });

  it('a commit that is none', async () => {
    server.commit = '../../..';
    await expect(fetchTiny()).rejects.toThrow(/names no commit/);
  });

  it.each<[string, RegExp, () => void]>([
    ['no config', /owner\/tiny has no config.json/, () => server.files.delete('config.json')],
    ['no weights', /has no weights, expected one of model.safetensors, /, () => server.files.delete(WEIGHTS)],
    [
      'a missing shard',
      /lacks model-00002-of-00005.safetensors, which/,
      () => {
        serve('mamba-sharded-bf16');
        server.files.delete('model-00002-of-00005.safetensors');
      },
    ],
    [
      'an index that leaves the folder',
      /inside of the folder/,
      () => {
        server.files.delete(WEIGHTS);
        server.files.set('model.safetensors.index.json', Buffer.from('{"weight_map":{"a":"../../evil"}}'));
      },
    ],
  ])('a repository with %s', async (_, message, prepare) => {
    prepare();
    await expect(fetchTiny()).rejects.toThrow(FormatError);
    await expect(fetchTiny()).rejects.toThrow(message);
  });
});

describe('without a network', () => {
  it('takes what the cache has, by option or by HF_HUB_OFFLINE', async () => {
    const snapshot = await fetchTiny();
    server.forget();
    expect(await fetchTiny({ offline: true })).toBe(snapshot);
    expect(await fetchTiny({ offline: true, revision: COMMIT })).toBe(snapshot);
    process.env['HF_HUB_OFFLINE'] = '1';
    expect(await fetchTiny()).toBe(snapshot);
    expect(server.seen).toEqual([]);
    expect(await fetchTiny({ offline: false })).toBe(snapshot);
    expect(server.seen).not.toEqual([]);
  });

  it('says what is missing', async () => {
    const offline = fetchTiny({ offline: true });
    await expect(offline).rejects.toThrow(
      /offline mode forbids a download, and the cache at .*models--owner--tiny lacks config.json, model.safetensors of owner\/tiny \(main\)/,
    );
    serve('mamba-sharded-bf16');
    const snapshot = await fetchTiny();
    rmSync(join(snapshot, 'model-00004-of-00005.safetensors'));
    await expect(fetchTiny({ offline: true })).rejects.toThrow(/lacks model-00004-of-00005.safetensors of/);
  });

  it('falls back to the cache when the hub cannot be reached', async () => {
    const snapshot = await fetchTiny();
    await server.stop();
    expect(await fetchTiny()).toBe(snapshot);
    await expect(resolveModel('owner/other', { endpoint: server.endpoint })).rejects.toThrow(
      /cannot be reached: .*ECONNREFUSED.*, and the cache at .* lacks/,
    );
    await server.start();
  });

  it('does not fall back when the caller aborted', async () => {
    await fetchTiny();
    await expect(fetchTiny({ signal: AbortSignal.abort(new Error('stop')) })).rejects.toThrow('stop');
  });
});
