"""The two looks at the data that a report takes: out-of-fold metrics, and one test of the winner. Imports torch late."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quartet.report.analysis import Setting
from quartet.run import Run
from quartet.say import printable


def out_of_fold(runs: list[dict[str, Any]]) -> tuple[dict[str, float], int]:
    """Metrics computed once on the pooled validation predictions of all folds, and the number of samples pooled.

    Each fold is predicted by its own best checkpoint.
    """
    from pytorch_lightning import Callback
    from torchmetrics import Metric

    from quartet import build
    from quartet.engine.fit import measure
    from quartet.engine.weights import load_checkpoint

    class Pool(Callback):
        """Adds the states of the earlier folds' metrics; Lightning calls this before the task computes and logs."""

        earlier: list[Metric] | None = None

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            gathered = [module for module in pl_module.modules() if isinstance(module, Metric)]
            for metric, before in zip(gathered, self.earlier or [], strict=self.earlier is not None):
                metric.merge_state(before)
            self.earlier = copy.deepcopy(gathered)

    pool, metrics, n = Pool(), {}, 0
    for row in runs:
        run = Run.open(str(row["directory"]))
        config = build.opened(run)
        data = build.restore_data(run, config)
        task = build.build_task(config, data.spec)
        load_checkpoint(task, run.best_checkpoint)
        n += len(data.datasets["val"])
        metrics = measure(build.build_trainer(config, run.directory, callbacks=(pool,)), task, data, "val")
    return metrics, n


def test_once(setting: Setting, directory: Path) -> None:
    """Score every run of a setting on the test part and write `test.json`, which is final: a test is for one look.

    ValueError if there is a damaged one.
    """
    known, path = read_test(directory), directory / "test.json"
    if known:
        print(printable(f"tested before, on {known['created']}: {path} is kept, nothing is tested again"))
        return
    if path.exists():
        raise ValueError(f"{path} is damaged; restore it, or delete it if you know that it was never used")
    from quartet.commands.evaluate import evaluate

    scores = {}
    for run in setting.scored.values():
        tested = {name: value for name, value in run.items() if str(name).startswith("test") and value == value}
        scores[run["run"]] = tested or evaluate(Run.open(str(run["directory"])), "test")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    directory.mkdir(parents=True, exist_ok=True)
    Run(directory).write("test.json", {"setting": setting.name, "created": created, "runs": scores})


def read_test(directory: Path) -> dict[str, Any]:
    """`test.json`; empty if nothing was tested, or if it cannot be read."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        values = json.loads((directory / "test.json").read_text(encoding="utf-8"))
        return {"setting": str(values["setting"]), "created": str(values["created"]), "runs": dict(values["runs"])}
    return {}
