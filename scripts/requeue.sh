#!/usr/bin/env bash
# Whether a run that ended with this code should be started again. Exit 0: yes; 1: no. Says why.
#   requeue.sh CODE TURN MAX CONFIG [key=value ...]     TURN: which restart this would be, from 1
# 75, 85, 86, 88 and 128+n (killed) are worth it; a configuration error or bad data are not. A run
# that restarted at the same step twice makes no progress and is left alone; the steps are kept in
# output_dir/restarts, one line per end of a run of this job.
set -u
[ $# -ge 4 ] || { sed -n '2,6s/^# \?//p' "$0"; exit 64; }
code=$1 turn=$2 max=$3
shift 3
osp=${OSP:-$(dirname "$0")/../osp}
case $code in
75 | 85 | 86 | 88) ;;
*) if [ "$code" -le 128 ]; then echo "not restarted: exit code $code will come again"; exit 1; fi;;
esac
if [ "$turn" -gt "$max" ]; then echo "not restarted: $max restarts were allowed"; exit 1; fi
dir=$("$osp" print-config "$@" 2>/dev/null | sed -n 's/^output_dir: *\([^#]*[^# ]\).*/\1/p' | head -n 1)
dir=${dir%\"}; dir=${dir#\"}
if [ ! -d "$dir" ]; then echo "not restarted: no output_dir ($dir)"; exit 1; fi
step=$(find "$dir/checkpoints" -maxdepth 1 -name 'iter_[0-9]*' ! -name '*.tmp' 2>/dev/null |
    sed 's/.*iter_0*//; s/^$/0/' | sort -n | tail -n 1)
step=${step:-none}
if [ "$turn" = 1 ]; then : >"$dir/restarts"; fi # another job, another count
echo "$step $code" >>"$dir/restarts"
if [ "$(tail -n 3 "$dir/restarts" | cut -d ' ' -f 1 | uniq -c | awk '{print $1}' | tail -n 1)" -ge 3 ]; then
    echo "not restarted: no progress, three runs ended with the newest checkpoint at step $step"
    exit 1
fi
echo "restart $turn of at most $max after exit code $code, from step $step"
