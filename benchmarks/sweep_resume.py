"""A sweep killed at random moments and begun again each time: python benchmarks/sweep_resume.py --kills 10

SIGKILL to the sweep's process, nothing else: its jobs have to notice. Then the same command in the same directory. At the
end there are as many trials as were asked for, numbered without a gap, each finished once; the files of those that were
finished are as they were; and the best run is the one that the storage names.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
SWEEP = (
    "-m sweep=optuna model=mlp optimizer.lr=tag(log,interval(1e-4,1e0)) model.dropout=choice(0,0.1,0.3) "
    "data.batch_size=16,32 sweep.report=false callbacks.figures=null callbacks.checkpoint.every_n_steps=10"
)


def start(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROJECT / "scripts" / "train.py"), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(directory: Path) -> dict[int, dict[str, int]]:
    """Job number -> the times of its files, of those that have come to an end."""
    ends = {}
    for path in directory.glob("*/result.json"):
        if json.loads(path.read_text())["status"] in ("completed", "pruned"):
            files = [file for file in path.parent.rglob("*") if file.is_file()]
            ends[int(path.parent.name)] = {str(file): file.stat().st_mtime_ns for file in files}
    return ends


def problems(directory: Path, n_trials: int, before: list[dict[int, dict[str, int]]]) -> list[str]:
    """What is not as it should be after the last round."""
    from quartet.sweeps.plan import Plan
    from quartet.sweeps.study import open_study

    trials = open_study(directory, Plan.read(directory), create=False).get_trials(deepcopy=False)
    found, states = finished(directory), Counter(trial.state.name for trial in trials)
    wrong = []
    if [trial.number for trial in trials] != list(range(n_trials)) or sorted(found) != list(range(n_trials)):
        wrong.append(f"trials {[t.number for t in trials]}, runs {sorted(found)}")
    if set(states) - {"COMPLETE", "PRUNED"}:
        wrong.append(f"states {dict(states)}")
    changed = {number for ends in before for number, times in ends.items() if found.get(number) != times}
    if changed:
        wrong.append(f"finished runs were touched: {sorted(changed)}")
    for trial in trials:
        value = json.loads((directory / str(trial.number) / "result.json").read_text())["objective"]["value"]
        if trial.state.name == "COMPLETE" and trial.value != value:
            wrong.append(f"trial {trial.number}: {trial.value} in the storage, {value} in the run")
    return wrong


def survive(directory: Path, kills: int, n_trials: int, more: list[str]) -> tuple[list[str], int]:
    words = [*SWEEP.split(), f"sweep.n_trials={n_trials}", f"hydra.sweep.dir={directory}", *more]
    before, done = [], 0
    while True:
        process = start(words)
        try:
            process.wait(random.uniform(0.3, 12) if done < kills else 600)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            done += 1
            time.sleep(random.choice((0, 3)))  # again at once, or when orphans have stopped
            before.append(finished(directory))
            continue
        output = process.communicate()[0]
        if process.returncode:
            return [f"exit code {process.returncode}: {output[-2000:]}"], done
        return problems(directory, n_trials, before), done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0, help="of the moments, as far as the clock is the same")
    parser.add_argument("more", nargs="*", help="settings, such as sweep.pruner=asha")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        wrong, kills = survive(Path(folder) / "sweep", arguments.kills, arguments.trials, arguments.more)
    print("\n".join(wrong) or f"{arguments.trials} trials, {kills} kills: each finished once, none touched afterwards")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
