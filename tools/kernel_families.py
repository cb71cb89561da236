#!/usr/bin/env python3
"""Says which kinds of GPU kernels were not launched.

    cargo run -p halite-ops --example kernel_texts -- ALL
    HALITE_LAUNCHED_TEXTS=LAUNCHED cargo test -p halite-ops --lib kernels::gpu
    python3 tools/kernel_families.py ALL/cl LAUNCHED

A kind is a function's name without dtypes, together with what its text switches on; and, for each op, a function or
macro that its texts use. Each kind that the first folder has must occur in the second one, or the exit status is 1.
"""

import pathlib
import re
import sys

DTYPE = re.compile(r"_(bool|bf16|[fiu](8|16|32|64))(?=_|$)")
# What is switched on: a name defined as nothing, and the few that are switches with a value.
SWITCH = re.compile(r"^#define (\w+) *$|^#define (\w+_K_INNERMOST \d|(?:ROW|COLUMN)_RUN \d)$", re.MULTILINE)
# Which types a text has is the device's affair, and how indices are counted that of sizes.
IGNORED = {"HAS_F64", "HAS_F16"}
USED = re.compile(r"\b([a-zA-Z]\w*)\(")


def kinds(folder):
    """The kinds of kernels in a folder of texts, each with one file."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.cl")):
        text = path.read_text(encoding="utf-8")
        # The preludes come first, and are the same everywhere.
        body = text[text.index("\n#define INDEX") :]
        name = re.search(r"^#define NAME (\w+)$", body, re.MULTILINE).group(1)
        family = DTYPE.sub("", name)
        op = family.split("_")[0]
        switches = {one or other for one, other in SWITCH.findall(text)} - IGNORED
        found.setdefault(" ".join([family, *sorted(switches)]), path)
        for used in USED.findall(body):
            found.setdefault(f"{op} uses {used}", path)
    return found


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    every, launched = kinds(sys.argv[1]), kinds(sys.argv[2])
    if not every or not launched:
        sys.exit(f"{sys.argv[1]} holds {len(every)} kinds of kernels, {sys.argv[2]} holds {len(launched)}")
    missing = sorted(every.keys() - launched.keys())
    for kind in missing:
        print(f"not launched: {kind} ({every[kind]})")
    print(f"{len(every) - len(missing)} of {len(every)} kinds of kernels were launched")
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
