#!/usr/bin/env bash
# scripts/run_local.sh on this machine, and scripts/requeue.sh: signals, exit codes, what is left.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/hosts/hosts.sh
for p in mpirun setsid pkill; do command -v $p >/dev/null || skip_all "run_local: no $p" 21; done
HOSTS_DIR=$(mktemp -d "${TMPDIR:-/tmp}/osp-hosts.XXXXXX") || exit 1
trap 'hosts_down' EXIT
trap 'exit 1' INT TERM HUP
OSP=$PWD/${BUILD:-build/release}/osp
export OSP
run() { # RUN, options of run_local.sh; FAULT: planted fault. In the background: pid
    local run=$1; shift
    OSP_FAULT=${FAULT:-} timeout -k 5 60 scripts/run_local.sh "$@" train "$HOSTS_DIR/$run.yaml" </dev/null >"$log" 2>&1 &
    pid=$!
}
inner() { pgrep -P "$pid" | head -n 1; } # the script below `timeout`
wait_for() { for _ in $(seq 150); do [ -e "$1" ] && return; sleep 0.1; done; }

log=$HOSTS_DIR/usage.log
scripts/run_local.sh --help >"$log"; rc=$?
check "--help" $rc = 0 -a -n "$(grep -- '--grace' "$log")"
scripts/run_local.sh -n 3 -t 2 --dry-run train x.yaml >"$log"; rc=$?
check "--dry-run shows ranks and threads" $rc = 0 -a -n "$(grep 'OMP_NUM_THREADS=2 mpirun.* -n 3 ' "$log")"
scripts/run_local.sh -n two train x.yaml >"$log" 2>&1; rc=$?
check "a number of ranks that is none: 64" $rc = 64 -a -n "$(grep 'n two: expected a number' "$log")"
scripts/run_local.sh -n 1000 -t 2 --bind train x.yaml >"$log" 2>&1; rc=$?
check "binding more than there is is an error" $rc = 64

log=$HOSTS_DIR/refused.log; t0=$(date +%s%N)
scripts/run_local.sh -n 2 train no/such.yaml >"$log" 2>&1; rc=$?
check "a configuration that is not there: 66, without ranks" $rc = 66 -a "$(wc -l <"$log")" = 1
scripts/run_local.sh -n 2 train configs/train/tiny.yaml sede=1 >"$log" 2>&1; rc=$?
check "a mistake in it: 78, at once" $rc = 78 -a -n "$(grep 'did you mean "seed"' "$log")" \
    -a $((($(date +%s%N) - t0) / 1000000)) -lt 4000

mkdir -m 700 /dev/shm/osp.999999999 2>/dev/null # of a run that was killed
log=$HOSTS_DIR/whole.log; hosts_yaml whole 8
run whole -n 2; wait $pid; rc=$?
check "a run ends with 0" $rc = 0
check "and says nothing of its own" -z "$(grep -iE 'terminated|killed|line [0-9]' "$log")"
check "shared memory of killed runs is removed" ! -e /dev/shm/osp.999999999

for s in INT TERM; do
    log=$HOSTS_DIR/$s.log; hosts_yaml $s 100000
    run $s -n 2
    wait_for "$HOSTS_DIR/$s/checkpoints/iter_000000004"
    script=$(inner); kill -$s "$script"; wait $pid; rc=$?
    check "SIG$s to the script: a checkpoint and 85" $rc = 85 -a -n "$(grep 'stopped by a signal' "$log")"
    check "SIG$s: no shared memory is left" ! -e "/dev/shm/osp.$script"
done

log=$HOSTS_DIR/twice.log; hosts_yaml twice 100000
FAULT=step:6:hang run twice -n 2 --grace 1
wait_for "$HOSTS_DIR/twice/checkpoints/iter_000000004"; sleep 1
script=$(inner); t0=$(date +%s); kill -INT "$script"; sleep 1; kill -INT "$script"; wait $pid; rc=$?
check "the second SIGINT ends a run that hangs" $rc = 137 -a $(($(date +%s) - t0)) -lt 25

log=$HOSTS_DIR/dead.log; hosts_yaml dead 100
FAULT=step@1:6:segv run dead -n 2 --grace 1; wait $pid; rc=$?
check "the code of a rank that crashes" $rc = 139 -a -n "$(grep 'ended by signal 11, SIGSEGV' "$log")"

# requeue.sh asks only for output_dir and looks for checkpoints
log=$HOSTS_DIR/requeue.log; : >"$log"
again() { scripts/requeue.sh "$1" "$2" 5 "$HOSTS_DIR/whole.yaml" >>"$log" 2>&1; }
again 86 1; check "86 is worth a restart" $? = 0
again 137 2; check "a killed rank is, too; the second restart at one step" $? = 0
again 86 3; check "the third run without progress is not" $? = 1
mkdir "$HOSTS_DIR/whole/checkpoints/iter_000000012"
again 86 4; check "with progress it is" $? = 0
again 78 5; check "a configuration error is not" $? = 1
again 85 6; check "nor is a run beyond the maximum" $? = 1
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
