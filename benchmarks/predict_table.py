"""Prediction of a large table: python benchmarks/predict_table.py --rows 500000      a few minutes

Rows a second of scripts/predict.py, from CSV to CSV, against the network alone on rows that are in memory already, and the
memory it takes beside that for 5,000 rows. A model of ten columns is trained first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

PROJECT = Path(__file__).resolve().parents[1]


def table(n: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    frame = pd.DataFrame(random.normal(size=(n, 8)).round(4), columns=[f"x{i}" for i in range(8)])
    frame["city"], frame["plan"] = random.choice(["Bonn", "Rome", "Paris", "Oslo"], n), random.choice(["a", "b"], n)
    return frame


def run(*words: str) -> tuple[float, float]:
    """Seconds, and the largest memory of the process in MB."""
    before = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, words
    return time.perf_counter() - before, usage.ru_maxrss / 1024


def network_alone(directory: str, n: int) -> float:
    """Rows a second of the network on encoded rows, 1024 at once, all threads at the same ones."""
    import torch

    from quartet.inference.model import Model
    from quartet.run import Run

    model = Model(Run.open(directory))
    inputs = model.encode(table(n, 1))

    def compute(rows: int) -> None:
        with torch.inference_mode():
            for start in range(0, rows, 1024):
                model.task.predict({name: x[start : start + 1024] for name, x in inputs.items()})

    compute(4096)
    start = time.perf_counter()
    compute(n)
    return n / (time.perf_counter() - start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("words", nargs="*", help="of scripts/train.py, such as model.ensemble=1")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        train = table(5000, 0)
        train["y"] = np.where(train.x0 + train.x1 * train.x2 > 0, "yes", "no")
        train.to_csv(f"{place}/train.csv", index=False)
        own = ["model=mlp", "data=csv", f"data.path={place}/train.csv", "data.target=y", "trainer.max_epochs=1"]
        run(str(PROJECT / "scripts/train.py"), *own, "callbacks.figures=null", f"run.dir={place}/run", *given.words)
        figures = {}
        for n in (5_000, given.rows):
            with open(f"{place}/{n}.csv", "w") as file:
                for i, start in enumerate(range(0, n, 100_000)):
                    table(min(100_000, n - start), i).to_csv(file, index=False, header=i == 0)
            words = [f"run={place}/run", f"input={place}/{n}.csv", f"output={place}/out.csv"]
            figures[n] = run(str(PROJECT / "scripts/predict.py"), *words)
        (few, small), (many, large) = figures.values()
        alone = network_alone(f"{place}/run", min(given.rows, 100_000))
        rate = (given.rows - 5_000) / (many - few)
        print(
            f"{given.rows:,} rows: {rate:,.0f}/s with files, {alone:,.0f}/s the network alone, ratio {rate / alone:.2f}"
        )
        print(f"memory: {large:,.0f} MB, {large - small:+,.0f} MB beside 5,000 rows")
