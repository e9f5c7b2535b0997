"""The private parts of Lightning that Quartet relies on: each fails here by name if another version has changed it."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer

from quartet.callbacks.monitors import Throughput
from quartet.engine.checkpoint import Checkpoints
from quartet.engine.fit import History
from quartet.sweeps.pruning import Pruning
from quartet.system import lightning_compat as compat


@pytest.mark.parametrize("function", [compat.logged_step, compat.batches_seen, compat.correct_logged_step])
def test_the_counters_of_a_trainer_are_where_they_were_read(function):
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert function(trainer) in (0, (0, 0), None)


def test_a_state_has_the_progress_of_batches(tmp_path):
    trainer = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    state = {"loops": {"fit_loop": trainer.fit_loop.state_dict()}}
    state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] = 1
    compat.count_completed_batches(state)
    assert trainer.fit_loop.state_dict().keys() == state["loops"]["fit_loop"].keys()
    assert state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 0
    assert callable(trainer._checkpoint_connector.dump_checkpoint)


def test_an_optimizer_is_unwrapped():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    assert compat.unwrap_optimizer(LightningOptimizer(optimizer)) is optimizer is compat.unwrap_optimizer(optimizer)


def test_checkpoints_of_former_versions_find_their_callbacks(tmp_path):
    """The state of a callback is stored under this key."""
    monitored = {"run_directory": tmp_path, "monitor": "val/loss", "mode": "min"}
    checkpoints = Checkpoints(every_n_steps=None, every_minutes=None, **monitored)
    callbacks = [checkpoints, Pruning(**monitored), History("val/loss", "min"), Throughput()]
    assert [callback.state_key for callback in callbacks] == ["Checkpoints", "Pruning", "History", "Throughput"]
