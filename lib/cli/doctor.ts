import { existsSync, readFileSync } from 'node:fs';
import { availableParallelism, freemem, totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { Command } from 'commander';
import { device as openDevice, type Device, type DeviceInfo } from '../device';
import { addonPath, packageRoot } from '../loader';
import { native } from '../native';
import { exitCodes } from './exit';
import { scanError } from './self-test';
import { oneLine, print, size, table } from './terminal';

const help = `
Tells what was found, what was tried, and why something is not used. Ends with 0
when the CPU works: a missing CUDA device is no failure.

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
  /** Of one scan against a plain loop, relative to the largest value. */
  readonly scanError?: number;
  readonly reason?: string;
}

type Report = Awaited<ReturnType<typeof examine>>;

async function examine() {
  const { version } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')) as {
    version: string;
  };
  const addon = examineAddon();
  const notLoaded = { works: false, reason: 'the native addon does not load' };
  const cpu = addon.loads ? await examineDevice('cpu') : notLoaded;
  const cuda = addon.loads ? await examineDevice('cuda') : notLoaded;
  return {
    ok: cpu.works,
    version,
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

/** Half-precision is not involved: a working scan is within a few roundings of f32. */
const tolerance = 1e-5;

async function examineDevice(name: string): Promise<Examined> {
  let device: Device;
  try {
    device = openDevice(name);
  } catch (error) {
    return { works: false, reason: (error as Error).message };
  }
  try {
    const error = await scanError(device);
    const works = error < tolerance;
    const reason = works ? undefined : `a small scan differs from a plain loop by ${error.toExponential(1)}`;
    return { works, info: device.info, scanError: error, reason };
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
    ? `works: ${what} (a scan is within ${error!.toExponential(0)} of a plain loop)`
    : `does not work: ${what}`;
}
