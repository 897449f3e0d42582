#!/bin/bash
# `make lint`: clang-tidy and cppcheck over src/, shellcheck over the scripts. A warning fails.
# The compile commands come from `make -n`, so the linters see the flags of the real build.
set -u
cd "$(dirname "$0")/.." || exit 70
scripts/bootstrap.sh --lint || exit 4
work=${BUILD:-build}/lint
mkdir -p "$work"
jobs=$(nproc)
failed=""

# One JSON entry per compile line. Of gcc's own headers clang gets omp.h alone, without the one
# attribute that it cannot parse.
mkdir -p "$work/omp"
sed 's/__malloc__ (omp_free)/__malloc__/' "$(cc -print-file-name=include)/omp.h" >"$work/omp/omp.h"
${MAKE:-make} -nB BUILD="$work/none" all 2>/dev/null |
    python3 -c '
import json, os, re, sys
entries = []
for line in sys.stdin:
    source = re.search(r"-c -o \S+ (src/\S+\.c)$", line.strip())
    if source:
        command = re.sub(r" -MMD -MP", "", line.strip()) + " -isystem " + sys.argv[1]
        entries.append({"directory": os.getcwd(), "file": source[1], "command": command})
json.dump(entries, sys.stdout, indent=1)
' "$work/omp" >"$work/compile_commands.json"
sources=$(sed -n 's/.*"file": "\(.*\)",*/\1/p' "$work/compile_commands.json")
[ -n "$sources" ] || { echo "lint: make -n printed no compile command" >&2; exit 70; }

step() {
    local name=$1 start=$SECONDS
    shift
    "$@" >"$work/$name.log" 2>&1 || failed="$failed $name"
    grep -avE '^[0-9]+ warnings? (generated|treated)|^Suppressed|^Use -(header|system)' \
        "$work/$name.log"
    echo "# $name: $((SECONDS - start)) s"
}

tidy() {
    echo "$sources" | xargs -P "$jobs" -n 4 clang-tidy -quiet -p "$work" --warnings-as-errors='*'
}
check() {
    cppcheck -j "$jobs" --quiet --error-exitcode=1 --inline-suppr --std=c11 -Isrc \
        --enable=warning,performance,portability --suppress=missingIncludeSystem \
        --suppress=invalidPointerCast --suppress=duplicateAssignExpression \
        --suppress=invalidFunctionArg \
        -D'__has_include(x)=0' -D'json_object_foreach(o,k,v)=while(next_member(o,&k,&v))' --cppcheck-build-dir="$work" src
}
shell() { shellcheck -x scripts/*.sh slurm/*.sbatch .ci/run; }

step clang-tidy tidy
step cppcheck check
step shellcheck shell
if [ -n "$failed" ]; then
    echo "# lint FAILED:$failed"
    exit 1
fi
echo "# lint: clean ($(echo "$sources" | wc -l) C files)"
