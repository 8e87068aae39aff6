#!/usr/bin/env bash
# Style of the tracked C files. Argument: the folder to check (default: this repository).
# Errors: tabs, lines over 100 columns, TODO without a name, clang-format. Files over 600 lines and
# functions over 80 lines are errors too: they are the two sizes nobody reads.
set -u
cd "${1:-$(dirname "$0")/..}" || exit 2
if git rev-parse --is-inside-work-tree >/dev/null 2>&1 && [ -e .git ]; then
    mapfile -t files < <(git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cc')
else
    mapfile -t files < <(find . -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cc')
fi
[ ${#files[@]} -gt 0 ] || { echo "check_style: no sources here"; exit 2; }
bad=0
LC_ALL=C.UTF-8 awk '
function say(text) { print FILENAME ":" FNR ": " text; n++ }
FNR == 1 { if (name && lines > 600) { print name ": " lines " lines, at most 600"; n++ } name = FILENAME; start = 0 }
{ lines = FNR }
/\t/ { say("tab") }
length($0) > 100 { say(length($0) " columns, at most 100") }
/TODO/ && !/TODO\([a-z]+\)/ { say("TODO without a name: TODO(name)") }
/^\{/ { start = FNR }
/^\}/ { if (start && FNR - start - 1 > 80) say("function of " (FNR - start - 1) " lines, at most 80"); start = 0 }
END { if (lines > 600) { print name ": " lines " lines, at most 600"; n++ } exit n > 0 }' "${files[@]}" || bad=1
if command -v clang-format >/dev/null; then
    # by two processes: it is the slow part
    printf '%s\n' "${files[@]}" | xargs -P 2 -n 20 clang-format --style=file --dry-run -Werror || bad=1
else
    echo "check_style: clang-format is not installed, layout not checked"
fi
[ "$bad" = 0 ] && echo "check_style: fine"
exit $bad
