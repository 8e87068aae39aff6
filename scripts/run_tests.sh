#!/usr/bin/env bash
# Runs every test program of $BUILD, and the scripts of tests/hosts (not with --fast), and adds up
# their closing lines; tests that want it run over MPI too. Arguments: --fast, or parts of test names.
# Each program has a time limit; a crash or a missing closing line counts as a failure.
# VERBOSE=1 shows every line of every program.
set -u
cd "$(dirname "$0")/.." || exit 2
. scripts/env.sh
BUILD=${BUILD:-build/release}
args=(); only=()
for a in "$@"; do case $a in --fast) args+=(-f); export TEST_FAST=1;; *) only+=("$a");; esac; done
p=0; f=0; s=0; bad=()
# run NAME COMMAND...: one run of a test program, added to the counts
run() {
    local name=$1 log line rc start=$SECONDS; shift
    log=$(mktemp)
    timeout -k 5 "${TEST_TIMEOUT:-900}" "$@" </dev/null >"$log" 2>&1; rc=$?
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
        echo "$name: $line ($((SECONDS - start)) s)"
    else cat "$log"; fi
    rm -f "$log"
}
list=("$BUILD"/tests/test_*); [ -n "${TEST_FAST:-}" ] || list+=(tests/hosts/test_*.sh)
export BUILD
for t in "${list[@]}"; do
    [ -x "$t" ] && [ ! -d "$t" ] || continue
    case $t in *.o|*.d) continue;; esac
    if [ ${#only[@]} -gt 0 ]; then m=0; for o in "${only[@]}"; do [[ $t == *$o* ]] && m=1; done; [ $m = 1 ] || continue; fi
    run "$(basename "$t")" "$t" "${args[@]}"
    case $t in *.sh) continue;; esac
    command -v mpirun >/dev/null || continue
    for n in $("$t" "${args[@]}" -m 2>/dev/null | grep -xE '[0-9]+'); do
        run "$(basename "$t") ($n MPI ranks)" mpirun -n "$n" "$t" "${args[@]}"
    done
done
[ ${#bad[@]} -gt 0 ] && printf 'failed: %s\n' "${bad[@]}"
echo "$p passed, $f failed, $s skipped"
[ "$f" = 0 ] && [ $((p+s)) -gt 0 ]
