import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import ts from 'typescript';

const root = join(__dirname, '..');

/** Imports point downwards: a file may import from its own layer and from those above it in this list. */
const layers: readonly (readonly string[])[] = [
  ['native', 'loader', 'errors', 'arguments', 'shape', 'plot/'],
  ['capture', 'device', 'tensor'],
  ['schema', 'autograd/tape'],
  ['op'],
  ['ops/'],
  ['autograd/grad', 'autograd/remat', 'autograd/together', 'nn/', 'io/'],
  ['models/'],
  ['generation/', 'training/', 'evaluation/'],
  ['serving/', 'bench/', 'verify/', 'tasks/'],
  ['index', 'cli/'],
];

/** Areas that may know less than their layer: bytes in and out need no ops. */
const onlyKnows: Readonly<Record<string, readonly string[]>> = {
  'io/': ['io/', 'tensor', 'errors', 'arguments'],
};

/** Where each dependency may be imported; Node's own modules may be everywhere. */
const packages: Readonly<Record<string, readonly string[]>> = {
  'node-gyp-build': ['loader'],
  '@huggingface/hub': ['io/'],
  '@huggingface/tokenizers': ['io/'],
  yauzl: ['io/'],
  commander: ['cli/'],
  'cli-progress': ['cli/'],
  'd3-scale': ['bench/'],
};

/** Lines that a file may have; the first row that fits counts. */
const lengths: readonly (readonly [RegExp, number])[] = [
  [/^(native\/cpu|cuda)\/.*\.(cc|h|cu|cuh)$/, 400],
  [/^(lib|native)\//, 300],
];

/** What no source may hold. Written with [] so that this file does not find itself. */
const forbidden: readonly (readonly [string, RegExp])[] = [
  [
    'home to a skipped, focused or planned test',
    /\b(it|test|describe)\.(skip|only|todo)\b|\b[xf](it|describe)\(/,
  ],
  ['marked as unfinished', /\b(TO[D]O|FIX[M]E|HA[C]K|XX[X])\b/],
  ['generated', /@gen[e]rated|DO NOT [E]DIT/],
];

function files(...folders: string[]): string[] {
  return folders.flatMap((folder) =>
    readdirSync(join(root, folder), { withFileTypes: true, recursive: true })
      .filter((entry) => entry.isFile() && /\.(ts|mjs|cjs|cc|h|cu|cuh)$/.test(entry.name))
      .map((entry) => relative(root, join(entry.parentPath, entry.name))),
  );
}
const text = (file: string) => readFileSync(join(root, file), 'utf8');
const within = (module: string, area: string) =>
  area.endsWith('/') ? module.startsWith(area) : module === area;
const layerOf = (module: string) => layers.findIndex((areas) => areas.some((area) => within(module, area)));

interface Import {
  readonly from: string;
  readonly to: string;
}

const modules = files('lib').filter((file) => !file.endsWith('.d.ts'));
const moduleName = (file: string) => relative('lib', file).replace(/\.ts$/, '');

/** `lib/nn/linear.ts` importing `'../ops/matmul'` is { from: 'nn/linear', to: 'ops/matmul' }. */
const imports: readonly Import[] = modules.flatMap((file) => {
  const from = moduleName(file);
  return ts.preProcessFile(text(file)).importedFiles.map(({ fileName }) => {
    if (!fileName.startsWith('.')) return { from, to: fileName };
    const to = join(dirname(from), fileName);
    return { from, to: modules.includes(join('lib', to, 'index.ts')) ? join(to, 'index') : to };
  });
});
const local = imports.filter(({ to }) => layerOf(to) >= 0);
const external = imports.filter(({ to }) => layerOf(to) < 0 && !to.startsWith('node:'));

const includes = files('native', 'cuda').flatMap((file) =>
  [...text(file).matchAll(/^\s*#\s*include\s*(["<])([^">]+)[">]/gm)].map(([, quote, name = '']) => ({
    file,
    system: quote === '<',
    name: quote === '<' ? name : join(dirname(file), name),
  })),
);

const arrow = ({ from, to }: Import) => `${from} -> ${to}`;

describe('lib', () => {
  it('has a layer for every file', () => {
    expect(modules.map(moduleName).filter((module) => layerOf(module) < 0)).toEqual([]);
  });

  it('imports downwards only', () => {
    expect(local.filter(({ from, to }) => layerOf(to) > layerOf(from)).map(arrow)).toEqual([]);
  });

  it.each(Object.entries(onlyKnows))('%s imports only %p', (area, known) => {
    const strangers = local.filter(
      ({ from, to }) => within(from, area) && !known.some((name) => within(to, name)),
    );
    expect(strangers.map(arrow)).toEqual([]);
  });

  it('has no import cycles', () => {
    const state = new Map<string, 'open' | 'done'>();
    const cycles: string[] = [];
    const visit = (module: string, path: readonly string[]): void => {
      if (state.get(module) === 'open') cycles.push([...path, module].join(' -> '));
      if (state.has(module)) return;
      state.set(module, 'open');
      for (const { from, to } of local) if (from === module) visit(to, [...path, module]);
      state.set(module, 'done');
    };
    for (const { from } of local) visit(from, []);
    expect(cycles).toEqual([]);
  });

  it('imports each dependency in its own place', () => {
    const misplaced = external.filter(
      ({ from, to }) => !(packages[to] ?? []).some((area) => within(from, area)),
    );
    expect(misplaced.map(arrow)).toEqual([]);
  });
});

describe('native and cuda', () => {
  const named = (wrong: typeof includes) => wrong.map(({ file, name }) => `${file} includes ${name}`);

  it('only the addon files know Node', () => {
    const node = includes.filter(({ name }) =>
      /^(napi|node_api|node|v8|uv|native\/addon)\b.*\.h$/.test(name),
    );
    const addon = /^native\/addon(_\w+)?\.(cc|h)$/;
    expect(named(node.filter(({ file }) => !addon.test(file)))).toEqual([]);
  });

  it('native includes nothing of CUDA', () => {
    const cuda = includes.filter(({ file, name }) => file.startsWith('native/') && /cuda/.test(name));
    expect(named(cuda)).toEqual([]);
  });

  it('cuda includes exactly tensor.h, kernel.h and backend.h of native', () => {
    const allowed = ['native/tensor.h', 'native/kernel.h', 'native/backend.h'];
    const used = includes.filter(({ file, name }) => file.startsWith('cuda/') && name.startsWith('native/'));
    expect(named(used.filter(({ name }) => !allowed.includes(name)))).toEqual([]);
  });

  it('cuda/device includes nothing outside itself', () => {
    const out = includes.filter(
      ({ file, system, name }) =>
        file.startsWith('cuda/device/') && !system && !name.startsWith('cuda/device/'),
    );
    expect(named(out)).toEqual([]);
  });

  it('files compiled once per instruction level use no C++ library', () => {
    // Its inline functions would be shared between the levels, with AVX-512 code in them.
    const perLevel = new Set(
      includes.filter(({ name }) => name === 'native/cpu/simd.h').map(({ file }) => file),
    );
    const library = includes.filter(
      ({ file, system, name }) => perLevel.has(file) && system && !name.endsWith('.h'),
    );
    expect(named(library)).toEqual([]);
  });
});

describe('every source file', () => {
  const sources = files('lib', 'native', 'cuda', 'test', 'bench', 'scripts');

  it('is short enough to read', () => {
    const tooLong = sources.flatMap((file) => {
      const limit = lengths.find(([pattern]) => pattern.test(file))?.[1] ?? Infinity;
      const lines = text(file).split('\n').length - 1;
      return lines > limit ? [`${file}: ${lines} lines, at most ${limit}`] : [];
    });
    expect(tooLong).toEqual([]);
  });

  it.each(forbidden)('is not %s', (_, pattern) => {
    expect(sources.filter((file) => pattern.test(text(file)))).toEqual([]);
  });

  it('has a name that says what it does', () => {
    expect(sources.filter((file) => /\b(utils?|helpers?|manager|common|misc|v2)\b/.test(file))).toEqual([]);
  });
});
