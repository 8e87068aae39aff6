#!/usr/bin/env bash
# The runs that take too long for `make test`: every layout with every recompute policy in f64, every
# way to share samples between up to 8 ranks (sequence; its list is in $BUILD/campaign), FUZZ damaged
# inputs for each parser (100,000; 1,000,000 for the messages of scorers and for foreign files of
# tensors, which run in build/asan),
# 10,000 clips with faulty scorers on 8 ranks (reward), KILLS random kills. Arguments: parts to run
# (ranks, sequence, fuzz, reward, kill); none: all. Ends with "N passed, N failed, N skipped".
# Results: docs/campaign.md, by hand.
set -u
cd "$(dirname "$0")/.." || exit 2
. scripts/env.sh
export BUILD=${BUILD:-build/release} CAMPAIGN=1 KILLS=${KILLS:-50}
fuzz=${FUZZ:-100000}
pass=0; fail=0; skip=0
part() { # name, program, test name, environment...
    local name=$1 program=$2 test=$3 log t0; shift 3
    [ "${#want[@]}" = 0 ] || [[ " ${want[*]} " == *" $name "* ]] || return 0
    mkdir -p "$BUILD/campaign"
    log=$BUILD/campaign/$name-$program.log; t0=$(date +%s)
    printf '== %s: %s%s "%s" %s\n' "$name" "${launch:+$launch }" "$program" "$test" "$*"
    env "$@" ${launch:-} "${from:-$BUILD}/tests/$program" "$test" </dev/null >"$log" 2>&1; local rc=$?
    grep -vE '^(warning|build|/)' "$log" | tail -n 20
    echo "   exit code $rc, $(( $(date +%s) - t0 )) s"
    set -- $(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1)
    if [ $# = 6 ]; then pass=$((pass+$1)); fail=$((fail+$3)); skip=$((skip+$5))
    else fail=$((fail+1)); fi
}
want=("$@")
part ranks test_train "20 steps give" X=1
part sequence test_sequence "one rank" X=1
part sequence test_sequence_train "" X=1
part fuzz test_config "a damaged file" FUZZ="$fuzz"
part fuzz test_filter "randomly damaged" FUZZ="$fuzz"
part fuzz test_checkpoint "damaged manifests" FUZZ="$fuzz"
part fuzz test_dataset "flipped bytes" FUZZ="$fuzz"
from=build/asan part fuzz test_reward_fuzz "" FUZZ="${FUZZ:-1000000}"
from=build/asan part fuzz test_format_fuzz "" FUZZ="${FUZZ:-1000000}"
launch="mpirun -n 8" part reward test_reward_ranks "8 ranks" X=1
part reward test_reward "many clips" X=1
part kill test_kill "moments" KILLS="$KILLS"
echo "$pass passed, $fail failed, $skip skipped"
[ "$fail" = 0 ] && [ $((pass+skip)) -gt 0 ]
