#!/usr/bin/env bash
# Builds the plugin of each minor version from the sources that it was made of, and says whether the bytes are those of the
# file here. They are with the compiler that README.md names; another one gives other bytes, and proves nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

build() {
    local name=libhalite_npu_abi_$1-x86_64-linux-gnu.so example=$2 header=$3 work
    work=$(mktemp -d)
    git -C "$here" show "$example" >"$work/example.c"
    git -C "$here" show "$header" >"$work/halite_plugin.h"
    (
        cd "$work"
        cc -std=c99 -O2 -s -shared -fPIC -fno-ident -Wl,--build-id=none -Wl,-z,noseparate-code -I . -o "$name" example.c
    )
    if [ ! -e "$here/$name" ]; then
        cp "$work/$name" "$here/$name"
        echo "made $name"
    elif cmp -s "$work/$name" "$here/$name"; then
        echo "$name: the same bytes"
    else
        echo "$name: other bytes" && exit 1
    fi
    rm -r "$work"
}

# The blobs of backends/npu/example-plugin/example.c and hal/include/halite_plugin.h.
build 1_0 0c6fca6ded15 d7d46bd2cd25
build 1_1 b75149873444 fe35053151ca
