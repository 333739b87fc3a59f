#!/usr/bin/env bash
# compute-sanitizer's tools over the table tests on the GPU: a line for each, and 0 only if all are clean.
#   scripts/gpu/sanitize.sh [tool ...]     memcheck, synccheck, initcheck and racecheck by default
# LIMIT: seconds a tool may take (600). LOG: a folder for all that they write (a temporary one).
set -uo pipefail
cd "$(dirname "$0")/../.."

limit=${LIMIT:-600}
log=${LOG:-$(mktemp -d)}
mkdir -p "$log"
[ $# -gt 0 ] || set -- memcheck synccheck initcheck racecheck
for program in compute-sanitizer node; do
  command -v "$program" >/dev/null || { echo "$program is not on the path"; exit 1; }
done

# Every kernel in every form and dtype, at sizes that are not the largest: racecheck follows each access.
small='takes every dtype|can do without|every form and attribute|strided rows|same bits twice'

failed=0
for tool in "$@"; do
  out=$log/$tool.txt
  begin=$SECONDS
  only=()
  [ "$tool" = racecheck ] && only=(-t "$small")
  SELECTIVE_SCAN_DEVICE=cuda timeout "$limit" compute-sanitizer --tool "$tool" --target-processes all \
    --error-exitcode 99 --print-limit 100 \
    node node_modules/jest/bin/jest.js -i test/table.test.ts "${only[@]}" >"$out" 2>&1
  status=$?
  # Of several processes each writes a summary.
  errors=$(sed -nE 's/^=+ (ERROR|RACECHECK) SUMMARY: ([0-9]+) (error|hazard).*/\2/p' "$out" |
    awk '{ sum += $1; found = 1 } END { print found ? sum : "no" }')
  tests=$(sed -nE 's/^Tests: +(.*)/\1/p' "$out" | tail -1)
  [ "$status" = 124 ] && tests="stopped after $limit s"
  printf '%-10s %s errors; tests: %s; %d s\n' "$tool" "$errors" "${tests:-none ran}" $((SECONDS - begin))
  if [ "$status" != 0 ] || [ "$errors" != 0 ]; then
    failed=1
    grep -E '^=+ (Invalid|Uninit|Error|Barrier|Program hit|Warning|    at )' "$out" | sort | uniq -c | sort -rn | head -20
  fi
done
echo "full output: $log"
exit $failed
