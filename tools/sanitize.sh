#!/usr/bin/env bash
# Runs the tests of the layer, the CPU, the NPU and the layers around devices under a sanitizer, and those of plugins under
# Valgrind. Left out are the kernels of `ops`, and the backends whose drivers are not ours: OpenCL and CUDA.
#
#   tools/sanitize.sh [address|valgrind]...      # default: address
#
#   address   addresses and leaks in Rust; of plugins in C, what they allocate
#   valgrind  the example and the minimal plugin under the loader, as compiled without a sanitizer, as users do
#
# The sanitizer's flags are not stable, so the compiler is told to accept them. HALITE_SANITIZE_CRATES names other crates
# than the usual ones, HALITE_SANITIZE_ARGUMENTS goes to the tests. There is no step for data races: ThreadSanitizer
# reports every lock and thread of a standard library that was compiled without it; tools/schedules.sh tries schedules.
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
target="${CARGO_TARGET_DIR:-target}"
suppressions="$PWD/tools/leaks-by-design.txt"
read -ra crates <<<"${HALITE_SANITIZE_CRATES:-halite-hal halite-cpu halite-npu halite-npu-isa halite-npu-emulator halite-layers halite-conformance}"
read -ra arguments <<<"${HALITE_SANITIZE_ARGUMENTS:-}"

# Tests under AddressSanitizer, in a folder of its own. Documentation's examples are left out: they hold no unsafe code.
under_address_sanitizer() {
    local packages=() crate
    for crate in "${crates[@]}"; do packages+=(-p "$crate"); done
    # Executables pass the sanitizer's functions on to plugins; what C++ throws is looked for in the executable, which has
    # no such library, so exceptions are left to `cargo test`. No OpenCL: findings in a vendor's driver are not ours.
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address -Clink-arg=-rdynamic ${RUSTFLAGS:-}" \
        CARGO_TARGET_DIR="$target/sanitizer/address" OCL_ICD_VENDORS=/nonexistent \
        ASAN_OPTIONS="detect_leaks=1:strict_string_checks=1:allocator_may_return_null=1:${ASAN_OPTIONS:-}" \
        LSAN_OPTIONS="suppressions=$suppressions:print_suppressions=0" \
        cargo test --locked --no-fail-fast --target "$host" "${packages[@]}" --tests -- --skip exception "${arguments[@]}"
}

# The tests as users compile them. Children are not followed: those that must end badly are tests of that.
under_valgrind() {
    local files file status=0
    files=$(cargo test --locked --no-run --message-format=json -p halite-npu --test contract --test example \
        --test compatibility | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["kind"] == ["test"]:
        print(message["executable"])')
    for file in $files; do
        # Without the test of a plugin that never says that its work is over: what that work may use stays taken for good.
        (cd backends/npu && valgrind --error-exitcode=99 --leak-check=full --show-leak-kinds=definite \
            --errors-for-leak-kinds=definite --quiet "$file" --test-threads=1 \
            --skip completions_and_workspaces_that_lie "${arguments[@]}") || status=1
    done
    return $status
}

for mode in "${@:-address}"; do
    printf '\n== %s (%s s)\n' "$mode" "$SECONDS"
    case "$mode" in
    address) under_address_sanitizer ;;
    valgrind) under_valgrind ;;
    *)
        echo "no sanitizer '$mode'; choose from address, valgrind" >&2
        exit 2
        ;;
    esac
done
printf '\n== done (%s s)\n' "$SECONDS"
