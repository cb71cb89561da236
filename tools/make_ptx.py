#!/usr/bin/env python3
"""Makes the PTX that ships with the op library, of the texts of its kernels.

    HALITE_PTX_TEXTS=FOLDER cargo test -p halite-ops --lib kernels::gpu::tests::precompiled
    pip install nvidia-cuda-nvrtc-cu12==12.9.86
    python3 tools/make_ptx.py FOLDER [--check]

Writes ops/src/kernels/gpu/precompiled.ptx, or with --check says whether it is what would be written. The result depends on
the compiler, so another version than the one above is refused.
"""

import argparse
import multiprocessing
import os
import pathlib
import sys

import compile_kernels

SHIPPED = pathlib.Path(__file__).resolve().parent.parent / "ops/src/kernels/gpu/precompiled.ptx"
VERSION = "12.9"

# The oldest instruction set that the compiler knows; a driver compiles PTX for whatever device it has.
ARCHITECTURE = "compute_50"

# An old version of PTX, so that old drivers take it: nothing in the code is newer.
PTX_VERSION = "6.0"


def make(path):
    """The part of the file that a text becomes, and what is wrong with it."""
    name, digest, _ = path.name.split(".")
    text = path.read_text(encoding="utf-8")
    options = text.splitlines()[0].removeprefix("// ").split()
    ptx, log = compile_kernels.nvrtc.ptx(text, path.name, [f"--gpu-architecture={ARCHITECTURE}", *options])
    if ptx is None:
        return None, f"{path.name}: {log}"
    # What stands before names the compiler's build.
    _, _, body = ptx.partition("\n.version ")
    _, _, body = body.partition("\n")
    return f"//// {name} {digest}\n.version {PTX_VERSION}\n{body.strip()}\n", ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="with the texts, as the test writes them")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()

    texts = sorted(pathlib.Path(arguments.folder).glob("*.cu"))
    if not texts:
        sys.exit(f"{arguments.folder} holds no text")
    path = compile_kernels.find_nvrtc()
    version = compile_kernels.Nvrtc(path).version()
    if version != VERSION:
        sys.exit(f"{path} is NVRTC {version}; the PTX is made by {VERSION}")
    with multiprocessing.Pool(arguments.jobs, compile_kernels.start, (path,)) as pool:
        parts = pool.map(make, texts, 1)
    failures = [log for part, log in parts if part is None]
    if failures:
        sys.exit("\n".join(failures))
    made = f"// Made by tools/make_ptx.py with NVRTC {VERSION} for {ARCHITECTURE}.\n" + "".join(part for part, _ in parts)
    if not arguments.check:
        SHIPPED.write_text(made, encoding="utf-8", newline="\n")
        print(f"{len(texts)} kernels, {len(made)} bytes")
    elif SHIPPED.read_text(encoding="utf-8") != made:
        sys.exit(f"{SHIPPED} is not what NVRTC {VERSION} makes of the texts; run tools/make_ptx.py without --check")
    else:
        print(f"the PTX of {len(texts)} kernels is current")


if __name__ == "__main__":
    main()
