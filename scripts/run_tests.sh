#!/usr/bin/env bash
# Runs every test program of $BUILD, and the scripts of tests/hosts (not with --fast), and adds up
# their closing lines; tests that want it run over MPI too. Arguments: --fast, or parts of test names.
# Each program has a time limit; a crash or a missing closing line counts as a failure.
# JOBS: programs at a time (1; --fast 2).
# VERBOSE=1 shows every line of every program.
set -u
cd "$(dirname "$0")/.." || exit 2
. scripts/env.sh
BUILD=${BUILD:-build/release}
args=(); only=()
for a in "$@"; do case $a in --fast) args+=(-f); export TEST_FAST=1;; *) only+=("$a");; esac; done
jobs=${JOBS:-$([ -n "${TEST_FAST:-}" ] && echo 2 || echo 1)} # programs at a time
p=0; f=0; s=0; bad=(); names=(); pids=(); begun=(); next=0
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
trap 'kill $(jobs -p) 2>/dev/null; exit 130' INT TERM
# for daily work: what takes long and has shorter relatives, and the runs over MPI, wait for the full set
later=" test_bench_gpu test_lora_layouts test_sequence_train test_cuda_emulated_golden_train test_cuda_emulated_golden_block test_cuda_emulated_golden_model test_cuda_emulated_sdpa test_updates test_policy_layouts test_rollout test_rl_toy test_sampler_table test_cudnn "
daily() { [[ -n ${TEST_FAST:-} && $BUILD == */release ]]; }
# start NAME COMMAND...: one run of a test program, when there is room
start() {
    local i=${#names[@]}; names+=("$1"); shift
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do sleep 0.05; finish; done
    begun+=("$SECONDS"); : >"$logs/$i"
    timeout -k 5 "${TEST_TIMEOUT:-900}" "$@" </dev/null >"$logs/$i" 2>&1 &
    pids+=($!)
}
# finish: adds to the counts what has ended, in order
finish() {
    while [ "$next" -lt "${#pids[@]}" ] && ! kill -0 "${pids[next]}" 2>/dev/null; do
        wait "${pids[next]}"; tally "$next" $?; next=$((next+1))
    done
}
tally() { # number, exit code
    local name=${names[$1]} log=$logs/$1 rc=$2 line seconds
    seconds=$(($(stat -c %Y "$log") - epoch - begun[$1]))
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1)
    if [ -n "$line" ]; then
        set -- $line; p=$((p+$1)); f=$((f+$3)); s=$((s+$5))
        [ "$rc" != 0 ] && [ "$3" = 0 ] && { f=$((f+1)); bad+=("$name (rc $rc)"); }
        [ "$3" != 0 ] && bad+=("$name")
    else
        f=$((f+1)); bad+=("$name (rc $rc, no closing line)")
    fi
    if [ "$rc" = 0 ] && [ -n "$line" ] && [ -z "${VERBOSE:-}" ]; then
        grep -E '^  (skip|FAIL)' "$log" | sort | uniq -c | sed 's/^ *1 //' | head -20
        echo "$name: $line ($seconds s)"
    else cat "$log"; fi
    rm -f "$log"
}
epoch=$(($(date +%s) - SECONDS))
list=("$BUILD"/tests/test_*); [ -n "${TEST_FAST:-}" ] || list+=(tests/hosts/test_*.sh)
export BUILD
for t in "${list[@]}"; do
    [ -x "$t" ] && [ ! -d "$t" ] || continue
    case $t in *.o|*.d) continue;; esac
    if [ ${#only[@]} -gt 0 ]; then m=0; for o in "${only[@]}"; do [[ $t == *$o* ]] && m=1; done; [ $m = 1 ] || continue; fi
    daily && [[ $later == *" $(basename "$t") "* ]] && continue
    start "$(basename "$t")" "$t" "${args[@]}"
    case $t in *.sh) continue;; esac
    daily && continue
    command -v mpirun >/dev/null || continue
    [[ $BUILD == */tsan ]] && continue # the MPI library is not instrumented; threads are the ranks there
    for n in $("$t" "${args[@]}" -m 2>/dev/null | grep -xE '[0-9]+'); do
        start "$(basename "$t") ($n MPI ranks)" mpirun -n "$n" "$t" "${args[@]}"
    done
done
while [ "$next" -lt "${#pids[@]}" ]; do sleep 0.05; finish; done
[ ${#bad[@]} -gt 0 ] && printf 'failed: %s\n' "${bad[@]}"
echo "$p passed, $f failed, $s skipped"
[ "$f" = 0 ] && [ $((p+s)) -gt 0 ]
