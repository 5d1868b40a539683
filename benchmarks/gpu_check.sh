#!/usr/bin/env bash
# The one script for a machine with a GPU: GPU tests, microbenchmark, report. No network, at most about nine minutes.
# Usage: benchmarks/gpu_check.sh [FOLDER]; the folder is $OUT or runs/gpu without it. PYTHON names the interpreter;
# EMA_OPS_COMMIT names the commit where the copy has no git. Every part runs; the status is 1 if any part failed.
set -u
out=${1:-${OUT:-runs/gpu}}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
counts=$(mktemp)
trap 'rm -f "$counts"' EXIT
parts=()

# part NAME SECONDS LOG COMMAND...
part() {
  local name=$1 seconds=$2 log=$3
  shift 3
  echo "== $name: $*" | tee -a "$out/$log"
  timeout -k 10 "$seconds" "$@" 2>&1 | tr '\r' '\n' | tee -a "$out/$log"
  parts+=("$name=${PIPESTATUS[0]}")
}

# bench NAME SECONDS OPTIONS...
bench() {
  local name=$1 seconds=$2
  shift 2
  part "$name" $((seconds + 30)) bench.txt "$python" -m ema_ops bench --device cuda --mode forward full \
    --seconds 0.1 --time-limit "$seconds" --out "$out" "$@"
}

part tests 130 tests.txt "$python" -m pytest tests/gpu -q -rs --junitxml="$counts"
bench bf16 100 --dtype bfloat16 --batch 1 16 --sizes 65x65 129x129
bench bf16-channels-last 80 --dtype bfloat16 --batch 1 16 --sizes 65x65 129x129 --memory-order channels_last
bench fp32 60 --dtype float32 --batch 1 16 --sizes 65x65
bench bf16-small 60 --dtype bfloat16 --batch 1 16 --sizes 33x33 97x97
"$python" -m benchmarks.gpu_report "$out" "$counts" "${parts[@]}"
