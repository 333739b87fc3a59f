import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { temporaryFolder } from './checkpoints';

const folder = temporaryFolder();
const MB = 1e6;
interface Peak {
  readonly weights: number;
  readonly before: number;
  readonly peak: number;
  readonly onCpu: boolean;
}
const script = ['--require', join(__dirname, '..', 'typescript.cjs'), join(__dirname, 'peak.ts')];
const run = async (what: string) =>
  (await promisify(execFile)(process.execPath, [...script, folder.path, what])).stdout;

describe('loading from disk', () => {
  it('takes at most 1.15 times the weights and 150 MB', async () => {
    await run('write');
    for (const [what, dtype, size] of [
      ['safetensors', 'auto', 190],
      ['safetensors', 'bf16', 95],
      ['pickle', 'auto', 190],
    ] as const) {
      if (what === 'pickle') await run('pickle');
      const { weights, before, peak, onCpu } = JSON.parse(await run(dtype)) as Peak;
      expect(weights).toBeGreaterThan(size * MB);
      expect(peak).toBeGreaterThan(before);
      // Weights on a GPU are not in the process, and its driver is not ours.
      if (onCpu) expect(peak).toBeLessThan(1.15 * weights + 150 * MB);
      else expect(peak - before).toBeLessThan(1.15 * weights + 20 * MB);
    }
  });
});
