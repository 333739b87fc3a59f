import { Command } from 'commander';
import { device as openDevice, type Device } from '../device';
import { verify, type VerifyRow } from '../index';
import { number } from './arguments';
import { exitCodes } from './exit';
import { oneLine, print, table } from './terminal';

const help = `
Runs every kernel in every dtype, with odd lengths (1, 3, 33, 257, 1025) in the place of
every size, and holds the results against the same maths in f64. Then the same call again,
from a captured graph, and, where there are sequences, in pieces down to single tokens:
to the bit on the CPU; pieces on a GPU within rounding.

Errors and bounds are shares of the largest magnitude. In half precision the bound is twice
the error that the same maths has when its result is rounded once.

Without --device: the one of SELECTIVE_SCAN_DEVICE, or the CPU and, if there is one, the GPU.
Takes about 40 seconds of processor time. Ends with 0 when everything is within its bound, otherwise with 1.

Examples:
  $ selective-scan verify
  $ selective-scan verify --device cuda --json > report.json
  $ selective-scan verify --seed 7`;

interface Flags {
  readonly device?: string;
  readonly seed?: number;
  readonly json?: boolean;
}

interface Verified {
  readonly device: Device['info'];
  readonly passed: boolean;
  readonly seconds: number;
  readonly rows: readonly VerifyRow[];
}

export function verifyCommand(): Command {
  return new Command('verify')
    .description('Check that every kernel computes what it should, on this machine.')
    .option('--device <name>', 'cpu, cuda or cuda:<index>')
    .option('--seed <n>', 'other values, 0 to 65535 (default: 0)', number)
    .option('--json', 'write one JSON object')
    .addHelpText('after', help)
    .action(async ({ device, seed, json }: Flags) => {
      const done: Verified[] = [];
      for (const on of chosen(device)) {
        done.push(await verified(on, seed));
        if (!json) await print(describe(done.at(-1)!));
      }
      const passed = done.every((each) => each.passed);
      if (json) await print(`${JSON.stringify({ passed, devices: done }, undefined, 2)}\n`);
      if (!passed) process.exitCode = exitCodes.failed;
    });
}

function chosen(name: string | undefined): Device[] {
  if (name !== undefined || process.env['SELECTIVE_SCAN_DEVICE']) return [openDevice(name)];
  const cpu = openDevice('cpu');
  try {
    return [cpu, openDevice('cuda')];
  } catch {
    return [cpu]; // `doctor` tells why
  }
}

async function verified(on: Device, seed: number | undefined): Promise<Verified> {
  const begin = performance.now();
  const rows = await verify(on, ([first]) => shown(first ? `${on.id}: ${first.op}` : ''), seed);
  shown('');
  return {
    device: on.info,
    passed: rows.every(({ passed }) => passed),
    seconds: (performance.now() - begin) / 1000,
    rows,
  };
}

/** What is done, in place, for whoever watches. */
function shown(what: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\u001b[2K${oneLine(what)}`);
}

const short = (x: number) => (x === 0 ? '0' : x.toExponential(1));

/** A line for each op and dtype, whatever was checked of it. */
function describe({ device, rows, seconds, passed }: Verified): string {
  const lines = new Map<string, VerifyRow[]>();
  for (const row of rows) {
    const key = `${row.op} ${row.dtype}`;
    lines.set(key, [...(lines.get(key) ?? []), row]);
  }
  const cells = [...lines.values()].map((line) => {
    const of = (check: VerifyRow['check']) => line.find((row) => row.check === check && !row.reason);
    const f64 = of('f64');
    const equal = (row: VerifyRow | undefined) =>
      row === undefined ? '' : row.error === 0 ? 'same' : `${short(row.error)} of ${short(row.bound)}`;
    return [
      line[0]!.op,
      line[0]!.dtype,
      String(line.reduce((sum, { cases }) => sum + cases, 0)),
      f64 ? short(f64.error) : '',
      f64 ? short(f64.bound) : '',
      ...(['again', 'captured', 'pieces'] as const).map((check) => equal(of(check))),
      line.every((row) => row.passed) ? '' : 'FAILED',
    ];
  });
  const head = ['kernel', 'result', 'cases', 'error', 'bound', 'again', 'captured', 'pieces', ''];
  const failed = rows.filter((row) => !row.passed);
  const kernels = new Set(rows.map(({ op }) => op)).size;
  const end = passed
    ? `All ${kernels} kernels are within their bounds`
    : `${failed.length} of ${rows.length} checks failed`;
  const causes = failed.map(
    ({ op, dtype, check, error, bound, worst, reason }) =>
      `  ${op}, ${check}: ${oneLine(reason ?? `${dtype} differs by ${short(error)}, at most ${short(bound)} allowed (${worst})`)}\n`,
  );
  return (
    `${device.name} (${device.id})\n\n${table([head, ...cells], [2, 3, 4])}\n` +
    `${causes.join('')}${end}, in ${seconds.toFixed(0)} s.\n\n`
  );
}
