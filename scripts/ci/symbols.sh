#!/usr/bin/env bash
# Kernel files are compiled once per instruction level. A global symbol that two levels share would
# be merged by the linker, and a processor without AVX-512 would run AVX-512 code: so every one of
# them must carry its level's namespace. Also: what the finished binaries export and depend on.
set -euo pipefail
cd "$(dirname "$0")/../.."

for folder in build/cmake/CMakeFiles/kernels_*.dir; do
  level=${folder##*kernels_}
  level=${level%.dir}
  objects=$(find "$folder" -name '*.o')
  [ -n "$objects" ] || { echo "no objects of level $level: build first"; exit 1; }
  # shellcheck disable=SC2086
  shared=$(nm -C --defined-only --extern-only $objects | grep -E '^[0-9a-f]+ [A-Za-z] ' | grep -v "ss::$level::" |
    grep -v 'DW.ref.__gxx_personality_v0$' || true)  # a pointer that objects with destructors share, no code
  if [ -n "$shared" ]; then
    echo "level $level shares symbols with other levels:"
    echo "$shared"
    exit 1
  fi
done

for binary in build/Release/*.node build/Release/*.so; do
  [ -e "$binary" ] || continue
  needs=$(objdump -p "$binary" | awk '$1 == "NEEDED" { print $2 }')
  extra=$(grep -vE '^(libc|libm|libdl|librt|libpthread|ld-linux.*)\.so\.[0-9]+$' <<<"$needs" || true)
  [ -z "$extra" ] || { echo "$binary depends on more than glibc: $extra"; exit 1; }
  exports=$(nm -D --defined-only "$binary" | awk '{ print $3 }')
  extra=$(grep -vE '^(napi_register_module_v1|node_api_module_get_api_version_v1|selective_scan_open)$' <<<"$exports" || true)
  [ -z "$extra" ] || { echo "$binary exports more than exports.map names: $extra"; exit 1; }
  glibc=$(objdump -T "$binary" | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -1)
  echo "$binary: $(stat -c %s "$binary") bytes, needs" $needs "(up to $glibc), exports" $exports
done
