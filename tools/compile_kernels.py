#!/usr/bin/env python3
"""Compiles the text of every GPU kernel for CUDA with NVRTC, without a GPU.

    cargo run -p halite-ops --example kernel_texts -- FOLDER
    pip install nvidia-cuda-nvrtc-cu12
    python3 tools/compile_kernels.py FOLDER/cu [--arch sm_80 ...] [--jobs 2] [--sample]

Every text is compiled to machine code for every architecture whose profile leads to it; each error is printed, and the exit
status says whether there was one. With --sample, generated texts take turns: each is compiled for two of the architectures.
NVRTC is the file that HALITE_NVRTC_LIBRARY names, or is found in the wheel, or by the system's own search.
"""

import argparse
import ctypes
import ctypes.util
import glob
import importlib.util
import multiprocessing
import os
import sys

# Features that a text may need, and the first architecture that has them; one of a single architecture is its name.
SINCE = {"tensor-cores": 75, "bf16": 80}

# Functions that are generated, and not written by hand.
GENERATED = ("elementwise_", "reduce_")

ARCHITECTURES = ["sm_75", "sm_80", "sm_87", "sm_89", "sm_90a", "sm_100"]


def find_nvrtc():
    """The path of NVRTC's library."""
    if named := os.environ.get("HALITE_NVRTC_LIBRARY"):
        return named
    package = importlib.util.find_spec("nvidia")
    for folder in package.submodule_search_locations if package else []:
        for name in ("cuda_nvrtc/lib/libnvrtc.so.*", "cu*/lib/libnvrtc.so.*"):
            found = sorted(path for path in glob.glob(os.path.join(folder, name)) if "alt" not in path)
            if found:
                return found[0]
    found = ctypes.util.find_library("nvrtc")
    if not found:
        sys.exit("there is no NVRTC; run: pip install nvidia-cuda-nvrtc-cu12")
    return found


class Nvrtc:
    """The few functions of NVRTC that compiling takes."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def version(self):
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.check(self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        return f"{major.value}.{minor.value}"

    def check(self, status):
        if status != 0:
            raise RuntimeError(self.library.nvrtcGetErrorString(status).decode())

    def compile(self, text, name, options):
        """Whether `text` compiles to machine code, and the compiler's log."""
        code, log = self.build(text, name, options, self.library.nvrtcGetCUBINSize, self.library.nvrtcGetCUBIN)
        return bool(code), log

    def ptx(self, text, name, options):
        """The PTX of `text`, if it compiles, and the compiler's log."""
        code, log = self.build(text, name, options, self.library.nvrtcGetPTXSize, self.library.nvrtcGetPTX)
        return code and code.rstrip(b"\0").decode(), log

    def build(self, text, name, options, size_of, get):
        program = ctypes.c_void_p()
        self.check(
            self.library.nvrtcCreateProgram(
                ctypes.byref(program), text.encode(), name.encode(), 0, None, None
            )
        )
        encoded = [option.encode() for option in options]
        array = (ctypes.c_char_p * len(encoded))(*encoded)
        status = self.library.nvrtcCompileProgram(program, len(encoded), array)
        length = ctypes.c_size_t()
        self.check(self.library.nvrtcGetProgramLogSize(program, ctypes.byref(length)))
        log = ctypes.create_string_buffer(length.value)
        self.check(self.library.nvrtcGetProgramLog(program, log))
        code = None
        if status == 0:
            self.check(size_of(program, ctypes.byref(length)))
            buffer = ctypes.create_string_buffer(length.value)
            self.check(get(program, buffer))
            code = buffer.raw
        self.library.nvrtcDestroyProgram(ctypes.byref(program))
        return code, log.value.decode(errors="replace")


def compiler_options(options):
    """Those of a text that are not the launch's own."""
    return [option for option in options.split() if not option.startswith("--dynamic-shared-bytes=")]


nvrtc = None


def start(path):
    global nvrtc
    nvrtc = Nvrtc(path)


def has(architecture, feature):
    """Whether an architecture has a feature of SINCE, or is the one that the feature names."""
    if feature in SINCE:
        return int(architecture.strip("sm_a")) >= SINCE[feature]
    return feature == architecture


def may_choose(architecture, profiles):
    """Whether one of these profiles is an architecture's own, or that of any."""
    own = "cuda-" + architecture.replace("_", "").rstrip("a")
    return not {"cuda", own}.isdisjoint(profiles.split(","))


def compile_one(job):
    folder, file, options, architecture = job
    with open(os.path.join(folder, file), encoding="utf-8") as text:
        is_good, log = nvrtc.compile(
            text.read(), file, [f"--gpu-architecture={architecture}", *compiler_options(options)]
        )
    return is_good, f"{file} for {architecture}: {log.strip()}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="with index.tsv, as the example kernel_texts writes it")
    parser.add_argument("--arch", action="append", help="default: " + " ".join(ARCHITECTURES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--sample", action="store_true", help="generated texts for two architectures each")
    parser.add_argument("--match", default="", help="only texts whose name contains this")
    arguments = parser.parse_args()

    with open(os.path.join(arguments.folder, "index.tsv"), encoding="utf-8") as index:
        texts = [line.rstrip("\n").split("\t") for line in index]
    architectures = arguments.arch or ARCHITECTURES
    texts = [text for text in texts if arguments.match in text[0]]
    jobs = [
        (arguments.folder, file, options, architecture)
        for turn, architecture in enumerate(architectures)
        for number, (file, entry, options, profiles, requires) in enumerate(texts)
        if may_choose(architecture, profiles)
        if all(has(architecture, feature) for feature in requires.split(",") if feature)
        if not (arguments.sample and entry.startswith(GENERATED))
        or turn in (number % len(architectures), (number + 1) % len(architectures))
    ]
    if not jobs:
        sys.exit(f"{arguments.folder} lists no kernel to compile")
    path = find_nvrtc()
    failures = 0
    with multiprocessing.Pool(arguments.jobs, start, (path,)) as pool:
        for is_good, message in pool.imap_unordered(compile_one, jobs, 8):
            if not is_good:
                failures += 1
                print(message)
    print(
        f"NVRTC {Nvrtc(path).version()}: {len(jobs) - failures} of {len(jobs)} compile "
        f"({len(texts)} texts for {' '.join(architectures)})"
    )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
