import { cpSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { temporaryFolder } from '../io/folder';
import { run } from './run';

const folder = temporaryFolder();
const root = join(__dirname, '..', '..');

/** The library as it is, but for the reference of one op. */
function withWrongReference(): string {
  cpSync(join(root, 'lib'), folder.at('lib'), { recursive: true });
  cpSync(join(root, 'package.json'), folder.at('package.json'));
  for (const name of ['node_modules', 'build']) symlinkSync(join(root, name), folder.at(name));
  const path = folder.at('lib', 'verify', 'reference.ts');
  const right = readFileSync(path, 'utf8');
  const wrong = right.replace('-Math.exp(v)', '-Math.exp(v) * 1.01');
  expect(wrong).not.toBe(right);
  writeFileSync(path, wrong);
  return folder.path;
}

// Minutes of processor time, on machines that do other work too.
jest.setTimeout(900_000);

describe('verify', () => {
  it('prints the largest error of each kernel and dtype beside its bound', async () => {
    const { code, stdout, stderr } = await run(['verify', '--device', 'cpu']);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(
      /^.+ \(cpu\)\n\n {2}kernel +result +cases +error +bound +again +captured +pieces\n/,
    );
    expect(stdout).toMatch(/^ {2}selective_scan +bf16 +\d+ +\d\.\de-\d+ +\d\.\de-\d+ +same +same +same$/m);
    expect(stdout).toMatch(/\nAll \d+ kernels are within their bounds, in \d+ s\.\n/);
  });

  it('ends with 1, and names the kernel, when one is over its bound', async () => {
    const { code, stdout } = await run(['verify', '--device', 'cpu'], { root: withWrongReference() });
    expect(code).toBe(1);
    expect(stdout).toMatch(/^ {2}neg_exp +f32 .*FAILED$/m);
    expect(stdout).toMatch(/^ {2}neg_exp, f64: f32 differs by 9\.9e-3, at most 1\.0e-6 allowed \(y; /m);
    expect(stdout).toMatch(/\n1 of \d+ checks failed, in \d+ s\.\n/);
  });

  it.each(['gpu', 'cuda:99'])('refuses the device %s', async (name) => {
    const { code, stdout, stderr } = await run(['verify', '--device', name]);
    expect({ code, stdout }).toEqual({ code: name === 'gpu' ? 2 : 1, stdout: '' });
    expect(stderr).toMatch(/^error: (--)?device /);
  });

  it.each([
    ['65536', 2],
    ['one', 2],
  ])('refuses the seed %s', async (seed, wanted) => {
    const { code, stdout, stderr } = await run(['verify', '--device', 'cpu', '--seed', seed]);
    expect({ code, stdout }).toEqual({ code: wanted, stdout: '' });
    expect(stderr).toMatch(/seed/);
  });
});
