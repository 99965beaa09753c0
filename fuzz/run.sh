#!/usr/bin/env bash
# Runs fuzz targets with the compiler that everything else is built with: no nightly, no cargo-fuzz.
#   fuzz/run.sh [-s SECONDS] [TARGET..]     default: 60 seconds for each of them
# What it finds is in fuzz/artifacts/TARGET; `fuzz/run.sh TARGET fuzz/artifacts/TARGET/crash-..` runs that once more.
# New inputs stay in fuzz/work/TARGET; `fuzz/run.sh -m TARGET..` takes from them what fuzz/corpus lacks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=60 merge=
while getopts s:m option; do
  case $option in s) seconds=$OPTARG ;; m) merge=1 ;; *) exit 2 ;; esac
done
shift $((OPTIND - 1))
all=(native_frame record fetch_session remoting_frame sql)
files=() targets=()
for argument in "$@"; do if [ -f "$argument" ]; then files+=("$argument"); else targets+=("$argument"); fi; done
[ ${#targets[@]} -gt 0 ] || targets=("${all[@]}")

# Coverage counters of LLVM, which are no option of their own in this compiler.
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Clink-dead-code -Ccodegen-units=1"
out=${CARGO_TARGET_DIR:-target}/fuzz
cargo build --quiet --release --manifest-path fuzz/Cargo.toml --target "$host" --target-dir "$out"
for target in "${targets[@]}"; do
  mkdir -p "fuzz/work/$target" "fuzz/artifacts/$target" "fuzz/corpus/$target"
  command=("$out/$host/release/$target" -artifact_prefix="fuzz/artifacts/$target/" -rss_limit_mb=2048)
  if [ ${#files[@]} -gt 0 ]; then "${command[@]}" "${files[@]}"
  elif [ -n "$merge" ]; then "${command[@]}" -merge=1 -max_len=4096 "fuzz/corpus/$target" "fuzz/work/$target"
  else
    echo "=== $target, $seconds s"
    "${command[@]}" -max_total_time="$seconds" -print_final_stats=1 "fuzz/work/$target" "fuzz/corpus/$target" 2>&1 | tail -n 12
  fi
done
