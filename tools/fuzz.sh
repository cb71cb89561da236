#!/usr/bin/env bash
# Runs the fuzz targets of fuzz/ from their kept corpora, each for some seconds. A finding is an input under
# fuzz/artifacts, and fails the run.
#
#   tools/fuzz.sh [SECONDS [TARGET...]]      # default: 60 seconds each, every target
#   tools/fuzz.sh keep TARGET...             # merges what new inputs reach into the kept corpus, the smallest ones
#
# Needs cargo-fuzz (`cargo install cargo-fuzz --locked`) and a C++ compiler. The sanitizer's flags are not stable, so
# the compiler is told to accept them.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
export RUSTC_BOOTSTRAP=1

seconds="${1:-60}"
shift || true
targets=("$@")
if [ "${#targets[@]}" = 0 ]; then
    mapfile -t targets < <(cargo fuzz list)
fi
# New inputs go to work/, so that a run does not change what is kept.
options=(-timeout=20 -rss_limit_mb=3000 -max_len=20000 -len_control=20 -verbosity=1 -print_final_stats=1)
cargo fuzz build -O

if [ "$seconds" = keep ]; then
    for target in "${targets[@]}"; do
        mkdir -p "work/$target" "work/merged-$target"
        cargo fuzz run -O "$target" "work/merged-$target" "corpus/$target" "work/$target" -- -merge=1 -timeout=20
        rm -rf "corpus/$target" && mv "work/merged-$target" "corpus/$target"
        echo "$target: $(ls "corpus/$target" | wc -l) inputs are kept"
    done
    exit
fi

run() {
    local target="$1" log="work/$1.log" status=0
    mkdir -p "work/$target"
    cargo fuzz run -O "$target" "work/$target" "corpus/$target" -- "${options[@]}" "-max_total_time=$seconds" >"$log" 2>&1 || status=$?
    local runs
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    echo "$target: ${runs:-?} inputs in $seconds s, $([ $status = 0 ] && echo nothing found || echo "FAILED, see below")"
    [ $status = 0 ] || tail -60 "$log"
    return $status
}

# Two at a time, since each uses one core.
failed=0
for ((i = 0; i < ${#targets[@]}; i += 2)); do
    pids=()
    for target in "${targets[@]:i:2}"; do
        run "$target" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || failed=1
    done
done
exit $failed
