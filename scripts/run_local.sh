#!/usr/bin/env bash
# osp on this machine, on several ranks. Chooses what a user would have to know: ranks, threads per
# rank, binding, what Open MPI needs as root and with more ranks than cores; turns a signal into
# "write a checkpoint and stop" on every rank; leaves nothing in /dev/shm.
set -u
usage() { cat <<'H'
usage: scripts/run_local.sh [options] VERB CONFIG [key=value ...]
  -n N         ranks (default: one per GPU where there are any, else one per socket)
  -t N         threads per rank (default: cores / ranks)
  --bind       bind each rank to its own cores (default: not bound; of use on an idle machine)
  --grace S    seconds that ranks get after mpirun itself is ended by SIGTERM (default 5); a job
               whose rank dies needs twice this long to end
  --dry-run    print the command and stop
Ctrl-C, SIGTERM, SIGHUP, SIGUSR1: all ranks write a checkpoint and leave with 85; a second Ctrl-C
ends them at once. The exit code is that of the rank that failed first. Nothing is started again:
run it again, it resumes.
Example: scripts/run_local.sh -n 2 train configs/train/tiny.yaml
H
}
ranks='' threads='' bind=none grace=5 dry=''
while [ $# -gt 0 ]; do
    case $1 in
    -n) ranks=${2:?}; shift;;
    -t) threads=${2:?}; shift;;
    --bind) bind=core;;
    --grace) grace=${2:?}; shift;;
    --dry-run) dry=1;;
    -h | --help) usage; exit 0;;
    -*) usage >&2; exit 64;;
    *) break;;
    esac
    shift
done
[ $# -ge 2 ] || { usage >&2; exit 64; }
here=$(cd "$(dirname "$0")" && pwd)
osp=${OSP:-$here/../osp}
[ -x "$osp" ] || { echo "run_local: $osp is not built; run make" >&2; exit 64; }
command -v mpirun >/dev/null || { echo "run_local: no mpirun; run scripts/install_deps.sh" >&2; exit 64; }

cores=$(nproc)
if [ -z "$ranks" ]; then
    gpus=$(find /dev -maxdepth 1 -name 'nvidia[0-9]*' 2>/dev/null | wc -l)
    sockets=$(lscpu -p=socket 2>/dev/null | grep -v '^#' | sort -u | wc -l)
    ranks=$((gpus > 0 ? gpus : sockets > 0 ? sockets : 1))
fi
[ -n "$threads" ] || threads=$((cores > ranks ? cores / ranks : 1))
export OMP_NUM_THREADS=$threads OPENBLAS_NUM_THREADS=$threads OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
args=(-n "$ranks" --bind-to none --mca odls_base_sigkill_timeout "$grace")
[ "$bind" = core ] && args=(-n "$ranks" --map-by "slot:PE=$threads" --bind-to core --mca odls_base_sigkill_timeout "$grace")
if [ $((ranks * threads)) -gt "$cores" ]; then # waiting ranks give way
    [ "$bind" = none ] || { echo "run_local: $ranks ranks x $threads threads do not fit $cores cores; leave --bind out" >&2; exit 64; }
    args+=(--oversubscribe --mca mpi_yield_when_idle 1)
elif [ "$ranks" -gt 1 ]; then args+=(--oversubscribe)
fi
[ "$(id -u)" = 0 ] && export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
[ -n "$dry" ] && { echo "OMP_NUM_THREADS=$threads mpirun ${args[*]} $osp $*"; exit 0; }

# Open MPI's shared memory lies in a folder of this run; those of runs that were killed go now.
for d in /dev/shm/osp.*; do
    pid=${d##*.}
    [ -d "$d" ] && [ -O "$d" ] && ! kill -0 "$pid" 2>/dev/null && rm -rf "$d"
done
shm=/dev/shm/osp.$$
if mkdir -m 700 "$shm" 2>/dev/null; then args+=(--mca btl_vader_backing_directory "$shm"); else shm=''; fi
code=$(mktemp)
trap 'rm -rf ${shm:+"$shm"} "$code"' EXIT

# mpirun runs in a session of its own: a terminal's Ctrl-C reaches this script alone, which asks
# politely first. SIGUSR1 is what mpirun passes on to all ranks at once; a SIGTERM it would follow
# by SIGKILL after the grace time.
asked=0 child=''
# shellcheck disable=SC2317 # called by the traps
ask() {
    asked=$((asked + 1))
    [ -n "$child" ] || exit 85
    if [ "$asked" = 1 ]; then kill -USR1 "$child" 2>/dev/null
    elif [ "$1" = INT ]; then pkill -KILL -P "$child" 2>/dev/null
    fi
}
trap 'ask INT' INT
trap 'ask other' TERM HUP USR1 USR2

rm -f "$code"
OSP_EXIT_FILE=$code setsid mpirun "${args[@]}" "$osp" "$@" </dev/null &
child=$!
while :; do # a trapped signal ends the wait, not the child
    wait "$child"; rc=$?
    kill -0 "$child" 2>/dev/null || break
done
[ -s "$code" ] && rc=$((10#$(cat "$code")))
exit "$rc"
