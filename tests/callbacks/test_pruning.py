"""Pruning: what a run tells its study, and that a run that was killed and goes on ends as it would have ended."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from quartet.sweeps.pruning import Pruning


class Reporter:
    """Finds hopeless whatever is told at validation number `at` or later."""

    def __init__(self, at: int):
        self.at, self.told = at, []

    def should_prune(self, value: float, validation: int) -> bool:
        self.told.append((validation, value))
        return validation >= self.at


def trainer(value: float, step: int = 10, total: int = 100) -> SimpleNamespace:
    return SimpleNamespace(
        state=SimpleNamespace(fn="fit"), sanity_checking=False, callback_metrics={"val/loss": torch.tensor(value)},
        global_step=step, estimated_stepping_batches=total, should_stop=False, world_size=1, is_global_zero=True,
    )  # fmt: skip


def pruning(tmp_path, at: int, mode: str = "min") -> Pruning:
    callback = Pruning(run_directory=tmp_path, monitor="val/loss", mode=mode)
    callback.reporter = Reporter(at)
    return callback


@pytest.mark.parametrize(("mode", "told"), [("min", [0.5, 0.3, 0.3, 0.3]), ("max", [0.5, 0.5, 0.5, 0.6])])
def test_the_best_value_so_far_is_told_and_a_value_that_is_no_number_never(tmp_path, mode, told):
    callback = pruning(tmp_path, at=9, mode=mode)
    for value in (0.5, 0.3, math.nan, 0.6):
        callback.on_validation_end(trainer(value), None)  # type: ignore[arg-type]
    assert callback.reporter.told == [(n, pytest.approx(value)) for n, value in enumerate(told, 1)]


def test_a_hopeless_run_stops_and_one_at_its_end_is_complete(tmp_path):
    callback, halfway, at_end = pruning(tmp_path, at=1), trainer(0.5), trainer(0.5, step=100)
    callback.on_validation_end(at_end, None)  # type: ignore[arg-type]
    assert not callback.pruned and not at_end.should_stop
    callback.on_validation_end(halfway, None)  # type: ignore[arg-type]
    assert callback.pruned and halfway.should_stop


def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(tmp_path):
    first, whole = pruning(tmp_path, at=3), pruning(tmp_path, at=3)
    for value in (0.5, 0.3):
        first.on_validation_end(trainer(value), None)  # type: ignore[arg-type]
    second = pruning(tmp_path, at=3)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.on_validation_end(trainer(0.4), None)  # type: ignore[arg-type]
    for value in (0.5, 0.3, 0.4):
        whole.on_validation_end(trainer(value), None)  # type: ignore[arg-type]
    assert second.pruned and second.state_dict() == whole.state_dict()


def test_outside_of_a_sweep_nothing_is_pruned(tmp_path):
    callback = Pruning(run_directory=tmp_path, monitor="val/loss", mode="min")
    callback.on_fit_start(trainer(0.5), None)  # type: ignore[arg-type]
    callback.on_validation_end(trainer(0.5), None)  # type: ignore[arg-type]
    assert callback.reporter is None and not callback.pruned
