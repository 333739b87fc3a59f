// Loads the installed package both ways and runs one op. Lies in the folder that has it installed.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

const required = createRequire(import.meta.url)('selective-scan');
const imported = await import('selective-scan');

// Node adds names of its own to the namespace of a CommonJS module.
const names = (exports) =>
  Object.keys(exports).filter((name) => !['__esModule', 'module.exports'].includes(name));
assert.deepEqual(names(imported).sort(), names(required).sort(), 'import and require see the same names');
for (const name of names(required)) assert.equal(imported[name], required[name], `${name} is one copy`);

const { Tensor, rmsNorm } = required;
const y = rmsNorm({ x: Tensor.from([3, 4], [1, 2]), weight: Tensor.from([1, 2]), eps: 0 });
const [a, b] = await y.data();
assert.ok(Math.abs(a - 3 / Math.sqrt(12.5)) < 1e-6 && Math.abs(b - 8 / Math.sqrt(12.5)) < 1e-6);
console.log(`import and require see the same ${names(required).length} names; rmsNorm gives ${a}, ${b}`);
