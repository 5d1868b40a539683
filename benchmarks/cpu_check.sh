#!/usr/bin/env bash
# The CPU figures of benchmarks/results, about six minutes: every peer at 33x33 and 65x65, and at 97x97 those that do
# not need N x N. Usage: benchmarks/cpu_check.sh FOLDER; PYTHON names the interpreter, OMP_NUM_THREADS the threads.
set -eu
mkdir -p "$1" && out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
bench() {
  "${PYTHON:-python3}" -m ema_ops bench --device cpu --dtype float32 --batch 1 2 --mode forward full --seconds 0.3 \
    --time-limit 270 --out "$out" "$@"
}
bench --sizes 33x33 65x65
bench --sizes 97x97 --peers official-detached official-exact official-compiled external-attention double-attention
