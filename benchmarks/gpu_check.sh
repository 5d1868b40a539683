#!/usr/bin/env bash
# The one script for a machine with a GPU: build, GPU tests, sanitizers, microbenchmark, report. It needs no network.
#
# Usage: benchmarks/gpu_check.sh FOLDER [STAGE...]    stages: tests triton random sanitizer bench
#        validation unit hopper hopper_sanitizer hopper_bench; without one the first five
# unit: when the convolutions of the EMA unit should be folded into the loop.
# Those with hopper are for an H100 or H200: what the parts of a multiprocessor do in a clock, then tests and times with
# EMA_OPS_HOPPER. The tests use a build whose waits end in an error instead of hanging.
# Before any stage the core is built (nothing to do the second time); behind them comes the report. Every stage takes
# less than ten minutes with both, each part ends by itself, and all parts run: the status is 1 if any of them failed.
#
#   PYTHON                the interpreter, python3 without it; with torch, numpy, pytest, matplotlib, tqdm, and to build
#                         the core setuptools, pybind11, ninja and nvcc; for validation all of ema_ops[demo]
#   EMA_OPS_WHEELS        a folder of wheels for what is missing of these
#   EMA_OPS_CUDA_ARCHS    what to compile for; this GPU without it
#   EMA_OPS_COMMIT        names the commit where the copy has no git
# Where nothing can be built, a core that is already there is used: ema_ops/_C.*.so for this Python.
set -u
usual="tests triton random sanitizer bench"
stages="$usual validation unit hopper hopper_sanitizer hopper_bench"
[ $# -ge 1 ] || { echo "usage: $0 FOLDER [STAGE...], with stages of: $stages" >&2; exit 2; }
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
cd "$(dirname "$0")/.." || exit 2
chosen=${*:-$usual}
for stage in $chosen; do
  case " $stages " in *" $stage "*) ;; *) echo "stage is '$stage': expected of $stages" >&2; exit 2 ;; esac
done
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
parts=()

# part NAME SECONDS LOG COMMAND...
part() {
  local name=$1 seconds=$2 log=$3
  shift 3
  echo "== $name: $*" | tee -a "$out/$log"
  local start=$SECONDS
  timeout -k 10 "$seconds" "$@" 2>&1 | tr '\r' '\n' | tee -a "$out/$log"
  local code=${PIPESTATUS[0]}
  echo "== $name: status $code after $((SECONDS - start)) s" | tee -a "$out/$log"
  parts+=("$name=$code")
  return "$code"
}

have() { timeout 60 "$python" -c "import $1" >/dev/null 2>&1; }
give_up() { echo "gpu_check: $1" | tee -a "$out/build.txt" >&2; exit 2; }

build() {
  if [ -n "${EMA_OPS_WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    part wheels 60 build.txt "$python" -m pip install -q --no-index --no-deps --target "$site" "$EMA_OPS_WHEELS"/*.whl ||
      give_up "the wheels of EMA_OPS_WHEELS=$EMA_OPS_WHEELS cannot be installed"
    export PYTHONPATH="$PYTHONPATH:$site"
  fi
  have "torch; assert torch.cuda.is_available()" || give_up "torch in $python sees no GPU"
  local missing="" needed="" name
  for name in pytest matplotlib tqdm numpy; do have "$name" || needed+=" $name"; done
  [ -z "$needed" ] || give_up "$python lacks$needed: install them, or bring wheels in EMA_OPS_WHEELS"
  for name in setuptools pybind11 ninja; do have "$name" || missing+=" $name"; done
  have "os; from building.toolkit import find_toolkit; find_toolkit(os.environ, from_pip=False)" || missing+=" nvcc"
  if [ -z "$missing" ]; then
    export EMA_OPS_CUDA_ARCHS=${EMA_OPS_CUDA_ARCHS:-$("$python" -c '
import torch
major, minor = torch.cuda.get_device_capability()
print(f"{major}{minor}" + ("a" if major == 9 else ""))')}
    EMA_OPS_BUILD_CUDA=1 part build 170 build.txt "$python" setup.py --quiet build_ext --inplace
  elif have ema_ops._C; then
    echo "not built here, as there is no$missing: the core that is already there is used" | tee -a "$out/build.txt"
  else
    give_up "the core cannot be built without$missing: bring wheels in EMA_OPS_WHEELS, or ema_ops/_C.*.so for this Python"
  fi
  part usable 60 build.txt "$python" -c '
import ema_ops
status = ema_ops.available_backends()["cuda"]
print("backend cuda:", status.reason or "usable")
raise SystemExit(not status.usable)'
}

# test NAME SECONDS ARGUMENTS...: leaves NAME.txt and, with the counts and what tests recorded, NAME.xml
test_part() {
  local name=$1 seconds=$2
  shift 2
  part "$name" "$seconds" "$name.txt" "$python" -m pytest -q -rs -p no:cacheprovider --junitxml="$out/$name.xml" "$@"
}

# The allocator is off: only then does the tool see where one tensor ends and another begins.
sanitize() {
  local tool=$1
  shift
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  part "$tool" 95 sanitizer.txt compute-sanitizer --tool "$tool" --kernel-name kernel_substring=ema --error-exitcode 9 \
    "$python" -m pytest -q -p no:cacheprovider "$@"
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
}

rebuild() {
  EMA_OPS_NVCC_FLAGS="$2" EMA_OPS_BUILD_CUDA=1 part "$1" 170 build.txt "$python" setup.py --quiet build_ext --inplace
}

experiments() {
  nvcc -std=c++17 -O3 -arch=sm_90a -Icsrc -o "$out/experiments" benchmarks/hopper/experiments.cu \
    csrc/hopper/tensor_map.cpp &&
    "$out/experiments" > "$out/experiments.csv" && rm "$out/experiments"
}

# bench NAME SECONDS OPTIONS...
bench() {
  local name=$1 seconds=$2
  shift 2
  part "$name" $((seconds + 40)) bench.txt "$python" -m ema_ops bench --device cuda --dtype bfloat16 --seconds 0.1 \
    --time-limit "$seconds" "$@"
}

build
for stage in $chosen; do
  case $stage in
    tests) test_part tests 390 tests/gpu -k "not triton" ;;
    triton) test_part triton 390 tests/gpu -k triton ;;
    random) EMA_OPS_RANDOM_SECONDS=300 test_part random 380 tests/gpu/test_random_shapes.py -k cuda ;;
    sanitizer | hopper_sanitizer)
      sanitized="tests/gpu/test_small_shapes.py -k cuda"
      [ "$stage" = sanitizer ] || sanitized="tests/gpu/test_hopper.py -k small"
      if command -v compute-sanitizer >/dev/null; then
        for tool in memcheck racecheck initcheck synccheck; do sanitize "$tool" $sanitized; done
      else
        echo "sanitizer: there is no compute-sanitizer in PATH" | tee -a "$out/sanitizer.txt"
        parts+=("sanitizer=127")
      fi ;;
    bench)
      sizes=(--batch 1 16 --sizes 65x65 129x129)
      modes=(--mode forward backward full)
      bench channels-last 130 --memory-order channels_last "${sizes[@]}" "${modes[@]}" --out "$out"
      bench contiguous 60 --memory-order contiguous "${sizes[@]}" "${modes[@]}" --peers --out "$out"
      bench constant-work 110 --memory-order channels_last --shapes constant-work --mode forward backward --peers \
        --backends cuda triton --out "$out/constant_work" ;;
    hopper)
      export -f experiments
      export out
      part experiments 90 hopper.txt bash -c experiments
      rebuild build-trapping "${EMA_OPS_NVCC_FLAGS:-} -DEMA_OPS_TRAP"
      test_part hopper 160 tests/gpu/test_hopper.py
      EMA_OPS_HOPPER=1 test_part hopper-all 120 tests/gpu -k "cuda and not random"
      rebuild build-again "${EMA_OPS_NVCC_FLAGS:-}" ;;
    hopper_bench)
      for parts in "" overlap tiles tiles,overlap loop,overlap,tiles; do
        EMA_OPS_HOPPER=$parts bench "hopper ${parts:-off}" 60 --memory-order channels_last --batch 1 8 16 --sizes 33x33 65x65 129x129 \
          --mode forward backward unit --backends cuda $([ -n "$parts" ] || echo triton) \
          --peers $([ -n "$parts" ] || echo official-compiled) --out "$out/hopper"
      done ;;
    unit) part unit 500 unit.txt "$python" -m benchmarks.folding "$out" --device cuda --batch 1 16 ;;
    validation)
      part validation 560 validation.txt "$python" -m ema_ops validate --device cuda --ablation-seeds 1 --jobs 4 \
        --out "$out/validation" ;;
  esac
done
timeout -k 10 60 "$python" -m benchmarks.gpu_report "$out" "${parts[@]}"
