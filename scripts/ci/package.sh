#!/usr/bin/env bash
# From prebuild to a user's empty folder: the packed tarball must install with nothing but Node and
# npm on PATH and work from import and require; a broken binary must end in one readable error.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
work=$(mktemp -d)
log=$work/log
# prebuildify moves the addon out of build/Release: put it back.
restore() {
  cd "$root"
  rm -rf "$work" prebuilds
  node scripts/build.cjs >/dev/null 2>&1
}
trap restore EXIT
fail() { echo "FAILED: $*"; [ ! -e "$log" ] || cat "$log"; exit 1; }

echo "-- prebuild"
if command -v nvcc >/dev/null; then export SELECTIVE_SCAN_CUDA=1 SELECTIVE_SCAN_CUDA_ARCHS=90; fi
npm run prebuildify >"$log" 2>&1 || fail "prebuildify"
(cd prebuilds && find . -type f | sort)

echo "-- pack"
tarball=$work/$(npm pack --pack-destination "$work" 2>"$log" | tail -1)
npx publint run "$tarball" --strict >"$log" 2>&1 || fail "publint"
npx attw "$tarball" --no-emoji >"$log" 2>&1 || fail "attw"
tar -tzf "$tarball" | grep -vE '^package/(dist|native|cuda|prebuilds)/' | sort

echo "-- install with Node and npm alone"
mkdir "$work/bin" "$work/app"
npm_cli=$(readlink -f "$(command -v npm)")
ln -s "$(command -v node)" "$(command -v sh)" "$(command -v env)" "$work/bin/"
ln -s "$npm_cli" "$work/bin/npm"
cp scripts/ci/smoke.mjs "$work/app/"
cd "$work/app"
echo '{ "private": true }' >package.json
alone() { env PATH="$work/bin" "$@"; }
for tool in cc c++ g++ gcc clang make ninja cmake python python3 nvcc; do
  ! alone sh -c "command -v $tool" >/dev/null || fail "$tool is on the PATH that should be bare"
done
alone npm install --prefer-offline "$tarball" >"$log" 2>&1 || fail "npm install"
[ ! -e node_modules/selective-scan/build ] || fail "the install built something"
alone node smoke.mjs || fail "the smoke test"
alone node_modules/.bin/selective-scan --version || fail "the command line"

echo "-- a binary that does not load"
echo broken >"$(echo node_modules/selective-scan/prebuilds/*/*.node)"
if alone node smoke.mjs >"$log" 2>&1; then fail "it loaded"; fi
grep -q 'LoadError: ' "$log" || fail "not a LoadError"
grep -q 'Tried:' "$log" || fail "what was tried is missing"
grep -q 'prebuilds/.*\.node: ' "$log" || fail "the file is not named"
grep -A3 'LoadError: ' "$log" | head -4
