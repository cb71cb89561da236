#!/usr/bin/env bash
# Runs the CPU's scheduler and the pool under many schedules (backends/cpu/tests/schedules.rs).
#
#   tools/schedules.sh [FILTER]      # HALITE_SCHEDULES=5000 for more of them
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/schedules" RUSTFLAGS="--cfg shuttle ${RUSTFLAGS:-}"
exec cargo test --locked -p halite-cpu --test schedules -- "$@"
