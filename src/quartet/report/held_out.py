"""What takes another look at the data: out-of-fold metrics, and the one test of the winner. Imports torch late."""

from __future__ import annotations

import json
from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quartet.report.runs import Record
from quartet.report.settings import Setting
from quartet.run import Run
from quartet.say import printable

TEST = "test.json"


def complete_folds(setting: Setting) -> dict[Any, list[Record]]:
    """Seed -> its runs in the order of folds, where all folds are completed."""
    by_seed: dict[Any, dict[int, Record]] = defaultdict(dict)
    for (seed, fold), record in setting.scored.items():
        if isinstance(fold, int):
            by_seed[seed][fold] = record
    found = {seed: [runs[fold] for fold in sorted(runs)] for seed, runs in by_seed.items()}
    return {seed: runs for seed, runs in found.items() if len(runs) == runs[0].config.get("data.folds")}


def out_of_fold(records: list[Record]) -> tuple[dict[str, float], int]:
    """Metrics computed once on the pooled validation predictions of all folds, and the number of samples pooled.

    Each fold is predicted by its own best checkpoint; the task's own metrics gather until the last fold has been seen.
    """
    from quartet import build
    from quartet.engine.fit import measure
    from quartet.engine.weights import load_checkpoint

    shared: dict[str, Any] = {}
    metrics: dict[str, float] = {}
    n = 0
    for record in records:
        run = Run.open(str(record.directory))
        config = build.opened(run)
        data = build.restore_data(run, config)
        n += len(data.datasets["val"])
        task: Any = build.build_task(config, data.spec)
        load_checkpoint(task, run.best_checkpoint)
        for name in ("losses", "scores", "sums"):
            if hasattr(task, name):
                setattr(task, name, shared.setdefault(name, getattr(task, name)))
        if record is not records[-1]:
            task.log_metrics = _later
        metrics = measure(build.build_trainer(config, run.directory), task, data, "val") or metrics
    return metrics, n


def _later(part: str) -> None:
    """The metrics are logged, and begun anew, after the last fold only."""


def test_once(setting: Setting, directory: Path) -> None:
    """Score every run of a setting on the test part and write `test.json`; where there is one already, it is final.

    ValueError where that one is damaged.
    """
    path = directory / TEST
    known = read_test(directory)
    if known:
        print(printable(f"tested before, on {known['created']}: {path} is kept, nothing is tested again"))
        return
    if path.exists():
        raise ValueError(f"{path} is damaged; bring it back, or delete it if you know that it was never used")
    from quartet.commands.evaluate import evaluate

    def metrics(record: Record) -> dict[str, float]:
        tested = {name: value for name, value in record.metrics.items() if name.startswith("test")}
        return tested or evaluate(Run.open(str(record.directory)), "test")

    scores = {record.name: metrics(record) for record in setting.scored.values()}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    directory.mkdir(parents=True, exist_ok=True)
    Run(directory).write(TEST, {"setting": setting.name, "created": created, "runs": scores})


def read_test(directory: Path) -> dict[str, Any]:
    """`test.json`; empty where nothing was tested, or where it cannot be read."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        values = json.loads((directory / TEST).read_text(encoding="utf-8"))
        return {"setting": str(values["setting"]), "created": str(values["created"]), "runs": dict(values["runs"])}
    return {}
