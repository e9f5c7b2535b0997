"""The loop over batches makes Lightning's steps: the same hooks, weights and logged values, only sooner."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import LambdaCallback

from quartet.commands.train import create
from quartet.engine import fit
from quartet.engine.weights import read_checkpoint
from quartet.system import loop

TINY = ["model=mlp", "model.hidden=[8]", "trainer.accelerator=cpu", "trainer.log_every_n_steps=2", "test=false"]
TINY += ["trainer.max_epochs=2", "data.batch_size=64", "callbacks.figures=null", "callbacks.data_report=null"]


class Diary(Callback):
    """Notes each hook with the step, and logs as users do."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.entries.append(("start", trainer.global_step, batch_idx, batch["index"].tolist()))

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.entries.append(("zero", trainer.global_step, type(optimizer)))

    def on_before_backward(self, trainer, pl_module, loss):
        self.entries.append(("backward", trainer.global_step, loss.item()))

    def on_after_backward(self, trainer, pl_module: Any):
        self.entries.append(("gradient", sum(p.grad.sum().item() for p in pl_module.network.parameters())))
        pl_module.log("mine/after_backward", 2.0 * trainer.global_step)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.entries.append(("step", trainer.global_step, optimizer.param_groups[0]["lr"]))

    def on_train_batch_end(self, trainer, pl_module, outputs: Any, batch, batch_idx):
        self.entries.append(
            ("end", trainer.global_step, batch_idx, outputs["loss"].item(), outputs["loss"].requires_grad)
        )
        pl_module.log("mine/end", 1.0 + trainer.global_step)


def diary_of(config) -> tuple[list[Any], dict[str, torch.Tensor], list[dict[str, str]], dict[str, Any]]:
    """The entries, the last weights, the logged rows without times, and what was counted."""
    diary = Diary()
    run, data = create(config)
    parts = fit.prepare(run, data)
    # an instance with a hook of its own
    note = LambdaCallback(on_before_zero_grad=lambda *_: diary.entries.append("a hook of the instance"))
    parts.trainer.callbacks += [diary, note]  # type: ignore[attr-defined]
    parts.trainer.fit(parts.task, datamodule=data)
    with open(run.directory / "metrics.csv", encoding="utf-8") as file:
        rows = [{k: v for k, v in row.items() if v and "throughput" not in k} for row in csv.DictReader(file)]
    merged: dict[str, dict[str, str]] = {}
    for row in rows:
        merged.setdefault(row["step"], {}).update(row)
    return (
        diary.entries,
        read_checkpoint(run.checkpoints / "last.ckpt")["state_dict"],
        list(merged.values()),
        parts.trainer.fit_loop.state_dict(),
    )


@pytest.mark.parametrize(
    "words",
    [
        "optimizer=adamw",
        "optimizer=muon trainer.gradient_clip_val=null task.label_smoothing=0.1",
        "scheduler=plateau trainer.val_check_interval=3",
        "callbacks=ema trainer.precision=bf16-mixed",
        "trainer.accumulate_grad_batches=2",
    ],
)
def test_steps_are_lightning_s_own(compose, monkeypatch, words):
    entries, weights, rows, counts = diary_of(compose(*TINY, *words.split()))
    monkeypatch.setattr(loop, "install", lambda trainer: None)
    expected, expected_weights, expected_rows, expected_counts = diary_of(compose(*TINY, *words.split()))
    assert entries == expected and len(entries) > 20 and counts == expected_counts
    assert "a hook of the instance" in entries
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(value, expected_weights[name]) for name, value in weights.items())
    assert [row.keys() for row in rows] == [row.keys() for row in expected_rows]
    for row, other in zip(rows, expected_rows, strict=True):
        assert {k: float(v) for k, v in row.items()} == pytest.approx({k: float(v) for k, v in other.items()}, rel=1e-6)
