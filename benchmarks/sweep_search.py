"""What proposals and pruning are worth: python benchmarks/sweep_search.py --repeat 5     about half an hour

The same space is searched with the same number of trials by random search, by TPE, and by TPE with asynchronous successive
halving, and once more with twice as many trials that may be pruned; with another sampler seed each time. Printed: the best
validation loss and the training steps of each search.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
SPACE = [
    "optimizer.lr=tag(log,interval(1e-4,1e0))",
    "model.dropout=choice(0,0.1,0.3)",
    "data.batch_size=16,32,64",
]
QUIET = ["sweep.report=false", "callbacks.figures=null", "callbacks.data_report=null", "logger=none"]
WAYS = {
    "random": ["sweep.sampler=random"],
    "tpe": ["sweep.sampler=tpe"],
    "asha": ["sweep.pruner=asha", "sweep.min_validations=2"],
    "asha, twice": ["sweep.pruner=asha", "sweep.min_validations=2"],
}


def search(way: list[str], seed: int, trials: int, more: list[str]) -> tuple[float, int]:
    """The best validation loss, and the training steps of all runs together."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "sweep=optuna", "model=mlp", *SPACE, *QUIET, *way, *more]
        words += [f"sweep.n_trials={trials}", f"sweep.seed={seed}", f"hydra.sweep.dir={folder}/sweep"]
        command = [sys.executable, str(PROJECT / "scripts" / "train.py"), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        results = [json.loads(path.read_text()) for path in Path(folder).glob("sweep/*/result.json")]
    complete = [result["objective"]["value"] for result in results if result["status"] == "completed"]
    return min(complete), sum(result["steps"] for result in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--ways", choices=WAYS, nargs="*", default=list(WAYS))
    parser.add_argument("more", nargs="*", help="settings for all searches")
    arguments = parser.parse_args()
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in arguments.ways}
    for seed in range(arguments.repeat):
        for name in found:
            trials = arguments.trials * (2 if name.endswith("twice") else 1)
            found[name].append(search(WAYS[name], seed, trials, arguments.more))
            loss, steps = found[name][-1]
            print(f"seed {seed}  {name:14s} best val/loss {loss:.2e}  {steps:,} steps", flush=True)
    for name, rows in found.items():
        losses, steps = [loss for loss, _ in rows], statistics.mean(steps for _, steps in rows)
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        print(
            f"{name:14s} {statistics.mean(losses):.3e} ± {spread:.1e} (n = {len(losses)}), {steps:,.0f} steps on average"
        )


if __name__ == "__main__":
    main()
