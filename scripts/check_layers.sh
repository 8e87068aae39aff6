#!/usr/bin/env bash
# Who may include whom. Argument: the folder to check (default: this repository).
#   core     nothing of ours        core/{ref,cpu,null,cuda}  core; nobody includes them
#   parallel core                   model   core; of parallel only comm mesh layout redist ulysses
#   optim, data   core, parallel
#   train    all but rl (settings.h nests every configuration, rl's too)
#   rl       all; of train what a run is made of, none of its verbs
#   tests    all;  osp.c  all
set -u
cd "${1:-$(dirname "$0")/..}" || exit 2
dirs=(); for d in core parallel model optim data train rl tests; do [ -d "$d" ] && dirs+=("$d"); done
[ ${#dirs[@]} -gt 0 ] || { echo "check_layers: no sources here"; exit 2; }

grep -rnE '^[[:space:]]*#[[:space:]]*include' --include='*.[ch]' --include='*.cu' \
    --include='*.cuh' --include='*.cc' "${dirs[@]}" | awk '
function bad(why) { print place ": " why; n++ }
{
    split($0, part, ":"); file = part[1]; place = part[1] ":" part[2]
    from = file; sub(/\/.*/, "", from)
    what = $0; sub(/^[^:]*:[^:]*:/, "", what)
    if (match(what, /<[^>]*>/)) {
        name = substr(what, RSTART + 1, RLENGTH - 2)
        if (from == "core" && file !~ /^core\/cuda\// && name ~ /^(mpi|hdf5|H5|cuda|nccl|cudnn|cublas)/)
            bad("core may not include <" name ">")
        if (name ~ /^yaml\.h$/ && file !~ /^core\/(config|yaml_)/) bad("only core/config*.c, core/yaml_*.c may include <yaml.h>")
        if (name ~ /^(cuda|cudnn|cublas)/ && file !~ /^core\/cuda\// && file !~ /^parallel\/comm_nccl/)
            bad("<" name "> belongs into core/cuda/ or parallel/comm_nccl.*")
        next
    }
    if (!match(what, /"[^"]*"/)) next
    name = substr(what, RSTART + 1, RLENGTH - 2)
    to = name; sub(/\/.*/, "", to)
    if (name !~ /\//) { bad("\"" name "\": write the folder too"); next }
    if (from == "tests") next
    if (name ~ /^core\/(ref|cpu|null|cuda)\//) {
        split(name, a, "/"); split(file, b, "/")
        if (a[2] != b[2]) bad("\"" name "\" is private to core/" a[2])
    }
    if (to == from || to == "core") next
    ok = 0
    if (from == "model") ok = name ~ /^parallel\/(comm|mesh|layout|redist|ulysses)\.h$/
    if (from == "optim" || from == "data") ok = to == "parallel"
    if (from == "train") ok = (to ~ /^(parallel|model|optim|data)$/) || file == "train/settings.h"
    if (from == "rl") ok = (to ~ /^(parallel|model|optim|data)$/) || name ~ /^train\/(adapter|args|metrics|plan|print_config|prompts|session|settings|stored_model)\.h$/
    if (!ok) bad(from " may not include \"" name "\"")
}
END { if (n) { print "check_layers: " n " wrong include" (n > 1 ? "s" : ""); exit 1 } }' || exit 1
echo "check_layers: fine"
