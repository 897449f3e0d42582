#!/bin/bash
# `make demo`: sets up, builds, and generates text from the demo model with the production topology,
# one EP32 prefill unit and one EP144 decode unit, on this machine.
set -eu
cd "$(dirname "$0")/.."
build=${BUILD:-build}
job=inputs/jobs/demo.yaml
ranks=176

value() { # of a top-level key of the resolved job
    "$build/moebatch" run "$job" --dump-config | sed -n "s/^$1: *\"\{0,1\}\([^\"#]*[^\"# ]\).*/\1/p"
}

scripts/bootstrap.sh
${MAKE:-make} -s -j"$(nproc)" BUILD="$build"
mkdir -p outputs
out=$(mktemp)
trap 'rm -f "$out"' EXIT
echo "# mpirun -np $ranks $build/moebatch run $job --force"
status=0
OMP_NUM_THREADS=1 scripts/mpirun.sh -np "$ranks" "$build/moebatch" run "$job" --force >"$out" ||
    status=$?
if [ "$status" != 0 ]; then
    cat "$out"
    exit "$status"
fi

echo
python3 scripts/show_text.py --model "$(value model)" --tokens "$(value tokens)" \
    --responses "$(value responses)" --first 4
cat "$out"
echo "# HDF5: $(value results)"
