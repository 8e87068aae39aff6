#!/usr/bin/env bash
# The whole job on the clips of this tree, unattended: data set, SFT on 2 MPI ranks for SECONDS_SFT
# seconds, samples, post-training of adapters for SECONDS_RL seconds, samples with them, checks,
# reports. Called by `make demo`.
# STEPS_SFT, EPOCHS_RL: so many steps and epochs instead of seconds, for the same numbers on machines
# of any speed. DEMO_CHECK: all thresholds (1), only those of post-training (rl), none (0). With rl
# there is one run more, without a learning rate, whose reward must not move.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh
run=${RUN:-runs/demo}
ranks=${RANKS:-2}
seconds=${SECONDS_SFT:-150}
seconds_rl=${SECONDS_RL:-120}
check=${DEMO_CHECK:-1}
case $check in 0|1|rl) ;; *) echo "DEMO_CHECK=$check: 1, rl or 0"; exit 64;; esac
sft="$seconds s by the clock"; sft_end="max_seconds=$seconds training_iteration=100000"
rl="$seconds_rl s by the clock"; rl_end="max_seconds=$seconds_rl num_epochs=100000"
[ -z "${STEPS_SFT:-}" ] || { sft="$STEPS_SFT steps"; sft_end="training_iteration=$STEPS_SFT"; }
[ -z "${EPOCHS_RL:-}" ] || { rl="$EPOCHS_RL epochs"; rl_end="num_epochs=$EPOCHS_RL"; }
start=$(date +%s)
say() { printf '\n== %s\n' "$*"; }
for folder in "$run" "$run-rl" "$run-still"; do # only what an earlier demo has made is removed
    if [ -e "$folder" ] && [ "$run" != runs/demo ] && [ "$run" != runs/ci-demo ] && [ ! -e "$folder/made-by-demo" ]; then
        echo "$folder exists and is not of an earlier demo; name another folder: RUN=DIR"; exit 73; fi
    rm -rf "$folder"
done
mkdir -p "$run"; touch "$run/made-by-demo"

say "1 data: mp4 clips and captions -> HDF5 data set"
./osp data configs/data/clips.yaml overwrite=true

say "2 train: SFT on $ranks ranks for $sft (the same command line goes on where it stopped)"
mpirun -n "$ranks" ./osp train configs/train/tiny.yaml output_dir="$run" $sft_end

say "3 sample: 3 captions x 3 seeds, guidance 3, EMA weights"
mpirun -n "$ranks" ./osp sample configs/sample/tiny.yaml checkpoint="$run" output_dir="$run/samples" \
    samples_per_prompt=3 same_noise=true compare=data_cache/clips.h5 | tee "$run/sample.log"

post_train() { # into the folder $1, with keys
    local to=$1; shift
    mkdir -p "$to"; touch "$to/made-by-demo"
    mpirun -n "$ranks" ./osp rl configs/rl/tiny.yaml output_dir="$to" \
        model_config.pretrained_model_dir_or_checkpoint="$run" "$@"
}
say "4 post-training: adapters against a scorer for $rl"
post_train "$run-rl" $rl_end
if [ "$check" = rl ]; then
    say "  and without a learning rate"
    post_train "$run-still" num_epochs=1 rl_config.num_batches_per_epoch=1 optimizer_config.lr=0
fi

say "5 sample with the adapters: the same captions and noise"
mpirun -n "$ranks" ./osp sample configs/sample/tiny.yaml checkpoint="$run" lora="$run-rl" \
    output_dir="$run-rl/samples" samples_per_prompt=3 same_noise=true > "$run-rl/sample.log"
grep "videos in" "$run-rl/sample.log" | tail -n 1

say "6 inspect and report"
./osp inspect "$run" > "$run/inspect.txt"; head -n 8 "$run/inspect.txt"
./osp report "$run"
./osp report "$run-rl"

say "result"
fail=0
# judge PART OK: a missed threshold counts where this part (sft, rl) is checked
judge() {
    ok=yes; [ "$2" = 0 ] || ok=NO
    if [ "$2" != 0 ] && { [ "$check" = 1 ] || [ "$check" = "$1" ]; }; then fail=1; fi
}
holds() { awk "BEGIN { exit !($1) }" && echo 0 || echo 1; } # an expression of awk: 0, or 1 if not
# values FILE KEY: all values of a key in a run's log of metrics, a line each
values() { grep -o "\"$2\":[^,}]*" "$1/metrics.jsonl" | cut -d: -f2; }
first=$(values "$run" validation/ema/loss | head -n 1)
last=$(values "$run" validation/ema/loss | tail -n 1)
near=$(sed -n 's/.*own prompt nearest in \([0-9]*\) of \([0-9]*\).*/\1 \2/p' "$run/sample.log" | tail -n 1)
set -- $near
ratio=$(awk -v a="$first" -v b="$last" 'BEGIN { printf "%.3f", b / a }')
row() { printf "  %-46s %-46s %-8s %s\n" "$1" "$2" "$3" "$4"; }
row "what" "value" "wanted" "ok"
judge sft "$(holds "$ratio <= 0.30")"
row "held-out loss (EMA), end / start" "$(printf "%.4f / %.4f = %s" "$last" "$first" "$ratio")" "<= 0.30" "$ok"
need=$(( ${2:-9} * 8 / 9 ))
judge sft "$(holds "${1:-0} >= $need")"
row "sample nearest to its own caption's clips" "${1:-0} of ${2:-9}" ">= $need" "$ok"
# evaluation prompts with fixed noise, before and after; in units of the deviation between them before
before=$(values "$run-rl" eval/reward_mean | head -n 1)
after=$(values "$run-rl" eval/reward_mean | tail -n 1)
std=$(values "$run-rl" eval/reward_std | head -n 1)
gain=$(awk -v a="$before" -v b="$after" -v s="$std" 'BEGIN { printf "%+.2f", (b - a) / s }')
judge rl "$(holds "$gain >= 1")"
row "reward of evaluation prompts, after - before" \
    "$(printf "(%.3f - %.3f) / std %.3f = %s" "$after" "$before" "$std" "$gain")" ">= 1" "$ok"
if [ "$check" = rl ]; then
    moved=$(values "$run-still" eval/reward_mean | sort -u | tr '\n' ' ')
    still=1 # two evaluations with one value, the one from before
    if [ "$(values "$run-still" eval/reward_mean | wc -l)" = 2 ] && [ "$moved" = "$before " ]; then still=0; fi
    judge rl "$still"
    row "  the same without a learning rate" "$moved" "$before" "$ok"
fi
row "KL from the base, epochs" "$(printf "%.2e per element, %s" "$(values "$run-rl" update/kl | tail -n 1)" \
    "$(values "$run-rl" update/kl | wc -l)")" "" ""
judge sft "$(holds "$(date +%s) - $start <= $((480 + seconds + seconds_rl - 270))")"
row "wall time" "$(( $(date +%s) - start )) s" "<= $((480 + seconds + seconds_rl - 270)) s" "$ok"
row "videos" "$run/samples/, $run-rl/samples/" "" ""
row "all videos in one, contact sheet" "$run/samples/video_grid.mp4, sheet.png" "" ""
row "reports" "$run/report.html, $run-rl/report.html" "" ""
if [ "$fail" != 0 ]; then
    echo
    echo "A threshold was missed after $(grep -o '"step":[0-9]*' "$run/metrics.jsonl" | tail -n 1 | cut -d: -f2) steps and $(values "$run-rl" update/kl | wc -l) epochs in the time given."
    echo "On a slow or busy machine: STEPS_SFT=300 EPOCHS_RL=8 make demo (as many, however long; the wall time will be over),"
    echo "or SECONDS_SFT=300 SECONDS_RL=240 make demo."
fi
exit $fail
