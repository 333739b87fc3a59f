import { existsSync, readFileSync } from 'node:fs';
import { availableParallelism, freemem, totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { Command } from 'commander';
import { device as openDevice, type Device, type DeviceInfo } from '../device';
import { addonPath, packageVersion } from '../loader';
import { native } from '../native';
import { ops } from '../op';
import '../ops/matmul';
import '../ops/scan';
import { measure } from '../verify/measure';
import type { Case } from '../verify/cases';
import { exitCodes } from './exit';
import { oneLine, print, size, table } from './terminal';

const help = `
Tells what was found, what was tried, and why something is not used. Ends with 0
when the CPU works: a missing CUDA device is no failure. It runs one small scan and one
matmul on each device; "selective-scan verify" runs everything.

Examples:
  $ selective-scan doctor
  $ selective-scan doctor --json > report.json      # for an issue`;

export function doctorCommand(): Command {
  return new Command('doctor')
    .description('Look whether everything is in place: the native addon, the CPU, CUDA.')
    .option('--json', 'write one JSON object')
    .addHelpText('after', help)
    .action(async ({ json }: { readonly json?: boolean }) => {
      const found = await examine();
      await print(json ? `${JSON.stringify(found, undefined, 2)}\n` : describe(found));
      if (!found.ok) process.exitCode = exitCodes.failed;
    });
}

/** A device as it was found, or why there is none. */
interface Examined {
  readonly works: boolean;
  readonly info?: DeviceInfo;
  /** Of one scan, and of one bf16 matmul, against f64, relative to the largest value. */
  readonly scanError?: number;
  readonly matmulError?: number;
  /** Which FFTs convolutions of whole sequences use, or why there are none. */
  readonly fft?: string;
  readonly reason?: string;
}

type Report = Awaited<ReturnType<typeof examine>>;

async function examine() {
  const addon = examineAddon();
  const notLoaded: Examined = { works: false, reason: 'the native addon does not load' };
  const cpu = addon.loads ? await examineDevice('cpu') : notLoaded;
  const cuda = addon.loads ? await examineDevice('cuda') : notLoaded;
  return {
    ok: cpu.works,
    version: packageVersion(),
    node: process.versions.node,
    platform: `${process.platform}-${process.arch}`,
    libc: libc(),
    cores: availableParallelism(),
    memory: { total: totalmem(), free: freemem() },
    addon,
    cpu,
    cuda: {
      ...cuda,
      driver: cudaDriver(),
      module: addon.path === undefined ? undefined : cudaModule(addon.path),
    },
  };
}

function examineAddon(): { readonly loads: boolean; readonly path?: string; readonly reason?: string } {
  let path: string | undefined;
  try {
    path = addonPath();
    native();
    return { loads: true, path };
  } catch (error) {
    return { loads: false, path, reason: (error as Error).message };
  }
}

/** How far a small call is from f64, and how far it may be. */
async function tried(device: Device, name: string, each: Case) {
  const [outcome] = await measure(ops.get(name)!, device, each);
  return outcome!;
}

async function examineDevice(name: string): Promise<Examined> {
  let device: Device;
  try {
    device = openDevice(name);
  } catch (error) {
    return { works: false, reason: (error as Error).message };
  }
  try {
    const scan = await tried(device, 'selective_scan', { sizes: { t: 33, d: 17, n: 16 } });
    // Of a size for which cuBLASLt is looked for, so that `info` can tell of it.
    const half = { T: 'bf16', W: 'bf16', Y: 'f32' } as const;
    const matmul = await tried(device, 'matmul', { sizes: { m: 64, n: 64, k: 64 }, dtypes: half });
    const reasons = Object.entries({ scan, matmul })
      .filter(([, { error, bound }]) => !(error <= bound))
      .map(([name, { error }]) => `a small ${name} differs from f64 by ${error.toExponential(1)}`);
    return {
      works: reasons.length === 0,
      info: device.info,
      scanError: scan.error,
      matmulError: matmul.error,
      fft: device.fft.text,
      reason: reasons.join('\n') || undefined,
    };
  } catch (error) {
    return { works: false, info: device.info, reason: (error as Error).message };
  }
}

/** Node says which glibc it runs on; another C library gives none. */
function libc(): string | undefined {
  const { header } = process.report.getReport() as {
    readonly header: { readonly glibcVersionRuntime?: string };
  };
  return header.glibcVersionRuntime && `glibc ${header.glibcVersionRuntime}`;
}

/** What the kernel's driver says of itself; undefined where none is loaded. */
function cudaDriver(): string | undefined {
  const path = '/proc/driver/nvidia/version';
  return existsSync(path) ? /(\d+\.\d+(\.\d+)?)/.exec(readFileSync(path, 'utf8'))?.[1] : undefined;
}

/** Where the addon looks for the CUDA module, and whether it is there. */
function cudaModule(addon: string): { readonly path: string; readonly found: boolean } {
  const path = process.env['SELECTIVE_SCAN_CUDA_MODULE'] || join(dirname(addon), 'libselective_scan_cuda.so');
  return { path, found: existsSync(path) };
}

function describe(report: Report): string {
  const { addon, cpu, cuda } = report;
  const where = [report.platform, report.libc].filter(Boolean).join(', ');
  const lines: (readonly [string, string])[] = [
    ['Node', `${report.node} on ${where}`],
    ['cores', `${report.cores}`],
    ['memory', `${size(report.memory.total)}, ${size(report.memory.free)} free`],
    ['addon', addon.loads ? `loads (${addon.path})` : 'does not load'],
    ...reason(addon.reason),
    ['CPU', verdict(cpu)],
    ...reason(cpu.reason),
    ['CUDA', verdict(cuda)],
    ...(cuda.works ? [] : reason(cuda.reason)),
    [
      '',
      `module: ${cuda.module ? `${cuda.module.path}${cuda.module.found ? '' : ' (not there)'}` : 'unknown'}`,
    ],
    ['', `driver: ${cuda.driver ?? 'none'}`],
    ...reason(cuda.info?.blas),
    ...reason(cuda.fft),
  ];
  const end = report.ok ? 'Ready: the CPU works.' : 'Not ready: the CPU does not work, for the reason above.';
  const all = report.ok && cuda.works ? 'Ready: the CPU and CUDA work.' : end;
  return `selective-scan ${report.version}\n\n${table(lines)}\n${all}\n`;
}

function reason(text: string | undefined): (readonly [string, string])[] {
  return (text?.split('\n') ?? []).map((line) => ['', oneLine(line)]);
}

function verdict({ works, info, scanError: error }: Examined): string {
  if (!info) return 'not available';
  const what = `${info.name}, ${info.detail}, ${info.units} ${info.id === 'cpu' ? 'threads' : 'multiprocessors'}`;
  return works
    ? `works: ${what} (a scan is within ${error!.toExponential(0)} of f64)`
    : `does not work: ${what}`;
}
