#!/bin/bash
# `make check`: unit, MPI and end-to-end tests in this order. Every kind runs even if one before it
# failed; the summary at the end holds each runner's own last lines.
set -u
cd "$(dirname "$0")/.." || exit 70
build=${BUILD:-build}
make="${MAKE:-make} -s --no-print-directory BUILD=$build"
logs=$build/check
scripts/bootstrap.sh || exit 4
mkdir -p "$logs"
failed=""

step() { # name, command...: output to the terminal and to a log
    local name=$1 start=$SECONDS
    shift
    echo "# ==== $name: $*"
    "$@" 2>&1 | tee "$logs/$name.log"
    local status=${PIPESTATUS[0]}
    echo "# ==== $name: exit $status after $((SECONDS - start)) s"
    [ "$status" = 0 ] || failed="$failed $name"
}

e2e() {
    local python
    python=$(scripts/python.sh pytest h5py numpy) || return 1
    "$python" -m pytest -q -ra --durations=5 -p no:cacheprovider tests/e2e
}

export PYTHONDONTWRITEBYTECODE=1
# shellcheck disable=SC2086 # make is several words
step build $make -j"$(nproc)" all
# shellcheck disable=SC2086
step unit $make -k unit
# shellcheck disable=SC2086
step mpi $make -k mpi
BUILD=$build step e2e e2e

count() { grep -ac "$2" "$logs/$1.log"; }
echo
echo "# ==== summary after $SECONDS s"
for name in unit mpi; do
    grep -aE '^\[  (PASSED|FAILED)  \]' "$logs/$name.log" | sort | uniq -c | sort -rn | head -n 20
    echo "# $name: $(count "$name" '^\[       OK \]') tests passed," \
        "$(count "$name" '^\[  SKIPPED \] test') skipped," \
        "$(count "$name" '^\[  FAILED  \] [0-9]* test') runs with failures"
done
tail -n 1 "$logs/e2e.log"
if [ -n "$failed" ]; then
    echo "# FAILED:$failed (logs in $logs)"
    exit 1
fi
echo "# all passed"
