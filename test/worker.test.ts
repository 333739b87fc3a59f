import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { child, hook, root, run } from './child';

const lib = JSON.stringify(join(root, 'lib'));

/** A worker that has `lib` and `post` and awaits `script`. */
function worker(script: string): Worker {
  const code = `
    const { parentPort } = require('node:worker_threads');
    require(${JSON.stringify(hook)});
    const lib = require(${lib});
    const post = (value) => parentPort.postMessage(value);
    (async () => { ${script} })().catch((error) => setImmediate(() => { throw error; }));`;
  return new Worker(code, { eval: true });
}
const ended = (made: Worker) =>
  new Promise<number>((resolve, reject) => {
    made.on('error', reject);
    made.on('exit', resolve);
  });
const message = (made: Worker) =>
  new Promise<unknown>((resolve, reject) => made.once('message', resolve).once('error', reject));

/** Draws a checksum from a few ops. */
const checks = `
  const fill = (shape, f) => lib.Tensor.from(Float32Array.from({ length: shape.reduce((a, b) => a * b) }, (_, i) => f(i)), shape);
  const [x, weight, scale] = [fill([33, 256], Math.sin), fill([256, 256], Math.cos), fill([256], (i) => 1 + i / 256)];
  const checksum = async () => {
    const y = lib.scope(() => {
      let y = x;
      for (let i = 0; i < 4; i++) y = lib.rmsNorm({ x: lib.matmul({ x: y, weight }), weight: scale });
      return y;
    });
    const data = await y.data();
    y.dispose();
    return data.reduce((sum, v, i) => sum + v * (i % 7), 0);
  };`;

/** `queue(count)` queues scans; `endless()` so many that they take long, and resolves with how long, in ms. */
const scans = `
  const zeros = (...shape) => lib.Tensor.from(new Float32Array(shape.reduce((a, b) => a * b)), shape);
  const [u, A, B] = [zeros(4000, 256), zeros(256, 16), zeros(4000, 1, 16)];
  const offsets = lib.Tensor.from([0, 4000], [2], { dtype: 'i32' });
  const queue = (count) => {
    for (let i = 0; i < count; i++) lib.scope(() => void lib.selectiveScanPacked({ u, delta: u, A, B, C: B, offsets }));
  };
  const endless = async () => {
    let each = Infinity;
    for (let i = 0; i < 3; i++) {
      const before = await lib.device().stamp();
      queue(8);
      each = Math.min(each, ((await lib.device().stamp()) - before) / 8);
    }
    // Tens of seconds, or as many as a fast GPU takes a second or two for.
    const count = Math.min(30_000, Math.ceil(20_000 / each));
    queue(count);
    return count * each;
  };`;

describe('worker threads', () => {
  it('load the addon and run ops, several at once, to the same results', async () => {
    const wanted = await run<number>(`${checks} return await checksum();`);
    const made = [1, 2, 3].map(() =>
      worker(`${checks} for (let i = 0; i < 20; i++) post(await checksum());`),
    );
    const sums = made.map((each) => {
      const all: unknown[] = [];
      each.on('message', (sum) => all.push(sum));
      return all;
    });
    expect(await Promise.all(made.map(ended))).toEqual([0, 0, 0]);
    for (const all of sums) expect(all).toEqual(Array(20).fill(wanted));
  });

  it('can be terminated in the middle of work', async () => {
    const made = [1, 2, 3].map(() => worker(`${scans} post(await endless()); await u.data(); post('done');`));
    const work = (await Promise.all(made.map(message))) as number[];
    const begin = performance.now();
    await Promise.all(made.map((each) => each.terminate()));
    expect(performance.now() - begin).toBeLessThan(Math.min(...work) / 2);
    // Both at once: a worker's last message and its end can come together.
    const after = worker(`${checks} post(await checksum());`);
    expect(await Promise.all([message(after), ended(after)])).toEqual([expect.any(Number), 0]);
  });

  it('give their memory back when they end, disposed or not', async () => {
    const grown = await run<number>(`
      const { Worker } = require('node:worker_threads');
      const script = 'require(' + JSON.stringify(process.execArgv[process.execArgv.indexOf('-r') + 1]) + ');' +
        'const { Tensor } = require(${lib.replaceAll("'", "\\'")});' +
        'globalThis.kept = [1, 2].map(() => Tensor.from(new Float32Array(8 * 2 ** 20), [8 * 2 ** 20]));' +
        'globalThis.kept[1].data().then(() => process.exit(0));';
      const round = () => new Promise((resolve) => new Worker(script, { eval: true }).on('exit', resolve));
      await round();
      const before = process.memoryUsage.rss();
      for (let i = 0; i < 4; i++) await round();
      return process.memoryUsage.rss() - before;`);
    expect(grown).toBeLessThan(100 * 2 ** 20); // four rounds of 64 MiB, were they lost
  });

  it('may be the only ones that load the addon, one after the other', async () => {
    const script = `
      const { Worker } = require('node:worker_threads');
      const code = ${JSON.stringify(`require(${JSON.stringify(hook)}); const lib = require(${lib}); ${checks}`)};
      const round = () => new Promise((resolve, reject) =>
        new Worker(code + 'checksum().then(() => {})', { eval: true }).on('error', reject).on('exit', resolve));
      (async () => { for (let i = 0; i < 4; i++) await round(); })().then(() => console.log('done'));`;
    expect(await child(['-e', script])).toMatchObject({ code: 0, stdout: 'done\n' });
  });
});

describe('a process', () => {
  it.each([
    ['returns', ''],
    ['exits', 'process.exit(0);'],
    [
      'has unread reads and exits',
      'void u.data(); void lib.device().stamp(); setImmediate(() => process.exit(0));',
    ],
    [
      'has a graph and exits',
      'lib.capture(lib.device(), () => lib.cast({ x: u })).replay(); process.exit(0);',
    ],
    ['exits while it records', 'lib.capture(lib.device(), () => { lib.cast({ x: u }); process.exit(0); });'],
  ])('that %s with work queued ends at once, cleanly', async (_, end) => {
    const script = `console.log(JSON.stringify({ work: await endless(), queued: Date.now() })); ${end}`;
    const made = await child(['-e', `const lib = require('./lib'); ${scans} (async () => { ${script} })();`]);
    expect(made).toMatchObject({ code: 0, signal: null, stderr: '' });
    const { work, queued } = JSON.parse(made.stdout) as { work: number; queued: number };
    expect(Date.now() - queued).toBeLessThan(work / 2);
  });

  it('waits for what it awaits', async () => {
    const value = await run<number>(`${scans} queue(5); return (await u.data()).length;`);
    expect(value).toBe(4000 * 256);
  });

  it('ends with the error that nobody caught', async () => {
    const { code, stderr } = await child([
      '-e',
      `const lib = require('./lib'); ${scans} queue(3000);
       lib.embedding({ ids: lib.Tensor.from([9], [1], { dtype: 'i32' }), weight: A }); process.nextTick(() => { throw new Error('mine'); });`,
    ]);
    expect(code).toBe(1);
    expect(stderr).toContain('Error: mine');
  });
});

describe('instruction levels', () => {
  it('agree: base, v3 and the best there is', async () => {
    const script = `${checks}
      const y = lib.matmul({ x, weight });
      const z = lib.layerNorm({ x: y, weight: scale });
      const B = fill([33, 2, 16], Math.cos);
      const scan = lib.selectiveScanPacked({ u: z, delta: x, A: fill([256, 16], (i) => -1 - i % 16), B, C: B,
        offsets: lib.Tensor.from([0, 33], [2], { dtype: 'i32' }), deltaSoftplus: true });
      return { detail: lib.device().info.detail, values: [
        ...(await y.data()), ...(await z.data()), ...(await scan.data())] };`;
    const on = async (level: string) =>
      await run<{ detail: string; values: number[] }>(script, {
        env: { SELECTIVE_SCAN_LEVEL: level, SELECTIVE_SCAN_DEVICE: 'cpu' },
      });
    const [base, v3, best] = [await on('base'), await on('v3'), await on('v4')];
    expect(base.detail).toBe('baseline');
    expect(v3.detail).toMatch(/AVX2|baseline/);
    const most = best.values.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
    for (const { values } of [base, v3]) {
      const worst = values.reduce((a, b, i) => Math.max(a, Math.abs(b - best.values[i]!)), 0);
      expect(worst / most).toBeLessThan(2e-6);
    }
  });
});
