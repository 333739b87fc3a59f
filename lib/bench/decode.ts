import { capture } from '../capture';
import type { Device } from '../device';
import type { CausalLM } from '../generation/causal-lm';
import { Decoder, decoderKind } from '../generation/decoder';
import { rowOptions } from '../generation/options';
import { add } from '../ops/elementwise';
import { scope, Tensor, tensorsIn } from '../tensor';
import type { Bandwidth } from './bandwidth';
import { quantile, spread, timeRuns, warmUps, type Spread } from './measure';
import { expertsRead, named, randomPrompts, stepWeightBytes, weightDtype } from './model';
import { profileOps, type OpTime } from './profile';
import type { Result } from './result';

const promptLength = 16;

/** On a GPU: what its peers were measured with. */
export const peerBatches = [1, 8, 64, 256] as const;

/** How peers' whole `generate` was measured: how many tokens, and how they were drawn. */
export const generation = { newTokens: 128, temperature: 0.8, topP: 0.9 } as const;

interface Steps {
  readonly batch: number;
  readonly steps: number;
}

/**
 * Times `steps` steps of `batch` sequences together by the device's clock: all layers and the head,
 * as one recorded graph that runs again and again. Beside it what a step takes in `generate`,
 * greedy: all that a caller waits for.
 */
export async function benchDecode(
  model: CausalLM,
  name: string,
  { batch, steps }: Steps,
  bandwidth: Bandwidth,
  runs: number,
): Promise<Result> {
  const names = named(model, name);
  const { ms, read } = await timeGraph(model, { batch, steps }, runs);
  await timeSteps(model, batch, 4);
  const inGenerate: number[] = [];
  for (let run = 0; run < runs; run++) inGenerate.push(await timeSteps(model, batch, steps));
  const bytes = stepWeightBytes(model, read);
  const gbPerSecond = bytes / ms.median / 1e6;
  return {
    bench: 'decode_step',
    ...names,
    name: `${names.name}, batch ${batch}`,
    dtype: weightDtype(model),
    shape: { batch, steps },
    ms,
    figures: {
      tokensPerSecond: (1000 * batch) / ms.median,
      generateMs: quantile(inGenerate, 0.5),
      bytes,
      gbPerSecond,
      readGbPerSecond: bandwidth.read,
      shareOfRead: gbPerSecond / bandwidth.read,
      toCopy: bandwidth.copy / gbPerSecond,
      ...(read.length > 0 && { expertsRead: read.reduce((sum, n) => sum + n, 0) / read.length }),
    },
  };
}

/**
 * Milliseconds by the device's clock of one step, without drawing tokens, and how many experts of
 * each layer that has some it reads.
 */
async function timeGraph(
  model: CausalLM,
  { batch, steps }: Steps,
  runs: number,
): Promise<{ ms: Spread; read: readonly number[] }> {
  const { device } = model;
  const prompts = randomPrompts(model, batch, promptLength);
  const state = model.createState(batch);
  const ids = Tensor.from(
    Int32Array.from(prompts, (prompt) => prompt[0]!),
    [batch],
    { device },
  );
  const numbers = Array.from({ length: batch }, (_, i) => i);
  const together = model.batch(Array<number>(batch).fill(1), numbers);
  try {
    await model.run(prompts, state);
    const graph = capture(device, () => scope(() => void model.head(model.step(ids, together, state))));
    try {
      const queueSteps = () => {
        for (let step = 0; step < steps; step++) graph.replay();
      };
      const { median, p10, p90 } = await timeRuns(device, queueSteps, runs);
      const ms = { median: median / steps, p10: p10 / steps, p90: p90 / steps, runs };
      return { ms, read: await expertsRead(model, ids, state) };
    } finally {
      graph.dispose();
    }
  } finally {
    for (const tensor of [ids, ...tensorsIn(together)]) tensor.dispose();
    state.dispose();
  }
}

/**
 * Times whole calls of `generate` with sampling, from the prompts to the last token, for each token
 * of a sequence: by the caller's clock, beside the same model's recorded step. Apart from that what
 * comes after the first token, for each step, and what comes before it, once a call.
 */
export async function benchGenerate(
  model: CausalLM,
  name: string,
  { batch, newTokens }: { readonly batch: number; readonly newTokens: number },
  runs: number,
): Promise<Result> {
  const { temperature, topP } = generation;
  const names = named(model, name);
  const prompts = randomPrompts(model, batch, promptLength);
  const generateAll = async (maxNewTokens = newTokens) => {
    const options = { maxNewTokens, temperature, topP, seed: 0, eosTokenId: [] };
    const begin = performance.now();
    let first = NaN;
    for await (const _ of model.generate(prompts, options)) if (!(first > 0)) first = performance.now();
    const end = performance.now();
    const steps = Math.max(1, newTokens - 1);
    return { whole: (end - begin) / newTokens, prompt: first - begin, afterPrompt: (end - first) / steps };
  };
  for (let run = 0; run < warmUps; run++) await generateAll(2);
  await generateAll();
  const times: Awaited<ReturnType<typeof generateAll>>[] = [];
  for (let run = 0; run < runs; run++) times.push(await generateAll());
  const median = (part: keyof (typeof times)[number]) =>
    quantile(
      times.map((time) => time[part]),
      0.5,
    );
  const ms = spread(times.map(({ whole }) => whole));
  const { ms: step } = await timeGraph(model, { batch, steps: newTokens }, runs);
  return {
    bench: 'generate',
    ...names,
    name: `${names.name}, batch ${batch}`,
    dtype: weightDtype(model),
    shape: { batch, newTokens },
    ms,
    figures: {
      tokensPerSecond: (1000 * batch) / ms.median,
      stepMs: step.median,
      toStep: ms.median / step.median,
      promptMs: median('prompt'),
      afterPromptMs: median('afterPrompt'),
      afterPromptToStep: median('afterPrompt') / step.median,
    },
  };
}

/** Milliseconds a step. The first token of each sequence ends the prompt and is not counted. */
async function timeSteps(model: CausalLM, batch: number, steps: number): Promise<number> {
  const prompts = randomPrompts(model, batch, promptLength);
  let tokens = 0;
  let begin = 0;
  for await (const _ of model.generate(prompts, { maxNewTokens: steps + 1, eosTokenId: [] })) {
    if (++tokens === batch) begin = performance.now();
  }
  return (performance.now() - begin) / steps;
}

/** Where a decode step goes. */
export interface Breakdown {
  readonly figures: Readonly<Record<'ops' | 'callNs' | 'replayNs' | 'outsideKernels', number>>;
  readonly ops: readonly OpTime[];
}

/**
 * What a step spends outside kernels: its time in `generate`, less the time that the queue is busy
 * with its recorded graph, plus what the queue itself spends between the graph's ops.
 */
export async function breakDown(
  model: CausalLM,
  batch: number,
  steps: number,
  runs: number,
): Promise<Breakdown> {
  const cost = await opCost(model.device);
  const state = model.createState(batch);
  const options = rowOptions({}, batch);
  const make = (capture: boolean) =>
    new Decoder(model, state, decoderKind(options, [], { capture, outlived: false }));
  const [direct, recorded] = [make(false), make(true)];
  try {
    await model.run(randomPrompts(model, batch, promptLength), state);
    await Promise.all([direct, recorded].map((decoder) => decoder.draw(options, [])));
    const ops = await profileOps(model.device, () => direct.next());
    const count = ops.reduce((sum, { calls }) => sum + calls, 0);
    // In turn, and the fastest of each: what else the machine does only adds.
    let queueMs = Infinity;
    let stepMs = Infinity;
    for (let run = 0; run < runs; run++) {
      const begin = model.device.stamp();
      const queued = Array.from({ length: steps }, () => recorded.next());
      queueMs = Math.min(queueMs, ((await model.device.stamp()) - (await begin)) / steps);
      await Promise.all(queued);
      stepMs = Math.min(stepMs, await timeSteps(model, batch, steps));
    }
    const kernelMs = queueMs - (count * cost.replayNs) / 1e6;
    return { figures: { ops: count, ...cost, outsideKernels: Math.max(0, 1 - kernelMs / stepMs) }, ops };
  } finally {
    direct.dispose();
    recorded.dispose();
    state.dispose();
  }
}

/** Nanoseconds that an op on one element costs: the caller when called, the queue when replayed. */
async function opCost(device: Device): Promise<{ callNs: number; replayNs: number }> {
  const calls = 1000;
  const one = Tensor.from([1], [1, 1], { device });
  const sum = () => add(one, one).dispose();
  const callTimes: number[] = [];
  const replayTimes: number[] = [];
  const graph = capture(device, () => {
    for (let i = 0; i < calls; i++) scope(sum);
  });
  for (let run = 0; run < 21; run++) {
    const begin = performance.now();
    for (let i = 0; i < calls; i++) sum();
    callTimes.push(performance.now() - begin);
    const from = device.stamp();
    graph.replay();
    replayTimes.push((await device.stamp()) - (await from));
  }
  graph.dispose();
  one.dispose();
  const ns = (times: readonly number[]) => (quantile(times, 0.5) * 1e6) / calls;
  return { callNs: ns(callTimes), replayNs: ns(replayTimes) };
}
