#!/usr/bin/env node
// selective-scan beside llama.cpp (through the npm package node-llama-cpp), the same weights in both.
//
// Each program runs in one process of its own and holds its model; the two work in turn (ours,
// theirs, ours, ...), so that what else the machine does falls on both. Printed and written are the
// medians, and the median of the ratios of neighbours. Each pair waits, --wait seconds at most, until
// other processes use fewer than --quiet cores; one that was disturbed is run again, --tries times at
// most. The most that others used during a pair that counts stands beside the result.
//
//   npm run build
//   mkdir -p peer && cd peer && NODE_LLAMA_CPP_SKIP_DOWNLOAD=true npm i --ignore-scripts node-llama-cpp@3.22.1
//   node bench/peers/llamacpp.mjs --nlc peer --gguf mamba-130m-f32.gguf --model mamba-130m-f32 --threads 1,2
//
// --model is a folder as transformers writes it, --gguf the same weights for llama.cpp, as its
// convert_hf_to_gguf.py or any other tool makes it (also with --outtype bf16 or f16). Both are taken
// in the dtype that they are stored in. Greedy tokens are compared: in f32 they should be equal.
import { execFileSync, fork } from 'node:child_process';
import { once } from 'node:events';
import { appendFileSync, existsSync, readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath, URL } from 'node:url';
import { parseArgs } from 'node:util';

const root = fileURLToPath(new URL('../..', import.meta.url));
const { values: flags } = parseArgs({
  options: {
    nlc: { type: 'string' }, // a folder with node_modules/node-llama-cpp
    gguf: { type: 'string' },
    model: { type: 'string' },
    threads: { type: 'string', default: '1' },
    tasks: { type: 'string', default: 'load,decode,prefill 512,prefill 2048,together' },
    rounds: { type: 'string', default: '5' },
    steps: { type: 'string', default: '64' },
    sequences: { type: 'string', default: '8' },
    quiet: { type: 'string', default: '0.2' },
    wait: { type: 'string', default: '60' },
    tries: { type: 'string', default: '3' },
    output: { type: 'string' }, // one JSON object a line is appended
  },
});
for (const name of ['nlc', 'gguf', 'model']) {
  if (!flags[name]) {
    console.error(`--${name} is missing; see the head of bench/peers/llamacpp.mjs`);
    process.exit(2);
  }
}
const read = (file) => JSON.parse(readFileSync(file, 'utf8')).version;
const origin = {
  version: read(join(root, 'package.json')),
  peerVersion: read(join(flags.nlc, 'node_modules/node-llama-cpp/package.json')),
  commit: execFileSync('git', ['describe', '--always', '--dirty', '--exclude=*'], {
    cwd: root,
    encoding: 'utf8',
  }).trim(),
  date: new Date().toISOString(),
};
const steps = Number(flags.steps);
const sequences = Number(flags.sequences);
const since = (begin) => performance.now() - begin;

/** A child that holds one side's model; `run` resolves with what its task gives. */
async function start(side, threads) {
  const { nlc, gguf, model } = flags;
  const task = { side, threads, nlc, gguf, model, steps, sequences };
  const child = fork(fileURLToPath(new URL('worker.mjs', import.meta.url)), [JSON.stringify(task)]);
  const ended = once(child, 'exit').then(([code]) => Promise.reject(new Error(`${side} ended with ${code}`)));
  ended.catch(() => {}); // an end that was asked for is no error
  const answer = () => Promise.race([once(child, 'message').then(([message]) => message), ended]);
  await answer();
  const run = async (task, argument) => {
    const reply = answer();
    child.send([task, argument]);
    return reply;
  };
  return { pid: child.pid, run, end: () => (child.kill(), once(child, 'exit')) };
}

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
};

/** Jiffies of 10 ms that all processes used, and that `pids` used. */
function busy(pids) {
  const all = readFileSync('/proc/stat', 'utf8').split('\n', 1)[0].trim().split(/\s+/).slice(1).map(Number);
  const own = pids.map((pid) =>
    readFileSync(`/proc/${pid}/stat`, 'utf8')
      .replace(/^.*\) /s, '')
      .split(' '),
  );
  const used = own.reduce((sum, field) => sum + Number(field[11]) + Number(field[12]), 0);
  return all[0] + all[1] + all[2] + all[5] + all[6] + all[7] - used;
}

/** Runs `work`; resolves with its value and the cores that other processes used meanwhile. */
async function watched(pids, work) {
  if (!existsSync('/proc/stat')) return { value: await work(), others: 0 };
  const begin = performance.now();
  const before = busy(pids);
  const value = await work();
  return { value, others: ((busy(pids) - before) * 10) / since(begin) };
}

/** Waits for half a second in which other processes do next to nothing. */
async function settled(pids) {
  const begin = performance.now();
  while (since(begin) < 1000 * Number(flags.wait)) {
    if ((await watched(pids, () => setTimeout(500))).others <= Number(flags.quiet)) return;
  }
}

/** `count` pairs of neighbours, each repeated while the machine is not quiet. */
async function pairs(count, sides, task, argument) {
  const found = [];
  for (let i = 0; i < count; i++) {
    for (let left = Number(flags.tries); ; left--) {
      const pids = [process.pid, ...sides.map(({ pid }) => pid)];
      await settled(pids);
      const { value, others } = await watched(pids, async () => [
        await sides[0].run(task, argument),
        await sides[1].run(task, argument),
      ]);
      if (others > Number(flags.quiet) && left > 1) continue;
      found.push({ a: value[0], b: value[1], others });
      break;
    }
  }
  return found;
}

async function measure(threads) {
  const both = async () => [await start('ours', threads), await start('theirs', threads)];
  const rounds = Number(flags.rounds);
  const tasks = flags.tasks.split(',').map((task) => task.trim().split(' '));
  let sides = await both();
  for (const [task, argument] of tasks) {
    let found = [];
    if (task === 'load') {
      for (let i = 0; i < rounds; i++) {
        await Promise.all(sides.map((side) => side.end()));
        sides = await both();
        found.push({ a: await sides[0].run(task), b: await sides[1].run(task) });
      }
    } else {
      await pairs(1, sides, task, argument && 64); // warm-up
      found = await pairs(rounds, sides, task, argument && Number(argument));
    }
    report(threads, task, argument, found);
  }
  await Promise.all(sides.map((side) => side.end()));
}

function report(threads, task, argument, found) {
  const tokens = { decode: steps, together: steps * sequences, prefill: Number(argument) }[task];
  const side = (pick) => {
    const ms = found.map((pair) => pick(pair).ms);
    return {
      ms: median(ms),
      // What the process itself computed: says more than time where others were at work.
      cpuMs: median(found.map((pair) => pick(pair).cpuMs)),
      all: ms.map((value) => Math.round(value * 10) / 10),
      ...(tokens && { tokensPerSecond: (1000 * tokens) / median(ms) }),
      ...(task === 'load' && { toFirstTokenMs: median(found.map((pair) => pick(pair).first)) }),
    };
  };
  const equal = task === 'decode' && found.every(({ a, b }) => a.tokens.join() === b.tokens.join());
  const line = {
    bench: 'peer',
    peer: 'llama.cpp',
    model: basename(resolve(flags.model)),
    gguf: basename(flags.gguf),
    device: cpus()[0].model,
    threads,
    task: argument ? `${task} ${argument}` : task,
    ratio: median(found.map(({ a, b }) => b.ms / a.ms)),
    cpuRatio: median(found.map(({ a, b }) => b.cpuMs / a.cpuMs)),
    ours: side(({ a }) => a),
    theirs: side(({ b }) => b),
    ...(task === 'decode' && { equalTokens: equal }),
    ...(task !== 'load' && { othersCores: Math.max(...found.map(({ others }) => others)) }),
    ...origin,
  };
  const speed = ({ ms, tokensPerSecond }) =>
    tokensPerSecond ? `${tokensPerSecond.toFixed(1)} tokens/s` : `${ms.toFixed(0)} ms`;
  const notes = [
    ...(task === 'decode' ? [`tokens ${equal ? 'equal' : 'differ'}`] : []),
    ...(task === 'load' ? [] : [`others used ${line.othersCores.toFixed(2)} cores`]),
  ];
  console.log(
    `${line.gguf}, ${threads} threads, ${line.task}: ours ${speed(line.ours)}, theirs ${speed(line.theirs)}, ` +
      `ratio ${line.ratio.toFixed(2)}, of processor time ${line.cpuRatio.toFixed(2)}; ${notes.join(', ')}`,
  );
  if (flags.output) appendFileSync(flags.output, `${JSON.stringify(line)}\n`);
}

for (const threads of flags.threads.split(',')) await measure(Number(threads));
