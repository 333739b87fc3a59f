/**
 * Draws the curve of a training in bits per byte, from the end of its warm-up on:
 *   node models/declarations/curve.mjs <log.jsonl> <to.svg>
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { lines } from '../../dist/plot/lines.js';

const [log, to] = process.argv.slice(2);
if (to === undefined) throw new Error('give the log of a training, and a file for the drawing');

const warmup = 200; // before it losses are several times as large
const records = readFileSync(log, 'utf8')
  .trimEnd()
  .split('\n')
  .map((line) => JSON.parse(line));
const points = (name) =>
  records
    .filter((each) => name in each && each.step >= warmup)
    .map((each) => [each.step, each[name] / Math.LN2]);
writeFileSync(
  to,
  lines({
    title: 'Training on declarations',
    x: 'step',
    y: 'bits per byte',
    series: [
      { name: 'training', points: points('loss'), style: 'pale' },
      { name: 'validation, averaged parameters', points: points('validation'), style: 'dots' },
    ],
  }),
);
