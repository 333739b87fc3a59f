#!/usr/bin/env bash
# compute-sanitizer's tools on the GPU over the table tests, and over tests of ops at sizes where other
# kernels take over: a line for each tool and set of tests, and status 0 only if all are clean. Sets run
# side by side, each in a process of its own. Needs a build and compute-sanitizer, and no network.
#   scripts/gpu/sanitize.sh [tool ...]     racecheck, initcheck, memcheck and synccheck by default
# ONLY: a pattern of the lines to run, e.g. 'racecheck scan'. FORMS: of the table's tests.
# LIMIT: seconds for one line (280). JOBS: how many at a time (the number of cores). LOG: a folder for all
# that they write (a temporary one).
set -uo pipefail
cd "$(dirname "$0")/../.."

limit=${LIMIT:-280}
most=${JOBS:-$(nproc)}
only=${ONLY:-}
log=${LOG:-$(mktemp -d)}
mkdir -p "$log"
[ $# -gt 0 ] || set -- racecheck initcheck memcheck synccheck # the slowest first
for program in compute-sanitizer node; do
  command -v "$program" >/dev/null || { echo "$program is not on the path"; exit 1; }
done
export SELECTIVE_SCAN_DEVICE=cuda
# cuBLASLt's kernels write in a way that initcheck does not see; ours multiply instead.
export SELECTIVE_SCAN_CUBLASLT=/nonexistent/libcublasLt.so
# How many hazards racecheck holds before it gives up.
export NV_COMPUTE_SANITIZER_MAX_RACECHECK_HAZARDS=${NV_COMPUTE_SANITIZER_MAX_RACECHECK_HAZARDS:-10000}

# Every kernel in every form and dtype, at sizes that are not the largest.
forms=${FORMS:-takes every dtype|can do without|every form and attribute|strided rows|same bits twice}
# Set, file in test/ops, pattern of tests.
sets=(
  'scan-ring-256|scan-plans|bf16, 4096'
  'scan-ring-128|scan-plans|f32, 4096'
  'scan-ring-96|scan-plans|f16, 8192|bf16, 1536'
  'scan-ring-32|scan-plans|f32, 3072'
  'scan-ring-40|scan-plans|f16, 5120.*\[901'
  'scan-relay|scan-plans|bf16, 1000.*1100|f16, 760'
  'scan-pieces|scan-plans|f32, 1000|, 64 channels'
  'scan-short|scan-plans|2048 channels'
  'mamba-layers|mamba-layer-step|give, m (640|2560), bf16'
  'mamba-launch|mamba-layer-step|several layers, m 768, bf16.* 1 sequences.*kept'
  'cluster-layers|mamba-layer-step|ops give.*768.* (2|3) sequences'
  'cluster-launch|mamba-layer-step|several layers, m 768, bf16.* 2 sequences.*kept'
  'grid-layers|mamba-layer-step|many sequences, m 2048, bf16, states in bf16, 2 '
  'grid-launch|mamba-layer-step|several layers, m 2048.*kept'
  'step-out|mamba-layer-step|many sequences, m 1024, f16, states in bf16'
  'expert-layers|expert-layer-step|e.: 42|ops give, .1472|200, 72'
  'expert-launch|expert-layer-step|r8r8r8r'
  'step-end|step-end|of .768., f16|512, 1536'
  'mamba-step|mamba-step|bf16.*ops give.*b.: (1|2|3|9|21),'
  'mamba-step-many|mamba-step|again and again.*1536'
  'scan|scan|(f32|bf16) packed.*of 16 |width: (4|16|33)$|a few channels'
  'scan-gradients|scan-gradients|'
  'matmul|matmul|bf16|nothing to sum'
  'conv-matmul|conv-matmul|128 channels, (34|192)'
  'experts|moe|bf16|plain product|no number'
  'sample|sample|greedy|same token|penalises|quiet|one token'
  'norm|norm|'
  'optimizer|optimizer|'
)

# tool, set, file, pattern of tests
run() {
  local tool=$1 name=$2 file=$3 pattern=$4 begin=$SECONDS out errors tests status
  out=$log/$tool-$name.txt
  # What a refused call has not written may be read: its reader is told.
  timeout "$limit" compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 99 --print-limit 100 \
    node node_modules/jest/bin/jest.js -i --testTimeout 300000 "$file" -t "^(?!.*refuses).*($pattern)" >"$out" 2>&1
  status=$?
  # Of several processes each writes a summary: `N errors`, or `N hazards displayed (E errors, W warnings)`.
  errors=$(sed -nE 's/^=+ ERROR SUMMARY: ([0-9]+) error.*/\1/p; s/^=+ RACECHECK SUMMARY: .*\(([0-9]+) errors?, ([0-9]+) warn.*/\1\n\2/p' "$out" |
    awk '{ sum += $1; found = 1 } END { print found ? sum : "no" }')
  tests=$(sed -nE 's/^Tests: +(.*)/\1/p' "$out" | tail -1)
  [ "$status" = 124 ] && tests="stopped after $limit s"
  [[ $tests == *passed* ]] || status=98 # a pattern that fits no test would seem clean
  printf '%-10s %-15s %s errors; tests: %s; %d s\n' \
    "$tool" "$name" "$errors" "${tests:-none ran}" $((SECONDS - begin))
  [ "$status" = 0 ] && [ "$errors" = 0 ] && return
  echo "$tool $name" >>"$log/failed"
  grep -E '^=+ (Invalid|Uninit|Error|Barrier|Program hit|Warning|    (at|(Read|Write) Thread .* at) )' "$out" |
    sed -E 's/\([0-9]+,[0-9]+,[0-9]+\) //; s/0x[0-9a-f]+ in block .*//' | sort | uniq -c | sort -rn | head -20
}

rm -f "$log/failed"
begin=$SECONDS
start() {
  [[ "$1 $2" =~ $only ]] || return 0
  while [ "$(jobs -rp | wc -l)" -ge "$most" ]; do wait -n; done
  run "$@" &
}
# The table's ops, dealt out.
parts=12
for tool in "$@"; do
  for set in "${sets[@]}"; do
    IFS='|' read -r name file pattern <<<"$set"
    start "$tool" "$name" "test/ops/$file.test.ts" "$pattern"
  done
  for ((part = 0; part < parts; part++)); do
    ops=$(node -r ./dist/index.js -p \
      "[...require('./dist/op').ops.keys()].filter((_, i) => i % $parts === $part).join('|')")
    start "$tool" "table-$((part + 1))" test/table.test.ts " ($ops) .*($forms)"
  done
done
wait
echo "$((SECONDS - begin)) s; full output: $log"
[ ! -e "$log/failed" ]
