"""A step never looks at what a device has computed: the processor would wait for it. `meta` has nothing to look at."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from quartet.callbacks.monitors import FiniteLoss
from quartet.commands.train import create
from quartet.data.base import moved
from quartet.engine.fit import prepare

FAMILIES = {
    "transformer": ["model=transformer", "model.n_layers=1", "model.d_model=16", "model.n_heads=2", "model.d_ff=16"],
    "rnn": ["model=rnn", "optimizer=adamw", "model.n_layers=1", "model.d_hidden=8", "model.d_embedding=8"],
    "image": ["model=image_small", "model.widths=[4,8]", "data.augment.mixup=0.2"],
    "mlp": ["model=mlp", "model.hidden=[8]", "model.ensemble=2", "task.label_smoothing=0.1"],
    "regression": ["model=mlp", "data=diabetes", "model.hidden=[8]"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_training_waits_for_nothing(compose, small_text, family):
    words = [*FAMILIES[family], "data.batch_size=4", "trainer.accelerator=cpu", "trainer.log_every_n_steps=100"]
    fused = [] if "optimizer=adamw" in words else ["optimizer=muon"]
    run, data = create(compose(*words, *fused, "optimizer.fused=false"))
    parts: Any = prepare(run, data)
    parts.trainer.strategy.connect(parts.task)
    parts.task.trainer = data.trainer = parts.trainer
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)

    task, meta = parts.task.to("meta"), torch.device("meta")
    optimizer = parts.task.make_optimizer(task.network)
    finite = FiniteLoss()
    for _ in range(2):
        loss = task.training_step(moved(batch, meta), 0)
        finite.on_before_backward(parts.trainer, task, loss)
        loss.backward()
        task.configure_gradient_clipping(optimizer, 1.0, "norm")
        optimizer.step()
    with pytest.raises((RuntimeError, NotImplementedError)):  # so would any look at a value
        loss.item()
