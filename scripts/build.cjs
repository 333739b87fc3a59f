#!/usr/bin/env node
'use strict';
// Builds the addon into build/Release, and the CUDA module where it is wanted. npm's install script,
// node-gyp (through binding.gyp) and prebuildify all end here; CMakeLists.txt holds the build itself.
//   SELECTIVE_SCAN_CUDA=1|0           build the CUDA module, or don't (default: if nvcc and a driver are there)
//   SELECTIVE_SCAN_CUDA_ARCHS=90      compute capabilities, e.g. only that of the card at hand
const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const root = path.join(__dirname, '..');
const out = path.join(root, 'build', 'cmake');

// node-gyp runs this under make; a second make must not take its settings for its own.
for (const name of ['MAKEFLAGS', 'MFLAGS', 'MAKELEVEL', 'BUILDTYPE', 'V']) delete process.env[name];

function fail(message) {
  console.error(`selective-scan: ${message}`);
  process.exit(1);
}

function runs(command, args, input) {
  return spawnSync(command, args, { input, stdio: ['pipe', 'ignore', 'ignore'] }).status === 0;
}

function checkTools() {
  const compilers = process.env.CXX ? [process.env.CXX] : ['c++', 'g++', 'clang++'];
  const cpp20 = ['-std=c++20', '-fsyntax-only', '-x', 'c++', '-'];
  const missing = [];
  if (!runs('cmake', ['--version'])) missing.push('CMake 3.22 or later');
  if (!compilers.some((cxx) => runs(cxx, cpp20, '#include <concepts>\n')))
    missing.push(`a C++20 compiler (tried: ${compilers.join(', ')})`);
  if (!runs('ninja', ['--version']) && !runs('make', ['--version'])) missing.push('Ninja or make');
  if (missing.length > 0)
    fail(
      `there is no prebuilt binary for this machine (${process.platform}-${process.arch}), and building one ` +
        `needs ${missing.join(' and ')}.\n` +
        'On Debian and Ubuntu: apt-get install cmake g++ make. Then run npm install again.',
    );
}

function cudaOption(value) {
  if (value === undefined || value === '') return 'AUTO';
  if (value === '1') return 'ON';
  if (value === '0') return 'OFF';
  return fail(`SELECTIVE_SCAN_CUDA is ${JSON.stringify(value)}, expected 1 or 0, or nothing`);
}

// CMake refuses a build folder that another generator, or another place, has made.
function dropForeignCache(generator) {
  const cache = path.join(out, 'CMakeCache.txt');
  if (!fs.existsSync(cache)) return;
  const text = fs.readFileSync(cache, 'utf8');
  const ours = [`CMAKE_GENERATOR:INTERNAL=${generator}\n`, `CMAKE_HOME_DIRECTORY:INTERNAL=${root}\n`];
  if (!ours.every((line) => text.includes(line))) fs.rmSync(out, { recursive: true });
}

async function build() {
  checkTools();
  const { BuildSystem } = require('cmake-js');
  const generator = runs('ninja', ['--version']) ? 'Ninja' : 'Unix Makefiles';
  dropForeignCache(generator);
  const cMakeOptions = {
    SELECTIVE_SCAN_CUDA: cudaOption(process.env.SELECTIVE_SCAN_CUDA),
    SELECTIVE_SCAN_CUDA_ARCHS: process.env.SELECTIVE_SCAN_CUDA_ARCHS ?? '',
  };
  const parallel = String(os.availableParallelism());
  const cmake = new BuildSystem({ directory: root, out, generator, parallel, cMakeOptions });
  await cmake.configure();
  await cmake.build();
}

build().catch((error) => fail(`the native build failed: ${error.message}`));
