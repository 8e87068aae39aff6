#!/usr/bin/env bash
# osp on this machine, or from here on several hosts, by mpirun. Chooses what a user would have to know: ranks, threads per
# rank, binding, what Open MPI needs as root and with more ranks than cores; turns a signal into
# "write a checkpoint and stop" on every rank; leaves nothing in /dev/shm. Where mpirun hangs after a rank
# has failed (a host that was cut off), it is ended.
set -u
usage() { cat <<'H'
usage: scripts/run_local.sh [options] VERB CONFIG [key=value ...]
  -n N         ranks (default: one per GPU where there are any, else one per socket)
  -t N         threads per rank (default: cores / ranks)
  --hosts H1:2,H2:2, --hostfile FILE   ranks on these hosts (needs a shared folder and ssh, or what
               OMPI_MCA_plm_rsh_agent names); -n defaults to all slots, -t to 1
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
ranks='' threads='' bind=none grace=5 dry='' hosts=()
while [ $# -gt 0 ]; do
    case $1 in
    -n) ranks=${2:?}; shift;;
    -t) threads=${2:?}; shift;;
    --hosts) hosts=(--host "${2:?}"); shift;;
    --hostfile) hosts=(--hostfile "${2:?}"); shift;;
    --bind) bind=core;;
    --grace) grace=${2:?}; shift;;
    --dry-run) dry=1;;
    -h | --help) usage; exit 0;;
    -*) usage >&2; exit 64;;
    *) break;;
    esac
    shift
done
for value in "-n $ranks" "-t $threads" "--grace $grace"; do
    case ${value#* } in *[!0-9]* | 0*) echo "run_local: $value: expected a number above 0" >&2; exit 64;; esac
done
[ $# -ge 2 ] || { usage >&2; exit 64; }
here=$(cd "$(dirname "$0")" && pwd)
osp=${OSP:-$here/../osp}
[ -x "$osp" ] || { echo "run_local: $osp is not built; run make" >&2; exit 64; }
command -v mpirun >/dev/null || { echo "run_local: no mpirun; run scripts/install_deps.sh" >&2; exit 64; }

args=(--mca odls_base_sigkill_timeout "$grace")
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
if [ ${#hosts[@]} -gt 0 ]; then # daemons notice a host that is silent for 30 + 3 * 5 s
    threads=${threads:-1}
    args+=("${hosts[@]}" ${ranks:+-n "$ranks"} --bind-to "$bind" --mca oob_tcp_keepalive_time 30
        --mca oob_tcp_keepalive_intvl 5 --mca oob_tcp_keepalive_probes 3)
else
    cores=$(nproc)
    if [ -z "$ranks" ]; then
        gpus=$(find /dev -maxdepth 1 -name 'nvidia[0-9]*' 2>/dev/null | wc -l)
        sockets=$(lscpu -p=socket 2>/dev/null | grep -v '^#' | sort -u | wc -l)
        ranks=$((gpus > 0 ? gpus : sockets > 0 ? sockets : 1))
    fi
    [ -n "$threads" ] || threads=$((cores > ranks ? cores / ranks : 1))
    args+=(-n "$ranks" --oversubscribe)
    if [ "$bind" = none ]; then args+=(--bind-to none)
    elif [ $((ranks * threads)) -le "$cores" ]; then args+=(--map-by "slot:PE=$threads" --bind-to core)
    else echo "run_local: $ranks ranks x $threads threads do not fit $cores cores; leave --bind out" >&2; exit 64
    fi
    [ $((ranks * threads)) -gt "$cores" ] && args+=(--mca mpi_yield_when_idle 1)
fi
export OMP_NUM_THREADS=$threads OPENBLAS_NUM_THREADS=$threads
for v in OMP_NUM_THREADS OPENBLAS_NUM_THREADS OMP_WAIT_POLICY OSP_EXIT_FILE ${OSP_FAULT:+OSP_FAULT}; do args+=(-x "$v"); done
[ "$(id -u)" = 0 ] && export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
[ -n "$dry" ] && { echo "OMP_NUM_THREADS=$threads mpirun ${args[*]} $osp $*"; exit 0; }

# A configuration that would be refused is refused here, at once: mpirun takes twice the grace time to
# end a job whose rank has refused it.
case $1 in train | rl | sample)
    said=$("$osp" "$@" --print-config 2>&1 >/dev/null </dev/null); rc=$?
    case $rc in 64 | 66 | 78) printf '%s\n' "$said" >&2; exit "$rc";; esac
esac

# Open MPI's shared memory lies in a folder of this run; those of runs that were killed go now.
shm=''
for d in /dev/shm/osp.*; do
    [ -d "$d" ] && [ -O "$d" ] && ! kill -0 "${d##*.}" 2>/dev/null && rm -rf "$d"
done
if [ ${#hosts[@]} = 0 ] && mkdir -m 700 "/dev/shm/osp.$$" 2>/dev/null; then
    shm=/dev/shm/osp.$$
    args+=(--mca btl_vader_backing_directory "$shm")
fi
# The code of the rank that failed first; with several hosts in this folder, which all of them see.
if [ ${#hosts[@]} = 0 ]; then code=$(mktemp) && rm -f "$code"; else code=$PWD/.osp.$$.code; fi
export OSP_EXIT_FILE=$code
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

setsid mpirun "${args[@]}" "$osp" "$@" </dev/null &
child=$!
# A rank has failed, and mpirun does not end: it waits for a host that will not answer, or (seen when
# ranks were killed while they started) has locked itself up with no child left.
( alone=0
    while sleep 1 && kill -0 "$child" 2>/dev/null; do
        if pgrep -P "$child" -r D,R,S,T >/dev/null; then alone=0; else alone=$((alone + 1)); fi
        if [ -s "$code" ]; then sleep $((2 * grace + 5))
        elif [ "$alone" -lt $((2 * grace + 10)) ]; then continue
        fi
        kill -0 "$child" 2>/dev/null || break
        echo "run_local: mpirun does not end after a rank has failed; it is killed" >&2
        pkill -KILL -P "$child"; kill -KILL "$child"
    done
) &
watch=$!
while :; do # a trapped signal ends the wait, not the child
    wait "$child" 2>/dev/null; rc=$?
    kill -0 "$child" 2>/dev/null || break
done
nap=$(pgrep -P "$watch") # ended after the watcher, which would report it as "Terminated"
# shellcheck disable=SC2086 # several numbers
kill "$watch" $nap 2>/dev/null; wait "$watch" 2>/dev/null
[ -s "$code" ] && rc=$((10#$(cat "$code")))
[ "$rc" = 85 ] && echo "run_local: stopped with a checkpoint; the same command again goes on from it" >&2
exit "$rc"
