#!/usr/bin/env bash
# Builds the plugin of version 1.0 from the commit that it was made of, and says whether the bytes are those of the file here.
# They are with the compiler that README.md names; another one gives other bytes, and proves nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
commit=${1:-651c817}
name=libhalite_npu_abi_1_0-x86_64-linux-gnu.so
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git -C "$here" show "$commit:backends/npu/example-plugin/example.c" >"$work/example.c"
git -C "$here" show "$commit:hal/include/halite_plugin.h" >"$work/halite_plugin.h"
cd "$work"
cc -std=c99 -O2 -s -shared -fPIC -fno-ident -Wl,--build-id=none -Wl,-z,noseparate-code -I . -o "$name" example.c
if [ ! -e "$here/$name" ]; then
    cp "$name" "$here/$name"
    echo "made $name"
elif cmp -s "$name" "$here/$name"; then
    echo "the same bytes"
else
    echo "other bytes" && exit 1
fi
