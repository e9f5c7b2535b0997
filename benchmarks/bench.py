"""The benchmarks that say how fast Quartet is beside its peers, one after the other: make bench      about 12 minutes

What they print goes to benchmarks/results.md, with the machine that it was measured on. Other files beside this one answer
single questions and are run by hand.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
import time
from pathlib import Path

from pairs import PROJECT, machine

COMMANDS = (
    "training_step.py mlp",
    "training_step.py rnn --threads 1",
    "training_step.py transformer --threads 1",
    "training_step.py image",
    "generation.py --tokens 500 --threads 1 --fast",
    "predict_table.py --rows 300000",
    "launcher.py",
)


def main() -> None:
    results = PROJECT / "benchmarks" / "results.md"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=PROJECT, capture_output=True, text=True)
    lines = [
        "# Speed, beside what people would use instead",
        "",
        "Written by `make bench`. Ratios are of neighbours in time: the median of the rounds, the smallest and the largest.",
        "",
        f"{machine()}, {datetime.date.today()}, commit {commit.stdout.strip() or 'unknown'}",
    ]
    for number, command in enumerate(COMMANDS, 1):
        print(f"{number}/{len(COMMANDS)}  python benchmarks/{command}", flush=True)
        started = time.monotonic()
        name, *words = command.split()
        file = str(Path(__file__).parent / name)
        done = subprocess.run([sys.executable, file, *words], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
        printed = done.stdout if done.returncode == 0 else f"{done.stdout}failed with {done.returncode}\n"
        print(f"{printed}{time.monotonic() - started:.0f} s\n", flush=True)
        lines += ["", f"## `python benchmarks/{command}`", "", "```text", printed.rstrip(), "```"]
        results.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written to {results.relative_to(PROJECT)}")


if __name__ == "__main__":
    main()
