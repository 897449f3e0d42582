#!/bin/bash
# Installs what building and testing need on Debian 12, and only what is missing; says nothing when
# nothing is. `--lint` adds the linters, `--slurm` a Slurm for tests.
set -eu

packages="gcc make pkg-config libc6-dev openmpi-bin libopenmpi-dev libhdf5-dev libyaml-dev
libjansson-dev libhwloc-dev liburing-dev libcmocka-dev python3 python3-pytest python3-h5py python3-numpy"
for arg in "$@"; do
    case $arg in
    --lint) packages="$packages clang-format clang-tidy cppcheck shellcheck" ;;
    --slurm) packages="$packages slurm-wlm munge" ;;
    *)
        echo "usage: scripts/bootstrap.sh [--lint] [--slurm]" >&2
        exit 2
        ;;
    esac
done

# Somebody else's build of the same thing will do: only look for packages where a tool, a library
# or a header is missing.
have() {
    case $1 in
    gcc) command -v cc ;;
    make | pkg-config | python3) command -v "$1" ;;
    slurm-wlm) command -v slurmctld && command -v slurmd && command -v sbatch ;;
    munge) command -v munged ;;
    clang-format | clang-tidy | cppcheck | shellcheck) command -v "$1" ;;
    libc6-dev) test -e /usr/include/stdlib.h ;;
    openmpi-bin) command -v mpirun ;;
    libopenmpi-dev) command -v mpicc ;;
    libhdf5-dev) pkg-config --exists hdf5-serial || pkg-config --exists hdf5 ;;
    libyaml-dev) pkg-config --exists yaml-0.1 ;;
    libjansson-dev) pkg-config --exists jansson ;;
    libhwloc-dev) pkg-config --exists hwloc ;;
    liburing-dev) pkg-config --exists liburing ;;
    libcmocka-dev) pkg-config --exists cmocka || test -e /usr/include/cmocka.h ;;
    python3-*) scripts/python.sh "${1#python3-}" ;;
    *) dpkg-query -W -f '${Status}' "$1" | grep -q 'ok installed' ;;
    esac >/dev/null 2>&1
}

cd "$(dirname "$0")/.."
missing=""
for package in $packages; do
    have "$package" || missing="$missing $package"
done
[ -z "$missing" ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "bootstrap: missing:$missing; there is no apt-get here, install them by hand" >&2
    exit 4
fi
as_root=""
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "bootstrap: missing:$missing; run as root: apt-get install$missing" >&2
        exit 4
    fi
    as_root=sudo
fi
echo "bootstrap: installing$missing"
log=$(mktemp)
install() {
    # shellcheck disable=SC2086 # words are wanted
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get "$@" >"$log" 2>&1
}
# shellcheck disable=SC2086
if ! { install update && install install -y --no-install-recommends $missing; }; then
    tail -n 20 "$log" >&2
    echo "bootstrap: apt-get failed; all its output is in $log" >&2
    exit 4
fi
rm -f "$log"
