"""Data-parallel workers: what torchelastic adds to starting a process, and what a second worker adds to the first.

    python benchmarks/workers.py                 about a minute on an idle machine
    python benchmarks/workers.py --repeat 9      medians of more

Workers write down when they run and end; one kind is an empty Python, the other imports what a training imports. `first`
is the time from the call to the first worker's first line, `all` to the last one's, `end` from the last worker's last line
to the return of the call. A plain process is started by subprocess. torch is imported here before the clock runs, as it
is in a training whose config has been checked.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from quartet.engine.workers import run_workers

EMPTY = "import os, pathlib, sys, time; begun = time.time()"
TRAINING = "import quartet.engine.fit; " + EMPTY
NOTE = '; pathlib.Path(sys.argv[1], os.environ.get("RANK", "0")).write_text(f"{begun} {time.time()}")'


def measure(code: str, n: int) -> tuple[float, float, float]:
    """Seconds to the first worker's first line, to the last one's, and after the last line; n = 0: a plain process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code + NOTE, folder]
        begun = time.time()
        if n:
            run_workers(Path(folder), n, max_restarts=0, command=command)
        else:
            subprocess.run(command, check=True)
        ended = time.time()
        times = [[float(word) for word in path.read_text().split()] for path in Path(folder).iterdir()]
    starts, ends = zip(*times, strict=True)
    return min(starts) - begun, max(starts) - begun, ended - max(ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="times, of which the median counts")
    arguments = parser.parse_args()
    measure(EMPTY, 1)  # torch, and the disk's cache
    measure(TRAINING, 1)
    print(f"seconds, medians of {arguments.repeat}\n{'worker':10s} {'n':>5s} {'first':>7s} {'all':>7s} {'end':>7s}")
    rows: dict[tuple[str, int], tuple[float, ...]] = {}
    for name, code in (("empty", EMPTY), ("training", TRAINING)):
        runs = [[measure(code, n) for n in (0, 1, 2)] for _ in range(arguments.repeat)]  # in turn: noise hits all alike
        for n in (0, 1, 2):
            rows[name, n] = tuple(statistics.median(column) for column in zip(*(run[n] for run in runs), strict=True))
            first, last, end = rows[name, n]
            print(f"{name:10s} {n or 'plain':>5} {first:7.2f} {last:7.2f} {end:7.2f}", flush=True)
    plain, one, two = (rows["training", n] for n in (0, 1, 2))
    overhead = (rows["empty", 1][0] + rows["empty", 1][2]) - (rows["empty", 0][0] + rows["empty", 0][2])
    print(f"torchelastic adds {overhead:.2f} s to an empty process, {overhead / plain[0]:.2f} of a training's start")
    print(f"two workers are ready after {two[1] / one[1]:.2f} times what one takes")


if __name__ == "__main__":
    main()
