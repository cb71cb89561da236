#!/usr/bin/env bash
# Runs the fuzz targets of fuzz/ from their kept corpora under AddressSanitizer, each for some seconds. A finding is an
# input under target/fuzz/artifacts, and fails the run.
#
#   tools/fuzz.sh [SECONDS [TARGET...]]      # default: 60 seconds each, every target
#   tools/fuzz.sh keep TARGET...             # merges what new inputs reach into the kept corpus, the smallest ones
#   tools/fuzz.sh replay TARGET FILE...      # runs single inputs, such as a finding
#
# Needs a C++ compiler, for libFuzzer. The flags are those that cargo-fuzz passes, which is not needed itself; they are
# not stable, so the compiler is told to accept them.
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
work="${CARGO_TARGET_DIR:-target}/fuzz"
mkdir -p "$work"
work=$(cd "$work" && pwd)

flags=(-Zsanitizer=address --cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module)
for option in level=4 inline-8bit-counters pc-table trace-compares stack-depth; do
    flags+=("-Cllvm-args=-sanitizer-coverage-$option")
done
RUSTC_BOOTSTRAP=1 RUSTFLAGS="${flags[*]}" CARGO_TARGET_DIR="$work" \
    cargo build --locked --release --quiet --manifest-path fuzz/Cargo.toml --target "$host" --bins

mode="${1:-60}"
shift || true
targets=("$@")
if [ "${#targets[@]}" = 0 ]; then
    mapfile -t targets < <(basename -s .rs fuzz/fuzz_targets/*.rs)
fi
# The limits hold for every input, and a leak is a finding.
limits=(-timeout=20 -rss_limit_mb=3000 -max_len=20000)

fuzz() {
    local target="$1" leaks=1
    shift
    # A plugin that lies about its work makes the loader keep for good what that work may still use; the target itself
    # sees to it that everything else is given back.
    [ "$target" != plugin_table ] || leaks=0
    mkdir -p "$work/artifacts/$target" "$work/inputs/$target"
    ASAN_OPTIONS="detect_leaks=$leaks:${ASAN_OPTIONS:-}" "$work/$host/release/$target" "${limits[@]}" "-artifact_prefix=$work/artifacts/$target/" "$@"
}

case "$mode" in
keep)
    for target in "${targets[@]}"; do
        merged="$work/merged/$target"
        rm -rf "$merged" && mkdir -p "$merged" "fuzz/corpus/$target"
        fuzz "$target" -set_cover_merge=1 "$merged" "fuzz/corpus/$target" "$work/inputs/$target"
        rm -rf "fuzz/corpus/$target" && mv "$merged" "fuzz/corpus/$target"
        echo "$target: $(find "fuzz/corpus/$target" -type f | wc -l) inputs are kept"
    done
    exit
    ;;
replay)
    fuzz "$@"
    exit
    ;;
esac

run() {
    local target="$1" log="$work/$1.log" status=0
    # New inputs go to the first folder, so that a run does not change what is kept.
    mkdir -p "$work/inputs/$target"
    fuzz "$target" -len_control=20 -verbosity=1 -print_final_stats=1 "-max_total_time=$mode" \
        "$work/inputs/$target" "fuzz/corpus/$target" >"$log" 2>&1 || status=$?
    local runs
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    echo "$target: ${runs:-?} inputs in $mode s, $([ $status = 0 ] && echo nothing found || echo "FAILED, see below")"
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
