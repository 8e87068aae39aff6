#!/usr/bin/env bash
# The whole job on the clips of this tree, unattended: data set, SFT on 2 MPI ranks for SECONDS_SFT
# seconds, samples, checks, report. Called by `make demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
run=${RUN:-runs/demo}
ranks=${RANKS:-2}
seconds=${SECONDS_SFT:-150}
start=$(date +%s)
say() { printf '\n== %s\n' "$*"; }
rm -rf "$run"

say "1 data: mp4 clips and captions -> HDF5 data set"
./osp data configs/data/clips.yaml

say "2 train: SFT on $ranks ranks for $seconds s by the clock (run it again and it resumes)"
mpirun -n "$ranks" ./osp train configs/train/tiny.yaml output_dir="$run" max_seconds="$seconds" \
    training_iteration=100000

say "3 sample: 3 captions x 3 seeds, guidance 3, EMA weights"
mpirun -n "$ranks" ./osp sample configs/sample/tiny.yaml checkpoint="$run" output_dir="$run/samples" \
    samples_per_prompt=3 same_noise=true compare=data_cache/clips.h5 | tee "$run/sample.log"

say "4 inspect and report"
./osp inspect "$run" > "$run/inspect.txt"; head -n 8 "$run/inspect.txt"
./osp report "$run"

say "result"
fail=0
# first and last held-out loss of the EMA weights, from the run's log of metrics
losses=$(grep -o '"validation/ema/loss":[^,}]*' "$run/metrics.jsonl" | cut -d: -f2)
first=$(printf '%s\n' "$losses" | head -n 1)
last=$(printf '%s\n' "$losses" | tail -n 1)
near=$(sed -n 's/.*own prompt nearest in \([0-9]*\) of \([0-9]*\).*/\1 \2/p' "$run/sample.log" | tail -n 1)
set -- $near
ratio=$(awk -v a="$first" -v b="$last" 'BEGIN { printf "%.3f", b / a }')
row() { printf "  %-46s %-46s %-8s %s\n" "$1" "$2" "$3" "$4"; }
row "what" "value" "wanted" "ok"
ok=yes; awk -v r="$ratio" 'BEGIN { exit !(r <= 0.30) }' || { ok=NO; fail=1; }
row "held-out loss (EMA), end / start" "$(printf "%.4f / %.4f = %s" "$last" "$first" "$ratio")" "<= 0.30" "$ok"
need=$(( ${2:-9} * 8 / 9 ))
ok=yes; [ "${1:-0}" -ge "$need" ] || { ok=NO; fail=1; }
row "sample nearest to its own caption's clips" "${1:-0} of ${2:-9}" ">= $need" "$ok"
ok=yes; [ $(( $(date +%s) - start )) -le 480 ] || { ok=NO; fail=1; }
row "wall time" "$(( $(date +%s) - start )) s" "<= 480 s" "$ok"
row "videos" "$run/samples/" "" ""
row "all videos in one, contact sheet" "$run/samples/video_grid.mp4, sheet.png" "" ""
row "report" "$run/report.html" "" ""
[ "${DEMO_CHECK:-1}" = 1 ] || fail=0 # a shortened demo shows the table only
exit $fail
