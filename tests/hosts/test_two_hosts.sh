#!/usr/bin/env bash
# Two hosts under mpirun with a host list: the losses are those of one host; a signal reaches every
# host; a cut link ends the job on both sides, and the next start goes on to the same bits.
set -u
cd "$(dirname "$0")/../.." || exit 1
. scripts/env.sh
. tests/hosts/hosts.sh
why=$(hosts_why_not)
[ -z "$why" ] || skip_all "two hosts: $why" 3
trap 'hosts_down' EXIT
trap 'exit 1' INT TERM HUP
hosts_up "${BUILD:-build/release}/osp" || { echo "  FAIL hosts"; echo "0 passed, 1 failed, 0 skipped"; exit 1; }
launch() { # RUN, then more arguments of osp; FAULT: planted fault. Runs on h0, ranks on both hosts.
    local run=$1; shift
    timeout -k 5 60 "$on" "$H0" "cd $HOSTS_DIR; OSP_FAULT='${FAULT:-}' exec \
        scripts/run_local.sh --hosts $H0:1,$H1:1 --grace 1 train $HOSTS_DIR/$run.yaml $*" \
        </dev/null >"$log" 2>&1
}
ranks_of() { # processes of osp on a host
    local p
    for p in $(ip netns pids "$1"); do [ "$(cat "/proc/$p/comm" 2>/dev/null)" = osp ] && echo "$p"; done
}
losses() { sed -n 's/.*\(step [0-9]*\/[0-9]*  loss [0-9.]*\).*/\1/p' "$1"; }

log=$HOSTS_DIR/one.log; hosts_yaml one 12; hosts_yaml two 12
timeout -k 5 60 mpirun -n 2 "$HOSTS_DIR/osp" train "$HOSTS_DIR/one.yaml" </dev/null >"$log" 2>&1; rc=$?
check "one host: the run to compare with" $rc = 0
log=$HOSTS_DIR/two.log
launch two; rc=$?
check "two hosts: the run ends with 0" $rc = 0
check "two hosts: the losses of one host" "$(losses "$HOSTS_DIR/one.log")" = "$(losses "$log")"

log=$HOSTS_DIR/signal.log; hosts_yaml signal 12
FAULT=step@1:6:term launch signal; rc=$?
check "a signal on the second host stops both with 85" $rc = 85
check "at the step after it" -n "$(grep 'at step 6;' "$log")"

log=$HOSTS_DIR/cut.log; hosts_yaml cut 12
t0=$(date +%s)
FAULT=step:7:slow launch cut & job=$!
for _ in $(seq 100); do [ -d "$HOSTS_DIR/cut/checkpoints/iter_000000004" ] && break; sleep 0.1; done
sleep 1 # the fault gives the time: all ranks pause in step 7
ip -n "$H1" link set "v$H1" down
wait $job; rc=$?
t1=$(date +%s)
check "a cut link ends the job with 86" $rc = 86
check "within seconds ($((t1 - t0)) s)" $((t1 - t0)) -lt 30
check "the line names the rank and its host" -n "$(grep "a rank is missing: rank 1 ($H1) has not answered for" "$log")"
# Open MPI's daemon there waits for its connection to fail; it holds nothing
check "no rank is left on the host that was cut off" -z "$(ranks_of "$H1")"
check "nothing is left on the other one" -z "$(ip netns pids "$H0")"
ip -n "$H1" link set "v$H1" up
log=$HOSTS_DIR/again.log
launch cut; rc=$?
check "the next start resumes and ends with 0" $rc = 0 -a -n "$(grep 'resumed from' "$log")"
log=$HOSTS_DIR/diff.log
./"${BUILD:-build/release}"/osp diff "$HOSTS_DIR/cut" "$HOSTS_DIR/one" >"$log" 2>&1; rc=$?
check "with the bits of the undisturbed run" $rc = 0
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
