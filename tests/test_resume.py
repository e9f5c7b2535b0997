"""Interrupted anywhere and resumed = never interrupted, bit for bit."""

from __future__ import annotations

import csv
import os
import re
import runpy
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback

from quartet import build
from quartet.commands.train import create_and_train
from quartet.engine import checkpoint
from quartet.engine.fit import train
from quartet.run import Run

PROJECT = Path(__file__).parents[1]
SETTINGS = {
    "transformer": "model=transformer model.d_model=16 model.n_layers=1 model.n_heads=2 model.d_ff=32 model.dropout=0.2 "
    "data.context_length=32",
    "rnn": "model=rnn model.d_hidden=16 model.n_layers=1 model.dropout=0.2 data.context_length=32",
    "image": "model=image_small model.widths=[4,8] data.augment.crop=1 data.augment.mixup=0.4",
    "mlp": "model=mlp model.hidden=[16] model.dropout=0.2",
}
# 14 steps in epochs of 5, a validation every 4 steps, a checkpoint every 3
SHORT = (
    "data.batch_size=8 trainer.accelerator=cpu trainer.max_steps=14 trainer.max_epochs=-1 trainer.val_check_interval=4 "
)
SHORT += "++trainer.limit_train_batches=5 trainer.log_every_n_steps=1 callbacks.checkpoint.every_n_steps=3 "
SHORT += "callbacks.figures=null callbacks.samples=null callbacks.data_report=null callbacks.throughput=null"


class Killed(BaseException):
    """As by SIGKILL: nothing of ours runs after it."""


class Killer(Callback):
    """Ends the run before or after a step, or within a validation."""

    def __init__(self, moment: str, at: int):
        self.moment, self.at, self.n = moment, at, 0

    def strike(self, moment: str) -> None:
        self.n += moment == self.moment
        if moment == self.moment and self.n == self.at:
            raise Killed

    def on_train_batch_start(self, *_):
        self.strike("before a step")

    def on_before_optimizer_step(self, *_):
        self.strike("in a step")

    def on_validation_batch_end(self, *_):
        self.strike("in a validation")

    def on_validation_end(self, *_):
        self.strike("after a validation")

    def on_test_batch_end(self, *_):
        self.strike("in the test")


@pytest.fixture
def started(compose, small_text, monkeypatch):
    """started("mlp", …) -> a finished run; with `kill=(moment, n)` one that was killed there."""
    made = build.build_callbacks

    def start(family: str, *overrides: str, kill: tuple[str, int] | None = None) -> Run:
        config = compose(*SETTINGS[family].split(), *SHORT.split(), *overrides)
        if kill is None:
            return create_and_train(config)[0]
        with monkeypatch.context() as patch:
            patch.setattr(build, "build_callbacks", lambda *a: [*made(*a), Killer(*kill)])
            patch.setattr(Run, "mark_failed", lambda *_, **__: None)
            if kill[0] == "while saving":
                patch.setattr(checkpoint.os, "replace", Strike(kill[1]))
            with pytest.raises(Killed):
                create_and_train(config)
        return Run.open_for_resume("latest")

    return start


class Strike:
    """In place of `os.replace` for checkpoints: the n-th is never put in place."""

    def __init__(self, at: int):
        self.at, self.replace, self.n = at, checkpoint.os.replace, 0

    def __call__(self, source: Path, target: Path) -> None:
        self.n += str(target).endswith(".ckpt")
        if self.n == self.at and str(target).endswith(".ckpt"):
            raise Killed
        self.replace(source, target)


def assert_same(run: Run, undisturbed: Run) -> None:
    """Weights, optimizer, schedule, best checkpoint, logged values and result."""
    for name in ("last.ckpt", "best.ckpt"):
        here, there = (torch.load(r.checkpoints / name, weights_only=True) for r in (run, undisturbed))
        for timing in (here, there):
            # how often plateau schedules were asked whether they are due is Lightning's own affair
            timing.get("loops", {}).get("fit_loop", {}).pop("epoch_loop.scheduler_progress", None)
            for key in [key for key in timing.get("callbacks", {}) if key.startswith("History")]:
                timing["callbacks"][key].pop("seconds")
        assert_equal(here, there, name)
    assert rows(run) == rows(undisturbed)
    assert run.status == "completed"
    mine, theirs = run.read("result.json"), undisturbed.read("result.json")
    assert [mine[key] for key in ("metrics", "steps", "epochs")] == [
        theirs[key] for key in ("metrics", "steps", "epochs")
    ]


def assert_equal(here, there, where: str) -> None:
    if isinstance(here, torch.Tensor):
        assert torch.equal(here, there), where
    elif isinstance(here, dict):
        assert here.keys() == there.keys(), where
        for key in here:
            assert_equal(here[key], there[key], f"{where}/{key}")
    elif isinstance(here, list | tuple):
        assert len(here) == len(there), where
        for i, (a, b) in enumerate(zip(here, there, strict=True)):
            assert_equal(a, b, f"{where}/{i}")
    else:
        assert here == there or (here != here and there != there), where


def rows(run: Run) -> list[dict[str, str]]:
    with (run.directory / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# checkpoints are taken before steps 4, 5, 8, 9 and 12; batches 6 and 11 begin epochs. benchmarks/resume.py tries all moments
MOMENTS = [("before a step", n) for n in (3, 5, 6, 14)] + [("in a step", 9), ("in a validation", 3), ("in the test", 1)]
MOMENTS += [("while saving", 2), ("while saving", 3)]


FEW = [("before a step", 6), ("in a step", 9), ("in a validation", 3), ("while saving", 2)]


@pytest.mark.parametrize("family", SETTINGS)
def test_killed_anywhere_and_resumed_is_never_killed(started, family):
    undisturbed = started(family)
    for moment in MOMENTS if family in ("rnn", "mlp") else FEW:  # a state that is carried, and the quickest
        run = started(family, kill=moment)
        train(run)
        assert_same(run, undisturbed)


VARIANTS = {
    "gradient accumulation": "trainer.accumulate_grad_batches=4 ++trainer.limit_train_batches=12 trainer.max_steps=6 "
    "data.batch_size=4",
    "averaging": "callbacks=ema",
    "one cycle": "scheduler=one_cycle optimizer=adam",
    "plateau": "scheduler=plateau scheduler.patience=0 optimizer.lr=0.5 optimizer=sgd",
    "epochs": "trainer.max_steps=-1 trainer.max_epochs=3 trainer.val_check_interval=1.0",
    "half epochs": "trainer.max_steps=-1 trainer.max_epochs=3 trainer.val_check_interval=0.5",
    "early stopping": "callbacks=early_stopping callbacks.early_stopping.patience=2 optimizer=sgd optimizer.lr=2.0 seed=1",
    "penalties": "task.l1=1e-3 task.l2=1e-3 optimizer=adagrad",
    "ensemble": "model.ensemble=4 optimizer=rmsprop",
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_holds_for_each_way_of_training(started, variant):
    overrides = VARIANTS[variant].split()
    undisturbed = started("mlp", *overrides)
    for moment in [*FEW[:1], ("in a step", 5), *FEW[2:]]:  # accumulation has six steps
        run = started("mlp", *overrides, kill=moment)
        train(run)
        assert_same(run, undisturbed)


# the command


TINY = [
    "model=mlp",
    "model.hidden=[8]",
    "callbacks.figures=null",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
]


def test_an_interrupted_command_says_how_to_go_on_and_going_on_gives_the_same(start, script, tmp_path):
    settings = [*TINY, "trainer.max_epochs=40", "callbacks.checkpoint.every_n_steps=5"]
    undisturbed = tmp_path / "undisturbed"
    assert script("train", *settings, f"run.dir={undisturbed}").returncode == 0
    process = start("train", *settings, f"run.dir={tmp_path / 'run'}")
    run = Run(tmp_path / "run")
    deadline = time.monotonic() + 100
    while run.last_checkpoint is None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    ended = process.wait(60)
    errors = ended.stderr
    assert ended.returncode == 143 and run.status == "interrupted", errors
    assert re.search(r"interrupted by SIGTERM; .*python.* \S*scripts/train.py resume=run$", errors, re.M)
    assert "Traceback" not in errors
    resumed = script("train", f"resume={run.directory}")
    assert resumed.returncode == 0 and "resuming from its last checkpoint" in resumed.stdout, resumed.stderr
    states = [torch.load(d / "checkpoints" / "best.ckpt", weights_only=True) for d in (run.directory, undisturbed)]
    assert_equal(states[0], states[1], "best.ckpt")
    again = script("train", f"resume={run.directory}")
    assert (
        again.returncode == 1
        and "is completed; its schedule ends where it did: to train longer, start a new run" in again.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resume=latest"], "no run below .* was interrupted or killed; name one that failed or was pruned"),
        (["resume=nowhere"], r"resume=nowhere is not a run directory \(no config.yaml in it\); try resume=latest"),
        (["resume=latest", "optimizer.lr=1"], r"resume=latest resumes a run as it was; leave out optimizer.lr=1"),
        (["-m", "resume=latest"], "resume=latest resumes a run as it was; leave out -m"),
        (
            ["model=mlp", "trainer=fsdp", "callbacks=ema"],
            "callbacks.ema averages whole weights, trainer=fsdp holds shards",
        ),
        (["model=mlp", "trainer=ddp", "trainer.num_nodes=2"], "trainer.num_nodes above 1 needs run.dir=<a directory"),
        (
            ["model=mlp", "callbacks.checkpoint.every_n_steps=0"],
            "every_n_steps must be an integer of at least 1 or null",
        ),
        (["model=mlp", "callbacks.checkpoint.every_minutes=-1"], "every_minutes must be a number above 0 or null"),
        (["model=mlp", "workers.max_restarts=-1"], "workers.max_restarts must be an integer of at least 0"),
    ],
)
def test_what_cannot_be_asked_for(outputs, monkeypatch, capsys, arguments, message):
    """In this process: importing torch again for each is what would take long."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(PROJECT / "scripts" / "train.py"), run_name="__main__")
    errors = capsys.readouterr().err
    assert re.search(message, errors), errors
    assert "Traceback" not in errors and not list(outputs.rglob("config.yaml"))


def test_a_run_is_trained_by_one_process_at_a_time(started):
    run = started("mlp", kill=("before a step", 5))
    with (
        run.exclusively(),
        pytest.raises(BlockingIOError, match="is being trained by another process; stop that one first"),
    ):
        train(run)
    assert run.status == "unfinished"
    train(run)
    assert run.status == "completed"


def test_latest_to_go_on_with_is_the_newest_that_is_not_completed(started):
    killed = started("mlp", kill=("before a step", 5))
    started("mlp")
    assert Run.open_for_resume("latest").directory == killed.directory


def test_a_run_that_was_killed_before_it_had_read_its_data_starts_anew(started):
    undisturbed = started("mlp")
    run = started("mlp", kill=("before a step", 2))
    for name in ("preprocessing.json", "data.json"):
        (run.directory / name).unlink()
    train(run)
    assert_same(run, undisturbed)
