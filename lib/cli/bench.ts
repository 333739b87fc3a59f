import { Command } from 'commander';
import { measureBandwidth } from '../bench/bandwidth';
import { benchConv, convShapes, peerConvShapes, type ConvShape } from '../bench/conv';
import { benchDecode, benchGenerate, breakDown, generation, peerBatches } from '../bench/decode';
import { benchExperts } from '../bench/experts';
import { mixturePresets, presetConfig, presets } from '../bench/model';
import { barsOf, plot } from '../bench/plot';
import { benchPrefill, peerPrompts, prefillOps, withLinearity } from '../bench/prefill';
import type { Line } from '../bench/result';
import { benchS4D, s4dShapes, type S4DShape } from '../bench/s4d';
import { peerTraining, TrainingBench } from '../bench/train';
import { DeviceError } from '../errors';
import {
  addModel,
  addPreset,
  combinations,
  common,
  whole,
  wholes,
  type CommonFlags,
  type Lists,
  type ModelFlags,
} from './bench-flags';
import { scanBackwardCommand, scanCommand } from './bench-scan';
import { Session } from './bench-session';
import { UsageError } from './exit';

type TrainFlags = ModelFlags & { readonly length?: readonly number[]; readonly breakdown?: boolean };
type ConvFlags = CommonFlags & Lists<ConvShape>;
type S4DFlags = CommonFlags & Lists<S4DShape>;
type PrefillFlags = ModelFlags & { readonly lengths?: readonly number[]; readonly breakdown?: boolean };
type DecodeFlags = ModelFlags & { readonly steps: number; readonly breakdown?: boolean };
type ExpertsFlags = Omit<ModelFlags, 'batch'> & { readonly tokens: readonly number[] };
type GenerateFlags = ModelFlags & { readonly newTokens: number };

const help = `
Times are medians by the device's clock (generate: by the caller's), beside them the 10th and the 90th
percentile; a GB is 10^9 bytes. Bandwidth is measured in the same run with the same threads; the bound of
the special-function units is multiprocessors x 16 x the card's highest clock, as nvidia-smi gives it. On a
GPU, shapes, batches and dtypes default to those that bench/peers/h100.json holds peers' figures of.
Nothing else should run on the machine meanwhile.

Examples:
  $ selective-scan bench scan --threads 1,2
  $ selective-scan bench scan --device cuda --plot roofline.svg --compare bench/peers/h100.json
  $ selective-scan bench prefill --model 370m --dtype bf16 --lengths 512,2048
  $ selective-scan bench decode --breakdown
  $ selective-scan bench generate --device cuda --model 130m,1.4b --output results --json`;

export function benchCommand(): Command {
  const conv = common(new Command('conv').description('Time the causal convolution alone.'), 20)
    .option('--batch <list>', 'sequences', wholes)
    .option('--dim <list>', 'channels', wholes)
    .option('--length <list>', 'tokens of each sequence', wholes)
    .option('--width <list>', 'taps', wholes)
    .action(convs);
  const s4d = common(
    new Command('s4d').description('Time S4D as a recurrence and as a convolution, over lengths.'),
    10,
  )
    .option('--batch <list>', 'sequences', wholes)
    .option('--dim <list>', 'channels', wholes)
    .option('--length <list>', 'tokens of each sequence', wholes)
    .option('--state <list>', 'N, the real size of the state: even', wholes)
    .action(s4ds);
  const prefill = common(addModel(new Command('prefill').description('Time reading a prompt.')), 5)
    .option('--lengths <list>', 'tokens of each prompt (default: 512,2048 on a CPU)', wholes)
    .option('--batch <list>', 'prompts together (default: 1 on a CPU)', wholes)
    .option('--breakdown', 'also show the time of each kind of op')
    .action(prefills);
  const decode = common(addModel(new Command('decode').description('Time generating, token by token.')), 5)
    .option('--batch <list>', 'sequences together (default: 1,8 on a CPU)', wholes)
    .option('--steps <n>', 'tokens of each sequence in a run', whole, 64)
    .option('--breakdown', 'also show the time of each kind of op')
    .action(decodes);
  const generate = common(
    addModel(new Command('generate').description('Time whole calls of generate, with sampling.')),
    3,
  )
    .option('--batch <list>', 'sequences together (default: 1,8 on a CPU)', wholes)
    .option('--new-tokens <n>', 'tokens of each sequence', whole, generation.newTokens)
    .action(generates);
  const experts = common(
    addModel(
      new Command('experts').description("Time a mixture's layers of experts alone."),
      'blackmamba-1.5b',
    ),
    5,
  )
    .option('--tokens <list>', 'tokens together', wholes, [1, 64])
    .addHelpText('after', '\nBeside each time: that of routing alone, and of a plain loop over the experts.')
    .action(expertLayers);
  const train = common(addPreset(new Command('train').description('Time steps of training.')), 5)
    .option('--batch <list>', 'sequences together (default: 1; on a GPU 8)', wholes)
    .option('--length <list>', 'tokens of each (default: 128; on a GPU 2048)', wholes)
    .option('--breakdown', 'also show the time of each kind of op')
    .action(trains);
  return new Command('bench')
    .description('Measure speed on this machine: single ops, prompts, generation, training.')
    .addCommand(scanCommand())
    .addCommand(scanBackwardCommand())
    .addCommand(conv)
    .addCommand(s4d)
    .addCommand(prefill)
    .addCommand(decode)
    .addCommand(generate)
    .addCommand(train)
    .addCommand(experts)
    .addHelpText('after', help);
}

async function trains(flags: TrainFlags): Promise<void> {
  const session = await Session.open(flags, 'train_step', ['bf16']);
  const { device, isGpu, dtypes } = session;
  const { batch, length } = isGpu ? peerTraining : { batch: 1, length: 128 };
  await session.eachThreads(async () => {
    for (const name of flags.model) {
      const preset = presets[name];
      const config = preset ? presetConfig(...preset) : mixturePresets[name];
      if (!config) {
        const known = Object.keys({ ...presets, ...mixturePresets }).join(', ');
        throw new UsageError(`--model is ${name}, expected ${known}`);
      }
      for (const dtype of dtypes) {
        const bench = await TrainingBench.open(device, name, config, dtype);
        try {
          for (const sequences of flags.batch ?? [batch]) {
            for (const tokens of flags.length ?? [length]) {
              const shape = { batch: sequences, length: tokens };
              await session.add(await bench.time(shape, flags.runs));
              if (flags.breakdown) session.addOps(await bench.ops(shape));
            }
          }
        } finally {
          bench.dispose();
          device.trim();
        }
      }
    }
  });
  await session.finish(
    bars('Steps of training (sequences × tokens)', 'tokens per second', 'tokensPerSecond'),
  );
}

async function convs(flags: ConvFlags): Promise<void> {
  const session = await Session.open(flags, 'conv', ['bf16']);
  const { device, isGpu } = session;
  const shapes =
    combinations<ConvShape>(flags, { batch: [1], dim: [1536], length: [2048], width: [4] }) ??
    (isGpu ? peerConvShapes : convShapes);
  await session.eachThreads(async () => {
    const bandwidth = await measureBandwidth(device);
    for (const dtype of session.dtypes) {
      for (const shape of shapes) {
        await session.add(await benchConv(device, shape, dtype, { bandwidth, runs: flags.runs }));
        device.trim();
      }
    }
  });
  await session.finish(
    bars('Causal convolution (batch × channels × tokens)', 'GB per second', 'gbPerSecond'),
  );
}

async function s4ds(flags: S4DFlags): Promise<void> {
  const session = await Session.open(flags, 's4d', ['bf16']);
  const { device } = session;
  const defaults = { batch: [1], dim: [512], length: [1024, 65536], state: [64] };
  const shapes = combinations<S4DShape>(flags, defaults) ?? s4dShapes;
  if (!device.fft.found) throw new DeviceError(`bench s4d: ${device.fft.text}`);
  await session.eachThreads(async () => {
    for (const dtype of session.dtypes) {
      for (const shape of shapes) {
        for (const result of await benchS4D(device, shape, dtype, flags.runs)) await session.add(result);
        device.trim();
      }
    }
  });
  await session.finish(bars('S4D (batch × channels × tokens)', 'tokens per second', 'tokensPerSecond'));
}

const bars = (title: string, axis: string, figure: string) => (lines: readonly Line[]) =>
  plot(barsOf(lines, title, axis, figure));

async function prefills(flags: PrefillFlags): Promise<void> {
  const session = await Session.open(flags, 'prefill', ['bf16']);
  const { batch, lengths } = flags;
  const asked = batch ?? lengths;
  const prompts =
    session.isGpu && !asked
      ? peerPrompts
      : (batch ?? [1]).flatMap((batch) => (lengths ?? [512, 2048]).map((length) => ({ batch, length })));
  await session.eachModel(flags, async (model, name) => {
    const earlier = session.lines.length;
    for (const prompt of prompts) {
      const result = await benchPrefill(model, name, prompt, flags.runs);
      await session.add(withLinearity(result, session.lines.slice(earlier)));
      if (flags.breakdown) session.addOps(await prefillOps(model, prompt));
    }
  });
  await session.finish(bars('Reading a prompt (sequences × tokens)', 'tokens per second', 'tokensPerSecond'));
}

const batches = (session: Session, { batch }: ModelFlags) => batch ?? (session.isGpu ? peerBatches : [1, 8]);

async function decodes(flags: DecodeFlags): Promise<void> {
  const session = await Session.open(flags, 'decode', ['bf16']);
  const { steps, runs } = flags;
  await session.eachModel(flags, async (model, name) => {
    const bandwidth = await measureBandwidth(session.device);
    for (const batch of batches(session, flags)) {
      const result = await benchDecode(model, name, { batch, steps }, bandwidth, runs);
      if (!flags.breakdown) await session.add(result);
      else {
        const { figures, ops } = await breakDown(model, batch, steps, runs);
        await session.add({ ...result, figures: { ...result.figures, ...figures } });
        session.addOps(ops);
      }
    }
  });
  await session.finish(
    bars('Decoding: steps alone', 'tokens per second, all sequences together', 'tokensPerSecond'),
  );
}

async function generates(flags: GenerateFlags): Promise<void> {
  const session = await Session.open(flags, 'generate', ['bf16']);
  const { newTokens, runs } = flags;
  await session.eachModel(flags, async (model, name) => {
    for (const batch of batches(session, flags)) {
      await session.add(await benchGenerate(model, name, { batch, newTokens }, runs));
    }
  });
  await session.finish(
    bars('Generating, with sampling', 'tokens per second, all sequences together', 'tokensPerSecond'),
  );
}

async function expertLayers(flags: ExpertsFlags): Promise<void> {
  const session = await Session.open(flags, 'experts', ['bf16']);
  await session.eachModel(flags, async (model, name) => {
    const bandwidth = await measureBandwidth(session.device);
    for (const tokens of flags.tokens) {
      await session.add(await benchExperts(model, name, tokens, bandwidth, flags.runs));
    }
  });
  await session.finish(bars('A layer of experts', 'GFLOP per second', 'gflopPerSecond'));
}
