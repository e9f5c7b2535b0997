"""What an optimizer step is made of, when training is validated, and how long it goes on."""

from __future__ import annotations

import csv
import itertools

import pytest
import torch

from quartet import build
from quartet.commands.train import create_and_train
from quartet.engine.fit import prepare
from quartet.run import Run

TINY = ["model=mlp", "model.hidden=[8]", "model.dropout=0", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1"]
TINY += ["callbacks.figures=null", "callbacks.data_report=null", "test=false"]


@pytest.fixture
def table(tmp_path):
    """240 training rows."""
    rows = [f"{i * 37 % 101},{i * i % 23},{'ny'[i * 7 % 11 > 5]}" for i in range(300)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,y", *rows]), encoding="utf-8")
    return [*TINY, "data=csv", f"data.path={tmp_path / 't.csv'}", "data.target=y"]


def column(run: Run, name: str) -> dict[int, float]:
    """Step -> value."""
    with open(run.directory / "metrics.csv", encoding="utf-8") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def validations(compose, *words: str) -> list[int]:
    """Numbers of steps after which there was one; Lightning counts them from 0."""
    return [step + 1 for step in sorted(column(create_and_train(compose(*words))[0], "val/loss"))]


def by_hand(run: Run, window: int) -> list[float]:
    """Norms of the mean gradient over each window of the first epoch, at the first weights."""
    parts = prepare(run)
    parts.data.trainer = parts.trainer
    norms = []
    batches = iter(parts.data.train_dataloader())
    parts.task.network.train()
    while window_ := list(itertools.islice(batches, window)):
        x = torch.cat([batch["inputs"]["numeric"] for batch in window_])
        y = torch.cat([batch["target"] for batch in window_])
        parts.task.network.zero_grad()
        inputs = {"numeric": x, "categorical": torch.cat([batch["inputs"]["categorical"] for batch in window_])}
        torch.nn.functional.cross_entropy(parts.task.network(**inputs), y).backward()
        norms.append(float(torch.cat([p.grad.flatten() for p in parts.task.network.parameters()]).norm()))
    return norms


@pytest.mark.parametrize("window", [1, 2, 4, 5])
def test_every_step_has_the_mean_gradient_of_a_whole_window(compose, table, window):
    """Six batches of 40 in an epoch; what does not fill a window is left out, and other samples in each epoch."""
    words = [*table, "optimizer=sgd", "optimizer.lr=1e-12", "model.normalization=none", "trainer.max_epochs=2"]
    words += ["data.batch_size=40", f"trainer.accumulate_grad_batches={window}", "trainer.gradient_clip_val=null"]
    run, result = create_and_train(compose(*words))
    assert result["steps"] == 2 * (6 // window)
    logged = list(column(run, "optim/gradient_norm").values())[: 6 // window]
    (run.directory / "checkpoints" / "last.ckpt").unlink()
    assert logged == pytest.approx(by_hand(run, window), rel=1e-4)


def test_an_epoch_too_short_for_one_step_is_refused(compose, table, outputs):
    words = [*table, "data.batch_size=40", "trainer.accumulate_grad_batches=7"]
    with pytest.raises(
        ValueError, match=r"a step takes 280 samples .*batch_size=40 × .*=7 × 1 workers.* 240 to train on"
    ):
        create_and_train(compose(*words))
    assert not list(outputs.rglob("config.yaml"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("trainer.max_steps=8 trainer.max_epochs=-1 trainer.val_check_interval=2", [2, 4, 6, 8]),
        ("trainer.max_steps=5 trainer.max_epochs=-1 trainer.val_check_interval=3", [3, 5]),
        ("trainer.max_epochs=6 trainer.val_check_interval=100", [6]),
        ("trainer.max_epochs=6 trainer.check_val_every_n_epoch=3", [3, 6]),
        ("trainer.max_epochs=2 data.batch_size=10 trainer.val_check_interval=0.5", [3, 6, 9, 12]),
    ],
)
def test_validations_follow_whole_optimizer_steps(compose, table, words, expected):
    """Six batches of 40, or 24 of 10, with windows of 4."""
    words = [*table, "trainer.accumulate_grad_batches=4", "data.batch_size=40", *words.split()]
    assert validations(compose, *words) == expected


def test_validations_every_third_epoch(compose, table):
    words = [*table, "data.batch_size=34", "trainer.max_epochs=6", "trainer.check_val_every_n_epoch=3"]
    assert validations(compose, *words) == [21, 42]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "trainer.max_epochs=-1 trainer.max_steps=-1 trainer.max_time=00:00:00:03",
            "max_epochs are both -1, and schedules",
        ),
        (
            "trainer.check_val_every_n_epoch=2 trainer.val_check_interval=5",
            "check_val_every_n_epoch=2 counts epochs and trainer.val_check_interval=5 steps",
        ),
        ("trainer.max_epochs=3 trainer.check_val_every_n_epoch=4", "is never reached in trainer.max_epochs=3"),
        ("trainer.check_val_every_n_epoch=0", "must be an integer of at least 1 or null"),
        ("trainer.accumulate_grad_batches=4 +trainer.limit_train_batches=10", "must be a multiple of"),
        ("trainer.accumulate_grad_batches=4 +trainer.limit_train_batches=0.3", "must be an integer of batches"),
        (
            "+trainer.overfit_batches=-1",
            "trainer.overfit_batches must be an integer of at least 0 or a number from 0 to 1",
        ),
        ("seed=4294967296", "seed must be an integer from 0 to 4294967295, not 4294967296"),
    ],
)
def test_what_cannot_be_is_refused(compose, words, message):
    with pytest.raises(ValueError, match=message):
        build.check(compose("model=mlp", *words.split()))


@pytest.mark.parametrize("key", ["num_sanity_val_steps=2", "enable_model_summary=true", "logger=false"])
def test_what_quartet_sets_itself_says_so(compose, key, outputs):
    with pytest.raises(
        ValueError, match=f"^{key.split('=')[0]} of pytorch_lightning.Trainer is set by Quartet; leave it out"
    ):
        create_and_train(compose(*TINY, f"+trainer.{key}"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*TINY, "model.normalization=batch"], "use model.normalization=layer, or data.batch_size=2 or more"),
        (["model=image", "data=digits"], "one value of each channel; use data.batch_size=2 or more"),
    ],
)
def test_batch_normalisation_needs_more_than_one_sample(compose, words, message, outputs):
    with pytest.raises(ValueError, match=message):
        create_and_train(compose(*words, "data.batch_size=1", "trainer.accelerator=cpu"))
    assert not list(outputs.rglob("config.yaml")), "refused before it began"


def test_overfitting_sees_the_same_batch_and_drives_its_loss_to_0(compose):
    words = [*TINY, "trainer=overfit", "trainer.accelerator=cpu", "data.batch_size=16", "task.label_smoothing=0"]
    config = compose(*words, "trainer.max_steps=60", "optimizer.lr=3e-2", "trainer.val_check_interval=20")
    run, result = create_and_train(config)
    losses = column(run, "train/loss")
    assert result["metrics"]["val/loss"] < 0.02 < 0.3 < losses[min(losses)]
    validated = list(column(run, "val/loss").values())
    assert len(validated) == 3 and validated[2] < validated[1] < validated[0], "on the batch that it is trained on"
    parts = prepare(run)
    parts.data.trainer, loader = parts.trainer, None
    for epoch in range(3):
        loader = parts.data.train_dataloader()
        loader.position = None
        loader.seek(epoch, 0)
        first = next(iter(loader))["index"]
        validated = next(iter(parts.data.val_dataloader()))["index"]
        assert torch.equal(first, validated)


def test_a_limited_validation_sees_the_same_batches_each_time(compose, table):
    words = [*table, "data.batch_size=10", "+trainer.limit_val_batches=1", "optimizer=sgd", "optimizer.lr=1e-12"]
    run, _ = create_and_train(compose(*words, "trainer.max_epochs=3", "model.normalization=none"))
    assert len(set(column(run, "val/loss").values())) == 1
