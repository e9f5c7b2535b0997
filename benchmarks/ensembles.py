"""What combining runs is worth: python benchmarks/ensembles.py seeds experiment=digits_small      minutes
python benchmarks/ensembles.py greedy model=mlp data=wine

`seeds`: three ensembles of five seeds each (0 to 4, 5 to 9, 10 to 14), with `data.bootstrap=true` bags, against the mean
of their members, on test; mean ± standard deviation over the three. `greedy`: a search of 30 trials; greedy selection
over all of them against the best one alone, on test. Whatever follows are words of scripts/train.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from quartet.inference.ensemble import combined, fit_combination, loss
from quartet.inference.parts import predict_part
from quartet.run import Run

PROJECT = Path(__file__).resolve().parents[1]
QUIET = ["sweep.report=false", "callbacks.figures=null", "callbacks.data_report=null", "logger=none"]
SPACE = ["optimizer.lr=tag(log,interval(1e-4,3e-2))", "model.dropout=choice(0,0.1,0.3)", "data.batch_size=16,32,64"]
SHOWN = ("/loss", "/accuracy", "/calibration_error", "/rmse", "/r2")


def sweep(folder: str, words: list[str]) -> list[Run]:
    script, place = str(PROJECT / "scripts" / "train.py"), f"hydra.sweep.dir={folder}/sweep"
    command = [sys.executable, script, "-m", *words, *QUIET, place]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = [Run(path.parent) for path in Path(folder).glob("sweep/*/config.yaml")]
    return sorted((run for run in found if run.status == "completed"), key=lambda run: int(run.directory.name))


def seeds(folder: str, words: list[str]) -> None:
    runs = sweep(folder, [*words, f"seed={','.join(map(str, range(15)))}"])
    tested = [predict_part(run, "test") for run in runs]
    rows, names = [], []
    for start in range(0, 15, 5):
        members = tested[start : start + 5]
        whole = combined(members, fit_combination("mean", [[i] for i in range(5)], [], np.empty(0)))
        names = [name for name in SHOWN if name in whole.metrics]
        rows.append([(np.mean([one.metrics[name] for one in members]), whole.metrics[name]) for name in names])
    for name, pairs in zip(names, np.array(rows).transpose(1, 2, 0), strict=True):
        said = [f"{values.mean():.4f} ± {values.std(ddof=1):.4f}" for values in pairs]
        print(f"{name[1:]:<18} members {said[0]}   ensemble {said[1]}")


def greedy(folder: str, words: list[str], trials: int) -> None:
    runs = sweep(folder, ["sweep=optuna", f"sweep.n_trials={trials}", *SPACE, *words])
    validated = [predict_part(run, "val") for run in runs]
    predictions, target = [one.outputs["prediction"] for one in validated], validated[0].outputs["target"]
    combination = fit_combination("greedy", [[i] for i in range(len(runs))], predictions, target)
    best = int(np.argmin([loss(one, target) for one in predictions]))
    tested = [predict_part(run, "test") for run in runs]
    whole = combined(tested, combination)
    used = sum(weight > 0 for weight in combination.weights or ())
    for name in SHOWN:
        if name in whole.metrics:
            alone, together = tested[best].metrics[name], whole.metrics[name]
            print(f"{name[1:]:<18} best of {len(runs)} {alone:.4f}   greedy, {used} of them {together:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("seeds", "greedy"))
    parser.add_argument("words", nargs="*")
    parser.add_argument("--trials", type=int, default=30)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        seeds(place, given.words) if given.what == "seeds" else greedy(place, given.words, given.trials)
