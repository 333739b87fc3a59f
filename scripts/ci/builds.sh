#!/usr/bin/env bash
# The ways to build, after `npm ci` has built once in this tree: without nvcc, through node-gyp, and
# with nvcc but no card. They share build/cmake, so that nothing is compiled twice.
set -euo pipefail
cd "$(dirname "$0")/../.."
addon=build/Release/selective_scan.node
module=build/Release/libselective_scan_cuda.so
log=$(mktemp)
trap 'rm -f "$log"' EXIT
fail() { echo "FAILED: $*"; cat "$log"; exit 1; }

echo "-- a machine without nvcc builds the addon alone"
rm -f "$addon"
touch "$module"
env -u SELECTIVE_SCAN_CUDA CUDACXX=/nonexistent/nvcc node scripts/build.cjs >"$log" 2>&1 || fail "the build"
[ -e "$addon" ] || fail "no addon"
[ ! -e "$module" ] || fail "a CUDA module of an earlier build was left"

echo "-- and says what is missing when CUDA is asked for"
if SELECTIVE_SCAN_CUDA=1 CUDACXX=/nonexistent/nvcc node scripts/build.cjs >"$log" 2>&1; then
  fail "it built without nvcc"
fi
grep -q 'no working nvcc was found' "$log" || fail "the reason is missing"

echo "-- and names the Debian packages when there is no CMake or compiler"
bin=$(mktemp -d)
ln -s "$(command -v node)" "$bin/node"
if PATH=$bin node scripts/build.cjs >"$log" 2>&1; then fail "it built without tools"; fi
rm -r "$bin"
grep -q 'apt-get install cmake g++' "$log" || fail "the packages are not named"

gyp=$(npm root -g)/npm/node_modules/node-gyp/bin/node-gyp.js
prefix=$(dirname "$(dirname "$(readlink -f "$(command -v node)")")")
if [ -e "$gyp" ] && command -v python3 >/dev/null && [ -e "$prefix/include/node/common.gypi" ]; then
  echo "-- node-gyp ends in the same build"
  rm -f "$addon"
  node "$gyp" --nodedir="$prefix" configure build >"$log" 2>&1 || fail "node-gyp"
  [ -e "$addon" ] || fail "no addon from node-gyp"
else
  echo "-- node-gyp: not tried, this machine has no node-gyp, Python or Node headers"
fi

if command -v nvcc >/dev/null; then
  echo "-- with nvcc the CUDA module is compiled on request"
  SELECTIVE_SCAN_CUDA=1 SELECTIVE_SCAN_CUDA_ARCHS=90 node scripts/build.cjs >"$log" 2>&1 || fail "the build"
  ! grep -E 'warning' "$log" || fail "nvcc warns"
  [ -e "$module" ] || fail "no CUDA module"
  echo "-- and opens, or declines with the reason"
  node scripts/ci/cuda.mjs || fail "the CUDA device"
else
  echo "-- nvcc: not on this machine, so the CUDA module was not compiled"
fi
