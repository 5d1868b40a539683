#!/usr/bin/env bash
# The one script for a machine with a GPU: see --help.
usage() {
  cat <<'HELP'
Usage: benchmarks/gpu_check.sh FOLDER [PLAN|STAGE...]

Builds, tests, measures and reports on a machine with a GPU. It needs no network. Three plans, each for a call of ten
minutes, the most valuable first; without a plan or stages all three in one call, about half an hour:

  first     experiments hopper tests hopper_bench latency bench
            Are the kernels right? Which kernels for Hopper pay? How fast, against the targets, Triton and others?
  second    ncu sanitizer hopper_sanitizer triton random
            What limits each kernel? Races and bad addresses? Are random shapes right for five minutes?
  third     constant validation unit
            Time per position up to a million positions; trainings with every backend; where folding pays.

  build             for this GPU, before any stage; with a second build whose waits end in an error instead of hanging,
                    where a hopper stage is asked for. 1 minute on 16 cores
  experiments       rates of a Hopper multiprocessor for the model of docs/hopper.md. 10 s
  hopper            tests/gpu/test_hopper.py in the trapping build, then all tests of "cuda" with EMA_OPS_HOPPER. 2 min
  tests             tests/gpu without Triton's: results, memory, streams, graphs, repeats. 2 min
  bench             the microbenchmark in both memory orders, all backends and peers. 2 min
  hopper_bench      the same for every part of EMA_OPS_HOPPER, with the EMA unit, and features of 8 bits. 2 min
  latency           a call from Python against the replay of its graph, one image. 20 s
  ncu               bandwidth and tensor cores of every kernel in the main shapes, where counters may be read. 2 min
  sanitizer, hopper_sanitizer
                    the four tools of compute-sanitizer at the same time on small shapes. 4 min, both together 6
  triton            tests/gpu of the Triton backend; its time is that of its compiler. 4 min
  random            random shapes against float64 for five minutes, beside the two stages above
  constant          one million positions in images of 4 thousand to a million. 1 min
  validation        ema-ops validate: trainings with every backend, cost of a step. 6 min
  unit              EMAUnit folded and not. 2 min

Every part has its own time limit, all parts run, and what a part leaves before it is stopped counts. FOLDER gets at
most six files: report.txt, targets.md, decision.md and ncu.md for people, log.txt, and results.tar.gz with all tables,
plots and logs, packed again after every stage. To join several calls, unpack each results.tar.gz in a folder of its own
below one and run `python -m benchmarks.gpu_report FOLDER`. The status is 1 if a part failed.

  PYTHON                the interpreter, python3 without it; with torch, numpy, pytest, matplotlib, tqdm, and to build
                        the core setuptools, pybind11, ninja and nvcc; for validation all of ema_ops[demo].
                        With pytest-xdist the tests run in several processes, and one that kills a context harms no other
  EMA_OPS_PATIENCE      a whole number: the time limits of all parts times it
  EMA_OPS_SECONDS       the whole call ends before them, report included; 560 for a plan, no limit without it
  EMA_OPS_WHEELS        a folder of wheels for what is missing of these
  EMA_OPS_CUDA_ARCHS    what to compile for; this GPU without it
  EMA_OPS_COMMIT        names the commit where the copy has no git
Where nothing can be built, a core that is already there is used: ema_ops/_C.*.so for this Python.
HELP
}
set -u
first="experiments hopper tests hopper_bench latency bench"
second="ncu sanitizer hopper_sanitizer triton random"
third="constant validation unit"
known="$first $second $third"
case "${1:-}" in -h | --help) usage; exit 0 ;; "" | -*) usage >&2; exit 2 ;; esac
mkdir -p "$1" && out=$(cd "$1" && pwd) || exit 2
shift
cd "$(dirname "$0")/.." || exit 2
stages="" allowed=${EMA_OPS_SECONDS:-}
for word in "${@:-all}"; do
  case $word in
    all) stages+=" $known" ;;
    first | second | third) stages+=" ${!word}" allowed=${allowed:-560} ;;
    *) case " $known " in *" $word "*) stages+=" $word" ;; *)
         echo "stage is '$word': expected first, second, third or of $known" >&2
         exit 2 ;;
       esac ;;
  esac
done
python=${PYTHON:-python3}
work=$(mktemp -d)  # everything is written here, and packed into one file of $out
trapping=$work-trapping  # a copy of the tree
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
trap 'pack; rm -rf "$work" "$trapping" "${site:-}"' EXIT

say() { echo "$*" | tee -a "$out/log.txt"; }
wants() { case " $stages " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
have() { timeout 60 "$python" -c "import $1" >/dev/null 2>&1; }
pack() {
  tar -C "$work" -czf "$out/.packing" --exclude=data --exclude="*.pt" . &&
    mv "$out/.packing" "$out/results.tar.gz"
}
give_up() { say "gpu_check: $1" >&2; exit 2; }

# part NAME SECONDS COMMAND...: with its output in NAME.txt and its status and time in parts.csv. First it is asked to end,
# as by Ctrl-C, so that it writes what it has; the report keeps half a minute.
part() {
  local name=$1 seconds=$(($2 * ${EMA_OPS_PATIENCE:-1})) start=$SECONDS code
  shift 2
  [ -z "$allowed" ] || seconds=$((seconds < allowed - SECONDS - 30 ? seconds : allowed - SECONDS - 30))
  if [ "$seconds" -lt 10 ]; then
    say "== $name: no time is left"
    echo "$name,not run,0" >> "$work/parts.csv"
    return 1
  fi
  say "== $name, at most $seconds s: $*"
  # in the background the shell has told its commands to ignore Ctrl-C
  timeout --signal=INT --kill-after=15 "$seconds" env --default-signal=INT "$@" 2>&1 | tr '\r' '\n' | tee -a "$work/$name.txt" >> "$out/log.txt"
  code=${PIPESTATUS[0]}
  tail -n 3 "$work/$name.txt"
  say "== $name: status $code after $((SECONDS - start)) s"
  echo "$name,$code,$((SECONDS - start))" >> "$work/parts.csv"
  return "$code"
}

check_machine() {
  if [ -n "${EMA_OPS_WHEELS:-}" ]; then
    site=$(mktemp -d)
    part wheels 60 "$python" -m pip install -q --no-index --no-deps --target "$site" "$EMA_OPS_WHEELS"/*.whl ||
      give_up "the wheels of EMA_OPS_WHEELS=$EMA_OPS_WHEELS cannot be installed"
    export PYTHONPATH="$PYTHONPATH:$site"
  fi
  have "torch; assert torch.cuda.is_available()" || give_up "torch in $python sees no GPU"
  local needed="" name
  for name in pytest matplotlib tqdm numpy; do have "$name" || needed+=" $name"; done
  [ -z "$needed" ] || give_up "$python lacks$needed: install them, or bring wheels in EMA_OPS_WHEELS"
  workers=()
  ! have xdist || workers=(-n 4)
}

# The core for this GPU, and at the same time in a copy of the tree the one that traps.
build() {
  local missing="" name
  for name in setuptools pybind11 ninja; do have "$name" || missing+=" $name"; done
  have "os; from building.toolkit import find_toolkit; find_toolkit(os.environ, from_pip=False)" || missing+=" nvcc"
  if [ -n "$missing" ]; then
    have ema_ops._C ||
      give_up "the core cannot be built without$missing: bring wheels in EMA_OPS_WHEELS, or ema_ops/_C.*.so for this Python"
    say "not built here, as there is no$missing: the core that is already there is used"
  else
    export EMA_OPS_BUILD_CUDA=1 EMA_OPS_CUDA_ARCHS=${EMA_OPS_CUDA_ARCHS:-$("$python" -c '
import torch
major, minor = torch.cuda.get_device_capability()
print(f"{major}{minor}" + ("a" if major == 9 else ""))')}
    if wants hopper || wants hopper_sanitizer; then
      mkdir "$trapping"
      cp -r benchmarks building csrc ema_ops pyproject.toml README.md LICENSE setup.py tests "$trapping"
      (cd "$trapping" && EMA_OPS_NVCC_FLAGS="${EMA_OPS_NVCC_FLAGS:-} -DEMA_OPS_TRAP" \
        part build_trapping 240 "$python" setup.py --quiet build_ext --inplace) &
    fi
    part build 240 "$python" setup.py --quiet build_ext --inplace
    wait
  fi
  usable usable
}

# usable NAME: whether the core can be used from here
usable() {
  part "$1" 60 "$python" -c '
import ema_ops
status = ema_ops.available_backends()["cuda"]
print("backend cuda:", status.reason or "usable")
raise SystemExit(not status.usable)'
}

# test_part NAME SECONDS ARGUMENTS...: every test leaves a line in NAME.jsonl when it begins and when it ends.
test_part() {
  local name=$1 seconds=$2
  shift 2
  EMA_OPS_TEST_RECORD="$work/$name.jsonl" part "$name" "$seconds" "$python" -m pytest -q -rs -p no:cacheprovider "$@"
}

# In the tree of the trapping build; without one, in this.
in_trapping() {
  if [ -d "$trapping" ]; then
    (cd "$trapping" && PYTHONPATH="$PWD:$PYTHONPATH" "$@")
  else
    "$@"
  fi
}

# sanitize NAME ARGUMENTS...: the allocator is off, as only then the tools see where one tensor ends and another begins.
sanitize() {
  local name=$1 tool
  shift
  if ! command -v compute-sanitizer >/dev/null; then
    say "$name: there is no compute-sanitizer in PATH"
    echo "$name,127,0" >> "$work/parts.csv"
    return
  fi
  for tool in memcheck racecheck initcheck synccheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 EMA_OPS_TEST_RECORD="$work/${name}_$tool.jsonl" part "${name}_$tool" 300 \
      compute-sanitizer --tool "$tool" --kernel-name kernel_substring=ema --error-exitcode 9 \
      "$python" -m pytest -q -p no:cacheprovider "$@" &
  done
  wait
}

experiments() {
  set -o pipefail
  local nvcc
  nvcc=$("$python" -c 'import os; from building.toolkit import find_toolkit; print(find_toolkit(os.environ, from_pip=False).nvcc)') || return
  "$nvcc" -std=c++17 -O3 -gencode arch=compute_90a,code=sm_90a -Icsrc -o "$1/experiments" benchmarks/hopper/experiments.cu \
    csrc/hopper/tensor_map.cpp && "$1/experiments" | tee "$1/experiments.csv" && rm "$1/experiments"
}
export -f experiments
export python

# bench NAME SECONDS OPTIONS...: after SECONDS no measurement begins
bench() {
  local name=$1 seconds=$2
  shift 2
  part "$name" $((seconds + 40)) "$python" -m ema_ops bench --device cuda --dtype bfloat16 --seconds 0.1 \
    --time-limit $((seconds * ${EMA_OPS_PATIENCE:-1})) --out "$work/$name" "$@"
}

run_stage() {
  case $1 in
    experiments) part experiments 90 bash -c "experiments $work" ;;
    hopper)
      in_trapping usable usable_for_hopper || return
      in_trapping test_part hopper 150 "${workers[@]}" tests/gpu/test_hopper.py
      EMA_OPS_HOPPER=1 in_trapping test_part hopper_all 90 "${workers[@]}" tests/gpu -k "cuda and not random and not Inductor and not 31_elements" ;;
    tests)
      test_part tests 150 "${workers[@]}" tests/gpu -k "not triton and not random and not test_hopper and not 31_elements"
      # one at a time: they want a third of the memory
      test_part large 60 tests/gpu -k "31_elements and not triton" ;;
    triton) test_part triton 270 "${workers[@]}" tests/gpu -k "triton and not random" ;;
    random) EMA_OPS_RANDOM_SECONDS=${EMA_OPS_RANDOM_SECONDS:-300} test_part random 350 tests/gpu/test_random_shapes.py -k cuda ;;
    sanitizer) sanitize sanitizer tests/gpu/test_small_shapes.py -k cuda ;;
    hopper_sanitizer) in_trapping sanitize hopper_sanitizer tests/gpu/test_hopper.py -k "small and bfloat16" ;;
    bench)
      export EMA_OPS_HOPPER=0  # the portable kernels, whatever is on by default
      bench channels_last 70 --memory-order channels_last --batch 1 16 --mode forward backward full --peers
      bench contiguous 60 --memory-order contiguous --batch 1 16 --mode forward backward full --peers
      bench peers 40 --memory-order channels_last --batch 16 --sizes 65x65 --mode forward full --backends cuda
      bench peers_of_one 20 --memory-order channels_last --batch 1 --sizes 65x65 --mode forward full --backends cuda
      unset EMA_OPS_HOPPER ;;
    constant) bench constant_work 80 --memory-order channels_last --shapes constant-work --mode forward backward --peers --backends cuda triton ;;
    hopper_bench)
      local on name
      for on in 0 tiles overlap overlap,tiles loop,overlap,tiles; do
        name=${on//,/+} name=${name/#0/off}  # commas separate columns
        EMA_OPS_HOPPER=$on bench "hopper_$name" 22 --memory-order channels_last --batch 1 8 16 --sizes 65x65 33x33 129x129 \
          --mode forward backward unit --backends cuda --peers
        EMA_OPS_HOPPER=$on bench "hopper_images_$name" 12 --memory-order contiguous --batch 1 16 --sizes 65x65 64x64 \
          --mode forward backward --backends cuda --peers
        [ "$on" != 0 ] && [ "$on" != overlap,tiles ] ||
          EMA_OPS_HOPPER=$on bench "hopper_float8_$name" 8 --dtype float8_e4m3fn --memory-order channels_last contiguous \
            --batch 1 16 --sizes 65x65 --mode forward --backends cuda --peers
      done
      # its compiler takes longer than all of these
      EMA_OPS_HOPPER=0 bench hopper_official 30 --memory-order channels_last --batch 16 --sizes 65x65 --mode unit \
        --backends --peers official-compiled
      EMA_OPS_HOPPER=tiles part precision 30 "$python" -m benchmarks.precision "$work/precision" --device cuda --backend cuda --steps 0 ;;
    latency) part latency 60 "$python" -m benchmarks.latency "$work/latency.csv" ;;
    ncu) part ncu 150 "$python" -m benchmarks.ncu "$work/ncu" ;;
    unit) part unit 120 "$python" -m benchmarks.folding "$work/unit" --device cuda --batch 1 16 ;;
    validation)
      part validation 420 "$python" -m ema_ops validate --device cuda --ablation-seeds 1 --jobs 4 --out "$work/validation" ;;
  esac
}

check_machine
build
pack
# those that only judge run beside each other, behind those that measure
beside=""
for stage in $stages; do
  case $stage in
    sanitizer | hopper_sanitizer | triton | random) beside+=" $stage" ;;
    *) run_stage "$stage"; pack ;;
  esac
done
for stage in $beside; do run_stage "$stage" & done
wait
timeout -k 10 60 "$python" -m benchmarks.gpu_report "$work" "$out"
