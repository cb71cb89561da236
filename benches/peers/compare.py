"""Compares Halite's training step with PyTorch's on the CPU, in one run.

    python benches/peers/compare.py --threads 2 -- COMMAND...

COMMAND is Halite's benchmark. It runs once per round and prints one JSON object per line for each case:

    {"case": "digits8x8-b32", "seconds_per_step": 0.00041}

Lines that are not such objects are passed over. `{threads}` in COMMAND becomes the number of threads. Rounds of
both sides take turns, so that a machine that slows down slows both, and the ratio of each round stands for itself:
above 1, Halite is faster.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys


class PyTorch:
    """train_step.py, kept alive between rounds, asleep while the other side runs."""

    def __init__(self, python: str, arguments: list[str]):
        script = pathlib.Path(__file__).with_name("train_step.py")
        self.process = subprocess.Popen(
            [python, str(script), "--on-request", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        self.read()

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"PyTorch's side ended with code {self.process.wait()}; its message is above")
        return json.loads(line)

    def round(self) -> dict[str, dict]:
        """Case -> its line, for one round."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        results = {}
        while "end_of_round" not in (line := self.read()):
            results[line["case"]] = line
        return results

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def halite_round(command: list[str]) -> dict[str, float]:
    """Case -> seconds per step, for one round."""
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if finished.returncode != 0:
        sys.exit(f"{command[0]} ended with code {finished.returncode}; its message is above")
    results = {}
    for line in finished.stdout.splitlines():
        try:
            result = json.loads(line)
            results[result["case"]] = float(result["seconds_per_step"])
        except (ValueError, TypeError, KeyError):
            continue  # a benchmark may print more than results
    if not results:
        sys.exit(f"{command[0]} printed no line with \"case\" and \"seconds_per_step\"")
    return results


def summary(rounds: list[tuple[dict[str, float], dict[str, dict]]], threads: int) -> list[dict]:
    """One entry per case that both sides measured."""
    entries = []
    for case, first in rounds[0][1].items():
        pairs = [(ours[case], theirs[case]["seconds_per_step"]) for ours, theirs in rounds if case in ours]
        if not pairs:
            print(f"{case}: no result from Halite", file=sys.stderr)
            continue
        ratios = [theirs / ours for ours, theirs in pairs]
        entries.append({
            "case": case, "threads": threads, "rounds": len(pairs),
            "halite_seconds_per_step": statistics.median(ours for ours, _ in pairs),
            "pytorch_seconds_per_step": statistics.median(theirs for _, theirs in pairs),
            "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
            "pytorch_setting": first["setting"], "torch": first["torch"],
        })
    return entries


def print_table(entries: list[dict]) -> None:
    print(f"{'case':17} {'threads':>7} {'Halite':>11} {'PyTorch':>11} {'ratio':>7} {'min':>6} {'max':>6}  PyTorch's fastest setting")
    for entry in entries:
        ours, theirs = (f"{entry[f'{side}_seconds_per_step'] * 1e6:,.0f} us" for side in ("halite", "pytorch"))
        print(
            f"{entry['case']:17} {entry['threads']:7} {ours:>11} {theirs:>11} {entry['ratio']:7.2f} "
            f"{entry['ratio_min']:6.2f} {entry['ratio_max']:6.2f}  {entry['pytorch_setting']}"
        )
    if entries:
        print(f"ratio: Halite's speed over that of PyTorch {entries[0]['torch']}, median of {entries[0]['rounds']} rounds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", help="repeatable; default: all of train_step.py")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds-per-round", type=float, default=1.0, help="of PyTorch, per case")
    parser.add_argument("--setting", help="PyTorch's setting; default: the fastest, tried first")
    parser.add_argument("--compile", action="store_true", help="let PyTorch also try torch.compile")
    parser.add_argument("--python", default=sys.executable, help="a Python that has PyTorch; default: this one")
    parser.add_argument("--json", action="store_true", help="print one JSON object per case instead of the table")
    parser.add_argument("--at-least", type=float, metavar="RATIO", help="exit with 1 if a median ratio is below this")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="Halite's benchmark, after --")
    arguments = parser.parse_args()
    if arguments.threads < 1 or arguments.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")

    passed_on = ["--threads", str(arguments.threads), "--seconds-per-round", str(arguments.seconds_per_round)]
    for case in arguments.case or []:
        passed_on += ["--case", case]
    if arguments.setting:
        passed_on += ["--setting", arguments.setting]
    if arguments.compile:
        passed_on.append("--compile")
    command = [part.replace("{threads}", str(arguments.threads)) for part in arguments.command]

    pytorch = PyTorch(arguments.python, passed_on)
    halite_round(command)  # caches of the disk and the first plan are nobody's training step
    rounds = []
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
        # The side that goes first changes, so that neither always meets a warmer machine.
        if number % 2 == 0:
            ours = halite_round(command)
            theirs = pytorch.round()
        else:
            theirs = pytorch.round()
            ours = halite_round(command)
        rounds.append((ours, theirs))
    pytorch.close()

    entries = summary(rounds, arguments.threads)
    if arguments.json:
        for entry in entries:
            print(json.dumps(entry))
    else:
        print_table(entries)
    complete = len(entries) == len(rounds[0][1])
    if arguments.at_least and any(entry["ratio"] < arguments.at_least for entry in entries) or not complete:
        sys.exit(1)


if __name__ == "__main__":
    main()
