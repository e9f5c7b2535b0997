"""The local launcher: what two workers save, and what a job costs beyond its training.

    python benchmarks/launcher.py                about three minutes on two idle cores
    python benchmarks/launcher.py --jobs 2       a look

The same sweep of `--jobs` short trainings, a thread each, under Hydra's basic launcher (one after the other in one process)
and under ours; times are those of the whole command, imports and all. Beyond its training, a job composes its config,
starts a process, reads its data, writes its run directory and ends: its seconds, as the launcher tells them, without the
seconds of fitting in result.json. The first job of each worker waits for nothing else than later ones, because the server
that imports everything comes before it; the median is taken over the others nevertheless.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def sweep(directory: Path, launcher: str, jobs: int, epochs: int, *words: str) -> tuple[float, str]:
    """Seconds of the whole command, and what it printed."""
    seeds = ",".join(str(seed) for seed in range(jobs))
    command = [sys.executable, str(PROJECT / "scripts" / "train.py"), "-m", f"hydra/launcher={launcher}", *words]
    command += ["model=mlp", "trainer.accelerator=cpu", f"trainer.max_epochs={epochs}", f"seed={seeds}"]
    command += ["sweep.report=false", f"hydra.sweep.dir={directory}"]
    begun = time.monotonic()
    ended = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True
    )
    return time.monotonic() - begun, ended.stdout


def overheads(directory: Path, printed: str) -> list[float]:
    """Of each job, seconds beyond fitting."""
    whole = {int(n): float(s) for n, s in re.findall(r"^job (\d+) completed.*\(([\d.]+) s\)$", printed, re.M)}
    return [
        s - json.loads((directory / str(n) / "result.json").read_text())["seconds"] for n, s in sorted(whole.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=120, help="of each job; 120 take about ten seconds")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    jobs, epochs, workers = arguments.jobs, arguments.epochs, arguments.workers
    with tempfile.TemporaryDirectory() as folder:
        print(f"load before: {os.getloadavg()[0]:.1f}")
        basic, _ = sweep(Path(folder, "basic"), "basic", jobs, epochs)
        print(f"basic launcher                {basic:6.1f} s for {jobs} jobs", flush=True)
        local, _ = sweep(Path(folder, "local"), "local", jobs, epochs, f"hydra.launcher.workers={workers}")
        print(f"local launcher, {workers} workers     {local:6.1f} s, {local / basic:.2f} of it", flush=True)
        single = Path(folder, "single")
        _, printed = sweep(single, "local", max(3, jobs // 2), 5, "hydra.launcher.workers=1")
        first, *later = overheads(single, printed)
        print(f"a job beyond its training     {statistics.median(later):6.2f} s (the first {first:.2f} s)")


if __name__ == "__main__":
    main()
