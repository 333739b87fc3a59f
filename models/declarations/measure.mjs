/**
 * Bits per byte of the model here on the files that were held out from its training, beside what gzip,
 * brotli and xz need for the same bytes, all files in one:
 *   node models/declarations/measure.mjs <folder of corpus.mjs>
 * It needs xz on the path, and SELECTIVE_SCAN_DEVICE says where the model runs.
 */
import { Buffer } from 'node:buffer';
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';
import { AutoModelForCausalLM, evaluate } from '../../index.mjs';

const folder = process.argv[2];
if (folder === undefined) throw new Error('give the folder that corpus.mjs wrote');

/** The files of a kind one after the other, in the order of their names. */
function joined(kind) {
  const names = readdirSync(join(folder, kind)).sort();
  return Buffer.concat(names.map((name) => readFileSync(join(folder, kind, name))));
}

const compressed = {
  'gzip -9': (bytes) => gzipSync(bytes, { level: 9 }),
  'brotli -11': (bytes) =>
    brotliCompressSync(bytes, {
      params: { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_LGWIN]: 24 },
    }),
  'xz -9e': (bytes) => execFileSync('xz', ['-9e', '-c'], { input: bytes }),
};

const model = await AutoModelForCausalLM.fromPretrained(dirname(fileURLToPath(import.meta.url)));
for (const kind of ['validation', 'test']) {
  const bytes = joined(kind);
  const { bitsPerByte } = await evaluate(model, bytes);
  console.log(`${kind}: ${bytes.length} bytes`);
  console.log(`  ${'this model'.padEnd(12)} ${bitsPerByte.toFixed(4)} bits per byte`);
  for (const [name, compress] of Object.entries(compressed))
    console.log(`  ${name.padEnd(12)} ${((8 * compress(bytes).length) / bytes.length).toFixed(4)}`);
}
model.dispose();
