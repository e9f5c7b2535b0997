"""What a run predicts for a part of its data, or for new data: measured by Lightning as training measured it."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy import ndarray as Array
from pytorch_lightning import Callback

from quartet import build
from quartet.callbacks.progress import progress
from quartet.data.base import DataModule
from quartet.engine.fit import measure
from quartet.engine.weights import load_checkpoint
from quartet.run import Run
from quartet.tasks.language_modeling import LanguageModeling

PARTS = ("val", "test")
NEW = "new"  # data that training has not seen any part of


class Predicted(NamedTuple):
    """`metrics` by the names that training logs, without the part; `outputs` of every sample, in the order of the part.

    A classification or regression has the outputs `prediction`, (N, C) or (N,), and `target` (N,).
    """

    part: str
    metrics: dict[str, float]
    outputs: dict[str, Array]
    data: DataModule
    task: Any

    @property
    def held_as(self) -> str:
        """What the data module calls the part: new data are its test part."""
        return "test" if self.part == NEW else self.part

    @property
    def has_predictions(self) -> bool:
        return "prediction" in self.outputs


class Collect(Callback):
    """Keeps what each batch of a validation or test returns."""

    def __init__(self) -> None:
        self.batches: list[dict[str, torch.Tensor]] = []

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        if outputs:
            self.batches.append({name: value.detach().cpu() for name, value in outputs.items()})

    def on_validation_batch_end(self, *arguments: Any, **keywords: Any) -> None:
        self.on_test_batch_end(*arguments, **keywords)

    def outputs(self) -> dict[str, Array]:
        """In the order of the samples: contiguous windows come in another one."""
        if not self.batches:
            return {}
        joined = {name: torch.cat([batch[name] for batch in self.batches]).numpy() for name in self.batches[0]}
        order = np.argsort(joined["index"], kind="stable")
        return {name: values[order] for name, values in joined.items()}


def predict_part(run: Run, part: str, data_path: str | None = None) -> Predicted:
    """Of "val" or "test", whose data may have moved to `data_path`, or of the new data there if the part is "new".

    Raises ValueError for another part, and if the data are not those of the run or cannot be read as they were.
    """
    if part not in (*PARTS, NEW):
        raise ValueError(f"split must be val or test, not {part!r}")
    config = build.opened(run, None if part == NEW else data_path)
    build.seed_everything(config.seed)
    data = build.restore_data(run, config, read=part != NEW)
    if part == NEW:
        data.use_new(str(data_path))
    task = build.build_task(config, data.spec)
    load_checkpoint(task, run.best_checkpoint)
    if isinstance(task, LanguageModeling):
        task.keeps_windows = True
    # measured by the loop that training uses, so that the metrics are the same to the last digit
    collect = Collect()
    trainer = build.build_trainer(config, run.directory, callbacks=(progress(metrics=(), every_seconds=5.0), collect))
    measured = "test" if part == NEW else part
    metrics = measure(trainer, task, data, measured)
    named = {name.removeprefix(measured): value for name, value in metrics.items()}
    return Predicted(part, named, collect.outputs(), data, task)


def is_own_data(run: Run, data_path: str) -> bool:
    """Whether the data of the run are at this path, so that its parts can be told apart there."""
    config = build.opened(run)
    if config.data.get("path") is None:
        return False
    config = build.opened(run, data_path)
    data = build.restore_data(run, config, read=False)
    try:
        with redirect_stdout(io.StringIO()):  # what reading says is said again by who reads them
            return data.read()[1] == data.preprocessing()["fingerprint"]
    except (ValueError, OSError):
        return False
