#!/usr/bin/env bash
# Installs what the build needs on Debian and Ubuntu, if anything is missing. Without root it prints
# the command. Exit 1 only if a required package is missing afterwards. --list prints the packages.
# --tests: also what only tests use (two hosts on one machine, Slurm); they skip what is missing.
set -u
required=(gcc make pkg-config openmpi-bin libopenmpi-dev libhdf5-dev libyaml-dev libjansson-dev)
# without: plain C matrix products; no bf16 on the CPU at speed; no video files; no h5dump
optional=(libopenblas-openmp-dev libdnnl-dev libavformat-dev libavcodec-dev libswscale-dev
          hdf5-tools)
[ "${1:-}" = --tests ] && optional+=(iproute2 slurm-wlm munge procps) && shift
[ "${1:-}" = --list ] && { printf '%s\n' "${required[@]}" "${optional[@]}"; exit 0; }

if ! command -v dpkg-query >/dev/null; then
    echo "install_deps: not a Debian or Ubuntu system. Needed: a C compiler, make, pkg-config, and"
    echo "the development files of MPI, HDF5 (serial), libyaml and jansson; \`make\` names what it misses."
    exit 0
fi
missing() { # those of the arguments that are not installed
    local have p
    have=" $(dpkg-query -W -f='${Package} ${db:Status-Status}\n' "$@" 2>/dev/null |
             sed -n 's/ installed$//p' | tr '\n' ' ')"
    for p in "$@"; do
        case $have in *" $p "*) continue;; esac
        # a compiler or tool of another origin will do
        case $p in gcc|make|pkg-config) command -v "$p" >/dev/null && continue;; esac
        echo "$p"
    done
}
mapfile -t want < <(missing "${required[@]}" "${optional[@]}")
[ ${#want[@]} = 0 ] && exit 0
echo "missing packages: ${want[*]}"
apt=(apt-get -o DPkg::Lock::Timeout=300)
if [ "$(id -u)" = 0 ]; then sudo=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo=(sudo -n)
else sudo=(no)
fi
if [ "${sudo[0]:-}" != no ]; then
    export DEBIAN_FRONTEND=noninteractive
    "${sudo[@]}" "${apt[@]}" update -q >/dev/null || echo "apt-get update failed; trying with what is known"
    "${sudo[@]}" "${apt[@]}" install -y -q --no-install-recommends "${want[@]}" >/dev/null ||
        for p in "${want[@]}"; do # one that does not exist here must not keep the others out
            "${sudo[@]}" "${apt[@]}" install -y -q --no-install-recommends "$p" >/dev/null
        done
fi
mapfile -t still < <(missing "${want[@]}")
[ ${#still[@]} = 0 ] && { echo "installed: ${want[*]}"; exit 0; }
echo "still missing: ${still[*]}"
echo "install with: sudo apt-get update && sudo apt-get install -y --no-install-recommends ${still[*]}"
mapfile -t fatal < <(missing "${required[@]}")
[ ${#fatal[@]} = 0 ] && { echo "these are optional: the build leaves their features out"; exit 0; }
echo "required: ${fatal[*]}"
exit 1
