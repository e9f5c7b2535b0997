"""What combining runs is worth: python benchmarks/ensembles.py seeds experiment=digits_small      minutes
python benchmarks/ensembles.py greedy model=mlp data=wine

`seeds`: three ensembles of five seeds each (0 to 4, 5 to 9, 10 to 14) with bags or without (`data.bootstrap=true`), against the mean of
their members, on test. `greedy`: a search of 30 trials; greedy selection over all of them against the best one alone, on test.
Whatever follows are words of scripts/train.py. One metric of each kind is printed, mean ± standard deviation over ensembles.
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
    command = [
        sys.executable,
        str(PROJECT / "scripts" / "train.py"),
        "-m",
        *words,
        *QUIET,
        f"hydra.sweep.dir={folder}/sweep",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    runs = sorted(
        (Run(path.parent) for path in Path(folder).glob("sweep/*/config.yaml")), key=lambda r: int(r.directory.name)
    )
    return [run for run in runs if run.status == "completed"]


def seeds(folder: str, words: list[str]) -> None:
    runs = sweep(folder, [*words, f"seed={','.join(map(str, range(15)))}"])
    tested = [predict_part(run, "test") for run in runs]
    rows = []
    for start in range(0, 15, 5):
        members = tested[start : start + 5]
        whole = combined(members, fit_combination("mean", [[i] for i in range(5)], [], np.empty(0)))
        rows.append(
            {
                name: (np.mean([m.metrics[name] for m in members]), whole.metrics[name])
                for name in SHOWN
                if name in whole.metrics
            }
        )
    for name in rows[0]:
        single, ensemble = np.array([row[name] for row in rows]).T
        print(
            f"{name[1:]:<18} members {single.mean():.4f} ± {single.std(ddof=1):.4f}   ensemble {ensemble.mean():.4f} ± {ensemble.std(ddof=1):.4f}"
        )


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
            print(
                f"{name[1:]:<18} best of {len(runs)} {tested[best].metrics[name]:.4f}   greedy, {used} of them {whole.metrics[name]:.4f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("seeds", "greedy"))
    parser.add_argument("words", nargs="*")
    parser.add_argument("--trials", type=int, default=30)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        seeds(place, given.words) if given.what == "seeds" else greedy(place, given.words, given.trials)
