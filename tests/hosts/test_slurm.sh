#!/usr/bin/env bash
# Slurm on two hosts (its daemons by hand, no systemd, no database): the batch script runs over
# both, reacts to the warning signal with a checkpoint, reports the code of the rank that failed
# first and asks for a requeue where one is worth it. REQUEUE=1 waits for the requeued job, twice,
# each of which takes Slurm two minutes.
set -u
cd "$(dirname "$0")/../.." || exit 1
. scripts/env.sh
. tests/hosts/hosts.sh
cases=11
why=$(hosts_why_not)
for p in slurmctld slurmd munged sbatch srun; do [ -n "$why" ] || command -v $p >/dev/null || why="no $p (scripts/install_deps.sh --tests)"; done
[ -n "$why" ] || compgen -G "/usr/lib/*/slurm*/mpi_pmix*.so" >/dev/null || why="srun has no pmix"
[ -z "$why" ] || skip_all "Slurm: $why" $cases
trap 'hosts_down' EXIT
trap 'exit 1' INT TERM HUP
fail_all() { echo "  FAIL $1"; tail -n 20 "$HOSTS_DIR"/slurm/*.log 2>/dev/null; echo "0 passed, $cases failed, 0 skipped"; exit 1; }
hosts_up "${BUILD:-build/release}/osp" || fail_all "hosts"

slurm_up() {
    local d=$HOSTS_DIR/slurm i=0 h
    mkdir -p "$d/state" && mkdir -m 700 "$d/munge" && chmod 755 "$HOSTS_DIR" "$d"
    head -c 1024 /dev/urandom >"$d/munge/key" && chmod 600 "$d/munge/key"
    cat >"$d/slurm.conf" <<C
ClusterName=osp$$
SlurmctldHost=$H0(10.77.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$d/munge.sock
CryptoType=crypto/munge
StateSaveLocation=$d/state
SlurmdSpoolDir=$d/spool.%n
SlurmctldPidFile=$d/slurmctld.pid
SlurmdPidFile=$d/slurmd.%n.pid
SlurmctldLogFile=$d/slurmctld.log
SlurmdLogFile=$d/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
KillWait=5
ReturnToService=2
SwitchType=switch/none
PartitionName=p Nodes=ALL Default=YES MaxTime=INFINITE State=UP
C
    for h in "$H0" "$H1"; do i=$((i + 1)); echo "NodeName=$h NodeHostname=$h NodeAddr=10.77.0.$i CPUs=2 RealMemory=1000" >>"$d/slurm.conf"; done
    export SLURM_CONF=$d/slurm.conf
    "$on" "$H0" "munged --force --key-file=$d/munge/key --socket=$d/munge.sock --pid-file=$d/munged.pid --log-file=$d/munge/log --seed-file=$d/munge/seed" >/dev/null 2>&1 || return 1
    "$on" "$H0" "slurmctld -f $SLURM_CONF -c" >"$d/start.log" 2>&1 || return 1
    for h in "$H0" "$H1"; do "$on" "$h" "slurmd -f $SLURM_CONF -N $h" >>"$d/start.log" 2>&1 || return 1; done
    for _ in $(seq 100); do "$on" "$H0" "sinfo -h -o '%T %D'" 2>/dev/null | grep -q 'idle 2' && return 0; sleep 0.1; done
    return 1
}
submit() { # RUN, sbatch options..., from the folder that plays the build's; prints the job's number
    local run=$1; shift
    hosts_yaml "$run" 12
    "$on" "$H0" "cd $HOSTS_DIR; sbatch --parsable -N 2 --ntasks-per-node=1 -o $HOSTS_DIR/$run.log $* \
        scripts/run_slurm.sbatch $HOSTS_DIR/$run.yaml" </dev/null
}
state() { "$on" "$H0" "scontrol -o show job $1" 2>/dev/null | tr ' ' '\n' | sed -n "s/^$2=//p"; }
finish() { # JOB: waits until it has ended; rc becomes its exit code
    for _ in $(seq 250); do
        case $(state "$1" JobState) in COMPLETED | FAILED | CANCELLED | NODE_FAIL | TIMEOUT) break;; esac
        sleep 0.1
    done
    rc=$(state "$1" ExitCode); rc=${rc%:*}
}
wait_for() { for _ in $(seq 150); do [ -e "$1" ] && return; sleep 0.1; done; }
losses() { sed -n 's/.*\(step [0-9]*\/[0-9]*  loss [0-9.]*\).*/\1/p' "$1"; }
slurm_up || fail_all "the daemons of Slurm do not start"

log=$HOSTS_DIR/one.out; hosts_yaml one 12
timeout -k 5 60 mpirun -n 2 "$HOSTS_DIR/osp" train "$HOSTS_DIR/one.yaml" </dev/null >"$log" 2>&1
log=$HOSTS_DIR/two.log
finish "$(submit two)"
check "a job over two hosts ends with 0" "$rc" = 0
check "with the losses of one host" "$(losses "$HOSTS_DIR/one.out")" = "$(losses "$log")"

# the warning (--signal=B:USR1) goes to the batch script, which passes it on; no restart is allowed
log=$HOSTS_DIR/warned.log
job=$(submit warned --export=ALL,OSP_FAULT=step:6:slow,MAX_RESTARTS=0)
wait_for "$HOSTS_DIR/warned/checkpoints/iter_000000004"
sleep 0.5; "$on" "$H0" "scancel --batch -s USR1 $job"
finish "$job"
check "the warning ends it with 85" "$rc" = 85
check "after a checkpoint" -n "$(grep 'stopped by a signal or the end of the job at step 6' "$log")"
check "and says why it does not start again" -n "$(grep 'not restarted: 0 restarts were allowed' "$log")"

# srun reports the ranks it killed; the exit code must be that of the cause
log=$HOSTS_DIR/hang.log
job=$(submit hang --export=ALL,OSP_FAULT=step@1:6:stop)
for _ in $(seq 250); do [ "$(state "$job" Restarts)" = 1 ] && break; sleep 0.1; done
check "a stopped rank is named" -n "$(grep "a rank is missing: rank 1 ($H1)" "$log")"
check "the code is that of the cause" -n "$(grep 'osp: ended with exit code 86' "$log")"
check "the job is put back into the queue" "$(state "$job" Restarts)" = 1
check "with the step it goes on from" -n "$(grep 'restart 1 of at most 50 after exit code 86, from step 4' "$log")"
if [ -n "${REQUEUE:-}" ]; then
    # the planted fault strikes again at the sixth step of the second start; the third has four left
    for _ in $(seq 420); do grep -q 'start 3,' "$log" && break; sleep 1; done
    finish "$job"
    check "and ends with 0" "$rc" = 0
else "$on" "$H0" "scancel $job"
fi

log=$HOSTS_DIR/config.log
echo "save_intervall: 3" >>"$HOSTS_DIR/hang.yaml"; cp "$HOSTS_DIR/hang.yaml" "$HOSTS_DIR/broken.yaml"
job=$("$on" "$H0" "cd $HOSTS_DIR; sbatch --parsable -N 2 --ntasks-per-node=1 -o $log scripts/run_slurm.sbatch $HOSTS_DIR/broken.yaml" </dev/null)
finish "$job"
check "a configuration error ends it with 78" "$rc" = 78
check "and is not tried again" -n "$(grep 'not restarted: exit code 78' "$log")"
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
