#!/usr/bin/env bash
# A run on a CUDA device, in stages that each have a time limit and go on when another fails. From the root of the
# repository:
#
#   bash ci/gpu.sh [--seconds=N] [--pool=N] [STAGE...]
#
# Stages, in this order (all of them, where none is named): environment smoke gpu large timings pooling bench profile
# cudnn suite memcheck racecheck. No stage begins after N seconds (470). What is found lies in $OUT (gpu-out) as soon as it is found:
# eight files at most, whose names the last line says. The status is 1 where a stage has failed or was stopped.
#
# Needed are CuPy, NumPy, pytest 9 and hypothesis; PyTorch, cuDNN's frontend, pytest-xdist, ncu and compute-sanitizer are
# used where they are there. Python packages that are missing are taken from the wheels in .whl/, without pip.
# PEERS, CASES and PRECISIONS are for the benchmark, PYTHON is the interpreter.
set -u
out=${OUT:-gpu-out}
python=${PYTHON:-python3}
seconds=470 pool=8 chosen="" failed=0
least=8 # seconds without which no stage begins
known=" environment smoke gpu large timings pooling bench profile cudnn suite memcheck racecheck "

usage() {
  echo "$1" >&2
  exit 2
}

for argument in "$@"; do
  case $argument in
    --seconds=*) seconds=${argument#*=} ;;
    --pool=*) pool=${argument#*=} ;;
    -*) usage "unknown option $argument" ;;
    *) [[ $known == *" $argument "* ]] || usage "unknown stage $argument, not among:$known"
      chosen="$chosen $argument " ;;
  esac
done
[[ $seconds =~ ^[0-9]+$ && $pool =~ ^[0-9]+$ ]] || usage "--seconds and --pool take whole numbers"

mkdir -p "$out"
export OUT="$out" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
logs=$(mktemp -d) site=$(mktemp -d)
trap 'rm -rf "$logs" "$site"' EXIT
SECONDS=0
: >"$out/stages.log"

say() { echo "[$SECONDS s] $*" | tee -a "$out/stages.log"; }

asked() { [[ -z $chosen || $chosen == *" $1 "* ]]; }

# An interrupt makes pytest write down what it has; who started this script may have told it to ignore them.
heeding=(env --default-signal=INT)
"${heeding[@]}" true 2>/dev/null || heeding=(env)

# stage NAME LIMIT COMMAND...: run a command for so many seconds at most, and keep the end of what it says.
stage() {
  local name=$1 limit=$2 begin=$SECONDS left status how=""
  shift 2
  asked "$name" || return 0
  left=$((seconds - SECONDS))
  if ((left < least)); then
    say "$name: not reached"
    return 0
  fi
  if ! command -v "$1" >/dev/null; then
    say "$name: there is no $1"
    return 0
  fi
  ((limit <= left)) || limit=$left
  timeout --signal=INT --kill-after=8 "$limit" "${heeding[@]}" "$@" >"$logs/$name" 2>&1 </dev/null
  status=$?
  ((status == 0)) || failed=1
  [[ $status != 124 && $status != 137 ]] || how=", stopped"
  say "$name: status $status after $((SECONDS - begin)) of $limit s$how"
  {
    echo "---- $name"
    tail -c 300000 "$logs/$name"
    echo "----"
  } >>"$out/stages.log"
  tail -n 3 "$logs/$name" | cut -c 1-300
}

for wheel in .whl/*.whl; do
  [[ -e $wheel ]] || continue
  "$python" -m zipfile -e "$wheel" "$site" || say "wheels: $wheel cannot be unpacked"
done
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
say "wheels: $(find .whl -name '*.whl' 2>/dev/null | wc -l)"

has() { "$python" -c "import $1" 2>/dev/null; }

version=$("$python" -c "import pytest; print(pytest.__version__)" 2>/dev/null)
tested=1
if [[ ! ${version%%.*} =~ ^[0-9]+$ ]]; then
  tested=0
  say "pytest: is not there; put its wheels into .whl/: gpu, large, cudnn and suite need version 9"
elif ((${version%%.*} < 9)); then
  tested=0
  say "pytest: $version does not read [tool.pytest]; put wheels of version 9 into .whl/: gpu, large, cudnn, suite need it"
fi

pytest=("$python" -m pytest -q -p no:cacheprovider -p no:benchmark --backend=cupy --tb=short --no-showlocals --durations=8)
parallel=()
! has xdist || parallel=("--numprocesses=$pool" --dist=worksteal)

# tests NAME LIMIT REPORT ARGUMENT...: a stage of pytest.
tests() {
  local name=$1 limit=$2 report=$3
  shift 3
  if ((tested)); then
    stage "$name" "$limit" "${pytest[@]}" "--junitxml=$report" "$@"
  elif asked "$name"; then
    say "$name: there is no pytest 9"
    failed=1
  fi
}

names="conv pool classic plan algorithms tuning winograd depthwise fourier products scipy fuzz"
files=()
for name in $names; do files+=("tests/test_$name.py"); done
sections=()
for name in SpeedOfLight MemoryWorkloadAnalysis SchedulerStats WarpStateStats Occupancy LaunchStats; do
  sections+=(--section "$name")
done
checker=(compute-sanitizer --error-exitcode=9 --print-limit=20)

stage environment 45 "$python" -m ci.gpu environment
stage smoke 75 "$python" -m ci.gpu smoke --seconds 68 --jobs "$pool"
tests gpu 85 "$out/gpu.xml" tests/test_gpu.py -m "not alone" -k "not cudnn" "${parallel[@]+"${parallel[@]}"}" --maxfail=40
tests large 40 "$logs/large.xml" tests/test_gpu.py -m alone
stage timings 100 "$python" -m ci.gpu timings --seconds 88
stage pooling 40 "$python" -m ci.gpu pooling --seconds 30
peers=${PEERS:-xconv,torch}
if asked bench && [[ -z ${PEERS:-} ]]; then
  peers=$("$python" -m ci.gpu peers 2>>"$out/stages.log") || peers=xconv,torch # and every algorithm after these
fi
stage bench 110 "$python" -m bench --gpu --peers "$peers" --rounds 3 --minutes 1.4 --output "$out" \
  --cases "${CASES:-c64_56,c256_14,pw1x1,last,dw,s2,tiny}" --precisions "${PRECISIONS:-float16,ieee,tf32}"
rm -f "$out"/gpu-*.md "$out"/gpu-*.png # `python -m bench --report` makes them again from the JSON
stage profile 55 ncu --clock-control none "${sections[@]}" --log-file "$out/profile.txt" --launch-count 24 \
  --kernel-name "regex:^xconv_.*_n[0-9]+_c[0-9]+_o[0-9]+_" "$python" -m ci.gpu kernels
if has cudnn; then
  tests cudnn 60 "$logs/cudnn.xml" tests/test_gpu.py -m "not alone" -k cudnn "${parallel[@]+"${parallel[@]}"}" --maxfail=20
elif asked cudnn; then
  say "cudnn: its frontend is not there"
fi
tests suite 120 "$out/suite.xml" "${files[@]}" -k cupy "${parallel[@]+"${parallel[@]}"}" --maxfail=30
stage memcheck 50 "${checker[@]}" --tool=memcheck "$python" -m ci.gpu kernels --small
stage racecheck 50 "${checker[@]}" --tool=racecheck "$python" -m ci.gpu kernels --small

arguments=()
for name in large cudnn; do arguments+=(--xml "$logs/$name.xml"); done
"$python" -m ci.gpu summary "${arguments[@]}" >"$logs/summary" 2>&1
cat "$logs/summary" >>"$out/stages.log"
echo "==== summary"
head -c 9000 "$logs/summary"
say "done; in $out: $(find "$out" -type f | sort | tr '\n' ' ')"
exit "$failed"
