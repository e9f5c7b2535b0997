"""Evaluation: the metrics of a run's best checkpoint on one of its splits, from the run directory alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from rich.cells import cell_len

from quartet import build
from quartet.callbacks.progress import progress
from quartet.engine.fit import measure
from quartet.engine.weights import load_checkpoint
from quartet.run import Run
from quartet.say import printable

PER_CLASS = re.compile(r"(val|test)_per_class/(\w+?)_of_(.*)", re.DOTALL)


def report(where: str, split: str | None, data_path: str | None = None) -> None:
    """Print the metrics of the run at `where`, of both splits if `split` is None; those of each class in a table."""
    run = Run.open(where)
    print(f"run: {printable(str(run))}", flush=True)
    for part in (split,) if split else ("val", "test"):
        metrics = evaluate(run, part, data_path)
        of_all = {printable(name): value for name, value in metrics.items() if not PER_CLASS.fullmatch(name)}
        width = max(28, *map(len, of_all))
        for name, value in of_all.items():
            print(f"  {name:<{width}} {value:.6f}")
        for line in per_class(metrics):
            print(line)
        sys.stdout.flush()


def per_class(metrics: dict[str, float]) -> Iterator[str]:
    """The lines of a table with a row for each class, that of the lowest F1 first; empty without classes."""
    table: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        if found := PER_CLASS.fullmatch(name):
            table.setdefault(printable(found[3]), {})[found[2]] = value
    if not table:
        return
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    rows = sorted(table.items(), key=lambda item: item[1].get("f1", next(iter(item[1].values()))))
    width = max(cell_len(name) for name in ("class", *table))  # on a terminal, where some letters are two wide
    yield f"  {'class':<{width}}" + "".join(f"{column:>12}" for column in columns)
    for name, row in rows:
        cells = "".join(f"{row[column]:>12.4f}" if column in row else " " * 12 for column in columns)
        yield f"  {name}{' ' * (width - cell_len(name))}{cells}"


def evaluate(run: Run, split: str, data_path: str | None = None) -> dict[str, float]:
    """Metrics of "val" or "test"; `data_path`: where the data of the run are now.

    Raises ValueError for another split, and if the data are no longer those of the run.
    """
    if split not in ("val", "test"):
        raise ValueError(f"split must be val or test, not {split!r}")
    config = build.opened(run, data_path)
    build.seed_everything(config.seed)
    data = build.restore_data(run, config)
    task = build.build_task(config, data.spec)
    load_checkpoint(task, run.best_checkpoint)
    trainer = build.build_trainer(config, run.directory, callbacks=(progress(metrics=(), every_seconds=5.0),))
    return measure(trainer, task, data, split)
