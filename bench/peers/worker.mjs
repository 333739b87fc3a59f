// One side of llamacpp.mjs, in a process of its own: loads its model, says so, then runs the tasks
// that it is sent. What it was started with: { side, threads, nlc, gguf, model, steps, sequences }.
import { join, resolve } from 'node:path';
import { performance } from 'node:perf_hooks';
import { pathToFileURL, URL } from 'node:url';

const flags = JSON.parse(process.argv[2]);
const { steps, sequences, threads } = flags;
const prompt = Array.from({ length: 16 }, (_, i) => 100 + i);
/** Prompts that no prefix cache knows. */
let seed = 1;
const ids = (length) =>
  Array.from({ length }, () => 1 + ((seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0) % 50000));
const since = (begin) => performance.now() - begin;

/** Times of the tokens of an async iterable, up to `count`; the first one ends the prompt. */
async function timed(tokens, count, pick) {
  const begin = performance.now();
  const found = [];
  let first = 0;
  for await (const token of tokens) {
    found.push(pick(token));
    if (found.length === 1) first = since(begin);
    if (found.length === count) break;
  }
  return { first, rest: since(begin) - first, found };
}

/** Our side: each task resolves with milliseconds, and tokens where both sides can compare them. */
async function ours() {
  const { AutoModelForCausalLM, setThreads } = await import(new URL('../../dist/index.js', import.meta.url));
  setThreads(threads);
  const begin = performance.now();
  const model = await AutoModelForCausalLM.fromPretrained(flags.model);
  const load = since(begin);
  const generate = (prompts, maxNewTokens) => model.generate(prompts, { maxNewTokens, eosTokenId: [] });
  const one = (ids, count) => timed(generate(ids, count), count, ({ token }) => token);
  return {
    load: async () => ({ ms: load, first: load + (await one(ids(4), 1)).first }),
    decode: async () => {
      const { rest, found } = await one(prompt, steps + 1);
      return { ms: rest, tokens: found };
    },
    prefill: async (length) => ({ ms: (await one(ids(length), 1)).first }),
    together: async () => {
      const prompts = Array.from({ length: sequences }, () => ids(prompt.length));
      let last = 0;
      const begin = performance.now();
      let first = 0;
      for await (const { index } of generate(prompts, steps + 1)) {
        if (index === sequences - 1 && first === 0) first = since(begin);
        last = since(begin);
      }
      return { ms: last - first };
    },
  };
}

/** Their side: sequence.evaluate() yields tokens as our generate() does. */
async function theirs() {
  const { getLlama, LlamaLogLevel } = await import(
    pathToFileURL(join(resolve(flags.nlc), 'node_modules/node-llama-cpp/dist/index.js'))
  );
  const begin = performance.now();
  const llama = await getLlama({
    gpu: false,
    build: 'never',
    skipDownload: true,
    progressLogs: false,
    maxThreads: threads,
    logLevel: LlamaLogLevel.error,
  });
  const model = await llama.loadModel({ modelPath: resolve(flags.gguf) });
  const context = (options) =>
    model.createContext({ threads: { ideal: threads, min: threads }, batchSize: 512, ...options });
  const sequence = (await context({ sequences: 1, contextSize: 4096 })).getSequence();
  const load = since(begin);
  const run = (sequence, ids, count) =>
    timed(sequence.evaluate(ids, { temperature: 0, yieldEogToken: true }), count, Number);
  const one = async (ids, count) => {
    const result = await run(sequence, ids, count);
    await sequence.clearHistory();
    return result;
  };
  let all;
  return {
    load: async () => ({ ms: load, first: load + (await one(ids(4), 1)).first }),
    decode: async () => {
      const { rest, found } = await one(prompt, steps + 1);
      return { ms: rest, tokens: found };
    },
    prefill: async (length) => ({ ms: (await one(ids(length), 1)).first }),
    together: async () => {
      if (!all) {
        const shared = await context({ sequences, contextSize: 512 });
        all = Array.from({ length: sequences }, () => shared.getSequence());
      }
      const runs = await Promise.all(all.map((each) => run(each, ids(prompt.length), steps + 1)));
      for (const each of all) await each.clearHistory();
      const ends = runs.map(({ first, rest }) => first + rest);
      return { ms: Math.max(...ends) - Math.max(...runs.map(({ first }) => first)) };
    },
  };
}

const tasks = await { ours, theirs }[flags.side]();
process.on('message', async ([task, argument]) => {
  // Loading is over when the first message comes: there all that the process has used counts.
  const before = task === 'load' ? undefined : process.cpuUsage();
  const result = await tasks[task](argument);
  const { user, system } = process.cpuUsage(before);
  process.send({ ...result, cpuMs: (user + system) / 1000 });
});
process.send('ready');
