"""The input side of tables: rows a second from the loader beside what the smallest MLP consumes; reading a large CSV.

    python benchmarks/table_input.py                  both; a CSV of 1,000,000 rows and 20 columns is written and removed
    python benchmarks/table_input.py --rows 100000    a smaller one

The smallest MLP has no hidden layer: a linear model, with AdamW, one thread. The loader must be ten times as fast.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from hydra.utils import instantiate

from quartet.data.table.own_table import TableFile
from quartet.models.mlp import MLP

CONF = Path(__file__).parents[1] / "conf"
SECONDS = 2.0  # of each measurement


def settings(group: str, name: str) -> Any:
    """Constructor values of a file in conf/."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose("train", overrides=[f"{group}={name}"])[group]


def write_csv(path: Path, n_rows: int) -> None:
    """15 quantities, 3 categories, a date and a class."""
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {f"x{i}": random.normal(size=n_rows).round(5) for i in range(15)}
    columns |= {f"c{i}": random.choice([f"value {j}" for j in range(30)], n_rows) for i in range(3)}
    columns["when"] = np.datetime64("2015-01-01") + random.integers(0, 3650, n_rows)
    columns["y"] = np.where(columns["x0"] + random.normal(size=n_rows) > 0, "yes", "no")
    pd.DataFrame(columns).to_csv(path, index=False)


def read(path: Path, batch_size: int) -> tuple[TableFile, float]:
    data: TableFile = instantiate(settings("data", "csv"), path=str(path), target="y", batch_size=batch_size)
    start = time.perf_counter()
    data.setup()
    return data, time.perf_counter() - start


def rows_per_second(work: Callable[[dict[str, Any]], Any], data: TableFile) -> float:
    """Over epochs of the training loader, for a while."""
    loader, n_rows, start = data.train_dataloader(), 0, time.perf_counter()
    while True:
        for batch in loader:
            work(batch)
            n_rows += len(batch["target"])
            if time.perf_counter() - start > SECONDS:
                return n_rows / (time.perf_counter() - start)


def train_step(data: TableFile) -> Callable[[dict[str, Any]], None]:
    """One step of the smallest MLP."""
    values = {key: value for key, value in settings("model", "mlp").items() if key != "_target_"}
    network = MLP(**{**data.spec.sizes, **values, "hidden": []})
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def step(batch: dict[str, Any]) -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(**batch["inputs"]), batch["target"]).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    n_rows = parser.parse_args().rows
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write_csv(path, n_rows)
        size = path.stat().st_size / 1e6
        data, seconds = read(path, batch_size=32)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"read, split, fitted and encoded {n_rows:,} rows x 20 columns ({size:.0f} MB) in {seconds:.1f} s; {peak:.1f} GiB"
    )
    print(f"{'batch':>6s} {'loader, rows/s':>16s} {'smallest MLP, rows/s':>22s} {'ratio':>6s}")
    for data.batch_size in (32, 256, 4096):
        loaded, trained = rows_per_second(lambda batch: None, data), rows_per_second(train_step(data), data)
        input_free = 1 / (1 / trained - 1 / loaded)  # the second loop loads, too
        print(f"{data.batch_size:6d} {loaded:16,.0f} {input_free:22,.0f} {loaded / input_free:6.1f}")


if __name__ == "__main__":
    main()
