#!/usr/bin/env bash
# Runs the GPU kernels on Oclgrind, which looks for data races, accesses out of bounds, uninitialised reads and wrong
# calls. Fails if a test fails, if anything is reported, or if a kind of kernel was not launched.
#
#   tools/oclgrind.sh [FILTER]      # of the tests in ops/src/kernels/gpu; Debian: apt-get install oclgrind
#
# With a filter, what was not launched is no failure.
#
# NOTE: Oclgrind 21.10 knows neither the freeze instruction nor noalias scopes, which optimised code has, so nothing is
# optimised; binaries of other runs must not be taken from the cache; and its launcher replaces a library that this
# project opens by name, so its options are set directly.
set -euo pipefail
cd "$(dirname "$0")/.."

library="${OCLGRIND_LIBRARY:-/usr/lib/oclgrind/liboclgrind-rt.so}"
if [ ! -e "$library" ]; then
    echo "there is no $library; install Oclgrind, or name its library in OCLGRIND_LIBRARY" >&2
    exit 1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/launched"

(
    export HALITE_OPENCL_LIBRARY="$library" HALITE_REQUIRE_OPENCL=1 HALITE_CACHE_DIR="$work/cache"
    export HALITE_LAUNCHED_TEXTS="$work/launched"
    export OCLGRIND_DATA_RACES=1 OCLGRIND_CHECK_API=1 OCLGRIND_UNINITIALIZED=1 OCLGRIND_LOG="$work/log"
    export OCLGRIND_BUILD_OPTIONS=-cl-opt-disable
    cargo test --locked -p halite-ops --lib -- "kernels::gpu::tests::${1:-}" --test-threads 1
)

if [ -s "$work/log" ]; then
    cat "$work/log"
    echo "Oclgrind reports the above" >&2
    exit 1
fi
echo "Oclgrind reports nothing"

if [ -z "${1:-}" ]; then
    cargo run --locked --quiet -p halite-ops --example kernel_texts -- "$work/texts"
    python3 tools/kernel_families.py "$work/texts/cl" "$work/launched"
fi
