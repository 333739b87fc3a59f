import { Command } from 'commander';
import { measureBandwidth } from '../bench/bandwidth';
import { askCard, expBound } from '../bench/card';
import { roofline } from '../bench/roofline';
import {
  benchScan,
  benchScanBackward,
  benchScanSteps,
  mostSteps,
  peerScanShapes,
  scanShapes,
  type ScanOptions,
  type ScanShape,
} from '../bench/scan';
import type { FloatFormat } from '../io/convert';
import { combinations, common, whole, wholes, type CommonFlags, type Lists } from './bench-flags';
import { Session } from './bench-session';
import { note } from './terminal';

interface ScanFlags extends CommonFlags, Lists<ScanShape> {
  readonly reference?: boolean;
  readonly fresh?: boolean;
  readonly clock?: number;
}

const addShapes = (command: Command) =>
  common(command, 20)
    .option('--batch <list>', 'sequences', wholes)
    .option('--dim <list>', 'channels', wholes)
    .option('--length <list>', 'tokens of each sequence', wholes)
    .option('--state <list>', 'state size', wholes)
    .option('--clock <MHz>', "the GPU's highest clock, where nvidia-smi cannot tell it", whole)
    .addHelpText(
      'after',
      "\nWithout sizes: shapes of the 130m and 2.8b models, on a GPU its peers'. With lists: all combinations.",
    );

export const scanCommand = (): Command =>
  addShapes(new Command('scan').description('Time the selective scan alone.'))
    .option('--fresh', 'start from zero and keep no states (as the shapes of peers do)')
    .option('--reference', `also time it unfused: one call for each token, up to ${mostSteps}`)
    .action(scans);

export const scanBackwardCommand = (): Command =>
  addShapes(
    new Command('scan-backward').description(
      'Time the gradients of the selective scan alone, of sequences that start from zero.',
    ),
  ).action(scansBackward);

async function scans(flags: ScanFlags): Promise<void> {
  await timeScans(flags, 'scan', async (session, shape, dtype, options) => {
    await session.add(await benchScan(session.device, shape, dtype, options));
    if (flags.reference && shape.length <= mostSteps) {
      await session.add(await benchScanSteps(session.device, shape, dtype, options));
    }
  });
}

async function scansBackward(flags: ScanFlags): Promise<void> {
  await timeScans(flags, 'scan_bwd', async (session, shape, dtype, options) => {
    await session.add(await benchScanBackward(session.device, shape, dtype, options));
  });
}

async function timeScans(
  flags: ScanFlags,
  bench: string,
  time: (session: Session, shape: ScanShape, dtype: FloatFormat, options: ScanOptions) => Promise<void>,
): Promise<void> {
  const session = await Session.open(flags, bench, ['bf16', 'f32']);
  const { device, isGpu } = session;
  const chosen = combinations<ScanShape>(flags, { batch: [1], dim: [1536], length: [2048], state: [16] });
  const shapes = chosen ?? (isGpu ? peerScanShapes : scanShapes);
  const fresh = flags.fresh ?? (isGpu && chosen === undefined);
  const bound = expBound(device, flags.clock ?? askCard(device)?.clock);
  if (isGpu && bound === undefined) {
    note('nvidia-smi tells no clock: no bound of the special-function units; --clock gives it');
  }
  await session.eachThreads(async () => {
    const bandwidth = await measureBandwidth(device);
    const options = { bandwidth, expBound: bound, fresh, runs: flags.runs };
    for (const dtype of session.dtypes) {
      for (const shape of shapes) {
        await time(session, shape, dtype, options);
        device.trim();
      }
    }
  });
  await session.finish(roofline);
}
