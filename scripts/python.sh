#!/bin/bash
# Prints a python3 that imports the given modules (default: pytest h5py numpy). The first python3 on
# the path may be one of pyenv or conda without Debian's packages; then Debian's own is taken.
set -eu
[ $# -gt 0 ] || set -- pytest h5py numpy
modules=$(IFS=,; echo "$*")
for python in "${PYTHON:-}" python3 /usr/bin/python3; do
    [ -n "$python" ] || continue
    if "$python" -c "import $modules" 2>/dev/null; then
        echo "$python"
        exit 0
    fi
done
echo "no python3 imports $modules: scripts/bootstrap.sh installs them" >&2
exit 1
