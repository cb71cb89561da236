"""Times one training step of Halite's benchmark networks in PyTorch on the CPU.

Prints one JSON object per line:

    {"case": "digits8x8-b32", "threads": 2, "round": 0, "seconds_per_step": 0.00045, "setting": "..."}

A step is forward, cross-entropy, backward and Adam on a batch that already lies in memory. The loss
is never read back inside the timed loop, so neither side pays for a synchronisation that it does not need.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
import warnings

try:
    import torch
    from torch import nn
except ImportError:
    sys.exit("PyTorch is missing: pip install torch")

IMAGES_IN_ROTATION = 8  # batches that take turns, so that no step finds its input in the first-level cache


def digits8x8() -> nn.Module:
    """8x8 digits: two 3x3 convolutions with ReLU and 2x2 max pooling, then one linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 2 * 2, 10),
    )


def images28x28() -> nn.Module:
    """28x28 images: the same two convolutions, then a hidden layer of 128 with ReLU."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10),
    )


# name -> (network, image side, batch)
CASES = {
    "digits8x8-b32": (digits8x8, 8, 32),
    "digits8x8-b256": (digits8x8, 8, 256),
    "images28x28-b64": (images28x28, 28, 64),
}

# Every combination is plain eager PyTorch that a user could write; the fastest one represents it.
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
ADAMS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}
ONEDNN = {"onednn": True, "native": False}


def settings(with_compile: bool) -> list[str]:
    eager = ["/".join(parts) for parts in itertools.product(LAYOUTS, ADAMS, ONEDNN)]
    return eager + ([f"{layout}/fused/compiled" for layout in LAYOUTS] if with_compile else [])


class Step:
    """One network with its optimiser and its batches, ready to be stepped."""

    def __init__(self, case: str, setting: str):
        network, side, batch = CASES[case]
        layout, adam, engine = setting.split("/")
        torch.manual_seed(0)
        self.onednn = ONEDNN.get(engine, True)
        self.model = network().to(memory_format=LAYOUTS[layout])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, **ADAMS[adam])
        self.loss = nn.CrossEntropyLoss()
        self.images = [
            torch.rand(batch, 1, side, side).to(memory_format=LAYOUTS[layout]) for _ in range(IMAGES_IN_ROTATION)
        ]
        self.labels = [torch.randint(0, 10, (batch,)) for _ in range(IMAGES_IN_ROTATION)]
        self.forward = self.model
        if engine == "compiled":
            self.forward = torch.compile(self.model)

    def run(self, steps: int) -> float:
        """Seconds per step over `steps` steps."""
        with torch.backends.mkldnn.flags(enabled=self.onednn):
            start = time.perf_counter()
            for step in range(steps):
                index = step % IMAGES_IN_ROTATION
                loss = self.loss(self.forward(self.images[index]), self.labels[index])
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
            elapsed = time.perf_counter() - start
        if not torch.isfinite(loss):
            sys.exit(f"the loss became {loss.item()}: these steps trained nothing")
        return elapsed / steps


def fastest_setting(case: str, with_compile: bool, verbose: bool) -> str:
    """Tries every setting in turn, five times over, and returns the one with the lowest median."""
    steps_by_setting = {}
    for setting in settings(with_compile):
        try:
            step = Step(case, setting)
            step.run(20)
            steps_by_setting[setting] = step
        except Exception as error:  # a setting that this build of PyTorch lacks is no candidate
            print(f"{case}: {setting} does not run: {str(error).splitlines()[0]}", file=sys.stderr)
    seconds = {setting: [] for setting in steps_by_setting}
    for _ in range(5):
        for setting, step in steps_by_setting.items():
            seconds[setting].append(step.run(30))
    medians = {setting: statistics.median(values) for setting, values in seconds.items()}
    if verbose:
        for setting, median in sorted(medians.items(), key=lambda item: item[1]):
            print(f"{case}: {setting:32} {median * 1e6:9.1f} us", file=sys.stderr)
    return min(medians, key=medians.get)


def repetitions(step: Step, seconds_per_round: float) -> int:
    """Steps that fill one round."""
    return max(10, int(seconds_per_round / step.run(20)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=list(CASES), help="repeatable; default: all")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds-per-round", type=float, default=1.0)
    parser.add_argument("--setting", help="layout/adam/engine; default: the fastest of all, tried first")
    parser.add_argument("--compile", action="store_true", help="also try torch.compile (needs a C++ compiler)")
    parser.add_argument("--on-request", action="store_true", help="run one round per line read from standard input")
    parser.add_argument("--verbose", action="store_true", help="print what each setting takes")
    arguments = parser.parse_args()
    if arguments.setting and arguments.setting not in settings(with_compile=True):
        parser.error(f"--setting is one of {', '.join(settings(with_compile=True))}")
    if arguments.threads < 1 or arguments.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)

    prepared = {}
    for case in arguments.case or CASES:
        setting = arguments.setting or fastest_setting(case, arguments.compile, arguments.verbose)
        step = Step(case, setting)
        step.run(50)
        prepared[case] = (setting, step, repetitions(step, arguments.seconds_per_round))

    def one_round(number: int) -> None:
        for case, (setting, step, steps) in prepared.items():
            step.run(max(5, steps // 10))
            line = {
                "case": case, "threads": arguments.threads, "round": number,
                "seconds_per_step": step.run(steps), "setting": setting, "torch": torch.__version__,
            }
            print(json.dumps(line), flush=True)

    if arguments.on_request:
        print(json.dumps({"ready": True}), flush=True)
        for number, _ in enumerate(sys.stdin):
            one_round(number)
            print(json.dumps({"end_of_round": number}), flush=True)
    else:
        for number in range(arguments.rounds):
            one_round(number)


if __name__ == "__main__":
    main()
