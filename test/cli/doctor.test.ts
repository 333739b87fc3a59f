import { cpSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { temporaryFolder } from '../io/folder';
import { run } from './run';

const folder = temporaryFolder();
const root = join(__dirname, '..', '..');

interface Report {
  readonly ok: boolean;
  readonly version: string;
  readonly addon: { readonly loads: boolean; readonly path?: string; readonly reason?: string };
  readonly cpu: {
    readonly works: boolean;
    readonly scanError?: number;
    readonly matmulError?: number;
    readonly info?: { readonly units: number; readonly blas?: string };
    readonly fft?: string;
  };
  readonly cuda: {
    readonly works: boolean;
    readonly info?: { readonly blas?: string };
    readonly fft?: string;
    readonly reason?: string;
    readonly module?: { readonly found: boolean };
  };
}

/** The library without a binary; `binary` is what stands in its place. */
function withoutAddon(binary?: string): string {
  cpSync(join(root, 'lib'), folder.at('lib'), { recursive: true });
  cpSync(join(root, 'package.json'), folder.at('package.json'));
  symlinkSync(join(root, 'node_modules'), folder.at('node_modules'));
  if (binary !== undefined) {
    mkdirSync(folder.at('build', 'Release'), { recursive: true });
    writeFileSync(folder.at('build', 'Release', 'selective_scan.node'), binary);
  }
  return folder.path;
}

describe('doctor', () => {
  it('finds the CPU working, and tells about CUDA either way', async () => {
    const { code, stdout, stderr } = await run(['doctor']);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/^ {2}addon +loads \(.*selective_scan\.node\)$/m);
    expect(stdout).toMatch(/^ {2}CPU +works: .* threads? \(a scan is within \d+e-\d+ of f64\)$/m);
    expect(stdout).toMatch(/^ {2}CUDA +(works: |not available$|does not work: )/m);
    expect(stdout).toMatch(/\nReady: the CPU (works|and CUDA work)\.\n$/);
  });

  it('gives everything as JSON', async () => {
    const { code, stdout } = await run(['doctor', '--json'], { env: { SELECTIVE_SCAN_THREADS: '2' } });
    const report = JSON.parse(stdout) as Report;
    expect(code).toBe(0);
    expect(report).toMatchObject({
      ok: true,
      addon: { loads: true },
      cpu: { works: true, info: { units: 2 } },
    });
    expect(report.cpu.scanError).toBeLessThan(1e-5);
    expect(report.cpu.matmulError).toBeLessThan(1e-5);
    expect(report.cpu.info).not.toHaveProperty('blas');
    expect(report.cpu.fft).toBe('PFFFT, built in');
    expect(report.cuda.works || report.cuda.reason).toBeTruthy();
    // Which library there is, or what was tried: it has been looked for by then.
    if (report.cuda.info) expect(report.cuda.info.blas).toMatch(/^cuBLASLt (\d+\.\d+\.\d+ \(|is not used, )/);
    if (report.cuda.works) expect(report.cuda.fft).toMatch(/^cuFFT (\d+\.\d+\.\d+ \(|is not used, )/);
  });

  it('says why CUDA declines', async () => {
    writeFileSync(folder.at('module.so'), 'no module');
    const { code, stdout } = await run(['doctor'], {
      env: { SELECTIVE_SCAN_CUDA_MODULE: folder.at('module.so') },
    });
    expect(code).toBe(0);
    expect(stdout).toContain(`${folder.at('module.so')}: file too short`);
  });

  it('lists what was tried when there is no binary', async () => {
    const { code, stdout } = await run(['doctor'], { root: withoutAddon() });
    expect(code).toBe(1);
    expect(stdout).toMatch(/^ {2}addon +does not load$/m);
    expect(stdout).toContain(`${folder.at('build', 'Release')}: does not exist`);
    expect(stdout).toContain('npm rebuild selective-scan');
    expect(stdout).toMatch(/\nNot ready: .*\n$/);
  });

  it('gives the system’s reason when the binary does not load', async () => {
    const { code, stdout } = await run(['doctor', '--json'], { root: withoutAddon('no binary') });
    const { ok, addon } = JSON.parse(stdout) as Report;
    expect({ code, ok, loads: addon.loads }).toEqual({ code: 1, ok: false, loads: false });
    expect(addon.reason).toContain('file too short');
  });

  it('is not needed to be told so by other commands', async () => {
    const { code, stdout, stderr } = await run(
      ['generate', join(root, 'test', 'fixtures', 'mamba-text'), 'a'],
      {
        root: withoutAddon(),
      },
    );
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(/^error: selective-scan: no native binary for /);
    expect(stderr).not.toContain('    at ');
  });
});
