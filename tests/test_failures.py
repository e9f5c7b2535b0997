"""What stops a run from outside or within: what was reached is kept, and one line says what to do."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

from quartet.commands.evaluate import evaluate
from quartet.commands.train import create_and_train
from quartet.engine import checkpoint
from quartet.engine.fit import train
from quartet.run import Run
from quartet.tasks.base import Task

SMALL = "model=mlp model.hidden=[4] data.batch_size=64 trainer.accelerator=cpu trainer.max_epochs=-1 callbacks=none "
SMALL += "logger=none trainer.val_check_interval=2 trainer.max_steps=8"


def content(run: Run, name: str = "last.ckpt") -> dict:
    return torch.load(run.checkpoints / name, weights_only=True)


def only_run(outputs: Path) -> Run:
    (config,) = outputs.rglob("config.yaml")
    return Run(config.parent)


# a full disk


class FullDisk:
    """In place of a function of `os`: from the n-th call on the disk is full."""

    def __init__(self, function, n: int):
        self.function, self.left = function, n

    def __call__(self, *arguments):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.function(*arguments)


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_loses_no_earlier_checkpoint(compose, outputs, monkeypatch, where):
    """Full when the second last.ckpt is written: the first is whole, and with room the run ends as if undisturbed."""
    undisturbed, _ = create_and_train(compose(*SMALL.split()))
    shutil.move(undisturbed.directory, outputs.parent / "undisturbed")
    with monkeypatch.context() as patch:
        write = checkpoint.write
        full = FullDisk(getattr(os, where), 0)
        names: list[str] = []

        def write_until_full(state, path):
            names.append(path.name)
            if names.count("last.ckpt") == 2:
                patch.setattr(checkpoint.os, where, full)
            write(state, path)

        patch.setattr(checkpoint, "write", write_until_full)
        with pytest.raises(OSError) as error:
            create_and_train(compose(*SMALL.split()))
    run = only_run(outputs)
    said = f"the disk of {run} is full: make room and retry with resume={run}; its last checkpoint is intact"
    assert str(error.value) == said
    assert {path.name for path in run.checkpoints.iterdir()} == {"best.ckpt", "last.ckpt"}, "nothing half-written"
    assert content(run)["global_step"] == 2 and not content(run)["finished"]
    train(Run.open_for_resume(str(run.directory)))
    assert run.status == "completed"
    there = content(Run(outputs.parent / "undisturbed"))["state_dict"]
    assert all(torch.equal(x, there[name]) for name, x in content(run)["state_dict"].items())


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 1.1 MB, mounted for this test; skipped where that is not allowed."""
    where = tmp_path / "disk"
    where.mkdir()
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("only root mounts a disk; test_a_full_disk_loses_no_earlier_checkpoint needs none")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1100k", "tmpfs", str(where)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no disk can be mounted here: {made.stderr.decode().strip()}")
    yield where
    subprocess.run(["umount", "--lazy", str(where)], check=True)


def test_a_disk_that_is_full_in_earnest(tiny_disk, script):
    """The command line where there is room for best.ckpt (190 KB) and one last.ckpt (560 KB), and again with more."""
    words = [*SMALL.split(), "model.hidden=[200,200]", "trainer.max_steps=40", f"run.dir={tiny_disk}/run"]
    first = script("train", *words)
    run = Run(tiny_disk / "run")
    said = (
        "error: the disk of disk/run is full: make room and retry with resume=disk/run; its last checkpoint is intact\n"
    )
    assert (first.returncode, first.stderr) == (1, said)
    assert content(run)["global_step"] > 0
    subprocess.run(["mount", "-o", "remount,size=8m", str(tiny_disk)], check=True)
    second = script("train", f"resume={run.directory}")
    assert (second.returncode, second.stderr) == (0, "") and content(run)["global_step"] == 40


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("call", ["mkdir", "write_text"])
def test_no_place_for_a_new_run(compose, outputs, monkeypatch, code, call):
    def refuse(self, *arguments, **settings):
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, call, refuse)
    with pytest.raises(OSError) as error:
        create_and_train(compose(*SMALL.split()))
    remedy = "make room or name another place with run.root=…, run.dir=… or QUARTET_OUTPUTS"
    assert str(error.value) == f"no run can be written to {outputs} ({os.strerror(code)}); {remedy}"
    assert not list(outputs.rglob("*.yaml"))


def test_a_file_where_the_outputs_should_be(compose, outputs):
    outputs.write_text("")
    with pytest.raises(OSError, match=r"no run can be written to .*outputs \(.*\); make room or name another place"):
        create_and_train(compose(*SMALL.split()))


def test_a_disk_that_fills_while_the_data_are_read(compose, outputs, monkeypatch):
    opening = Path.open

    def refuse(self, *arguments, **settings):
        if "preprocessing.json" in self.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return opening(self, *arguments, **settings)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OSError, match=r"no run can be written to .*outputs.* \(No space left on device\); make room"):
        create_and_train(compose(*SMALL.split()))
    assert not list(outputs.rglob("*.yaml")), "no half-written run"


# many at once


def _one_of_many(config, start, failures) -> None:
    """A run in a process of its own, begun together with the others."""
    torch.set_num_threads(1)
    start.wait()
    try:
        create_and_train(config)
    except BaseException:
        failures.put(traceback.format_exc())


def test_many_runs_at_once_in_one_folder_are_as_many_results(compose, outputs):
    """Each is complete, and is what it would be alone: its metrics are those of its seed."""
    n, fork = 16, multiprocessing.get_context("fork")
    short = [*SMALL.split(), "trainer.max_steps=2"]
    alone = {seed: create_and_train(compose(*short, f"seed={seed}"))[1]["metrics"] for seed in range(3)}
    shutil.rmtree(outputs)
    start, failures = fork.Barrier(n), fork.SimpleQueue()
    configs = [compose(*short, f"seed={i % 3}") for i in range(n)]
    processes = [fork.Process(target=_one_of_many, args=(config, start, failures)) for config in configs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert failures.empty(), failures.get()
    runs = [Run(path.parent) for path in outputs.rglob("config.yaml")]
    assert len(runs) == n and sorted(run.config.seed for run in runs) == sorted(i % 3 for i in range(n))
    for run in runs:
        files = {
            path.name
            for path in run.directory.rglob("*")
            if path.is_file() and path.suffix not in (".diff", "") and "tfevents" not in path.name
        }
        assert files == {"config.yaml", "environment.json", "preprocessing.json", "data.json", "metrics.csv", "result.json",
                         "best.ckpt", "last.ckpt"}  # fmt: skip
        assert run.status == "completed" and content(run)["finished"]
        assert run.read("result.json")["metrics"] == pytest.approx(alone[run.config.seed], rel=1e-5)


# a loss that is no number


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_the_weights(compose, outputs, monkeypatch, value):
    """At step 6; last.ckpt is from before step 5, after the validation of step 4."""
    step = Task.training_step

    def broken(self, batch, index):
        return step(self, batch, index) * (value if self.trainer.global_step == 5 else 1.0)

    monkeypatch.setattr(Task, "training_step", broken)
    networks = []
    monkeypatch.setattr(Task, "on_exception", lambda *_: None, raising=False)
    fit = Task.configure_optimizers
    monkeypatch.setattr(Task, "configure_optimizers", lambda self: networks.append(self.network) or fit(self))
    with pytest.raises(ValueError) as error:
        create_and_train(compose(*SMALL.split(), "callbacks=default", "callbacks.figures=null"))
    assert str(error.value) == (
        f"the loss of step 6 is {value}: training broke down; try a smaller optimizer.lr, a smaller "
        "trainer.gradient_clip_val or trainer.precision=32-true"
    )
    run = only_run(outputs)
    assert run.status == "failed" and content(run)["global_step"] == 4
    assert all(x.isfinite().all() for x in content(run)["state_dict"].values())
    assert all(x.isfinite().all() for x in networks[0].state_dict().values()), "not a weight was harmed"
    assert evaluate(run, "val")["val/loss"] < 10


# memory


CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B"


NO_MEMORY = pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory.\nTried"), RuntimeError(CPU), MemoryError()]
)


@NO_MEMORY
def test_a_network_that_does_not_fit_says_so_and_leaves_no_run(compose, outputs, monkeypatch, error):
    def too_large(*_, **__):
        raise error

    monkeypatch.setattr("quartet.build.build_task", too_large)
    with pytest.raises(ValueError, match="out of memory before the first step: the network or the data are too large"):
        create_and_train(compose(*SMALL.split()))
    assert not list(outputs.rglob("config.yaml"))


@NO_MEMORY
@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        ("data.batch_size=64", "with data.batch_size=64; try data.batch_size=32 trainer.accumulate_grad_batches=2"),
        (
            "data.batch_size=9 trainer.accumulate_grad_batches=3",
            "with data.batch_size=9; try data.batch_size=4 trainer.accumulate_grad_batches=6",
        ),
        (
            "data.batch_size=1 model.normalization=layer",
            "with data.batch_size=1; one sample is too much: use a smaller model or shorter",
        ),
    ],
)
def test_out_of_memory_says_how_to_need_less(compose, outputs, monkeypatch, error, overrides, remedy):
    def fail(self, batch, index):
        raise error

    monkeypatch.setattr(Task, "training_step", fail)
    with pytest.raises(ValueError) as raised:
        create_and_train(compose(*SMALL.split(), *overrides.split()))
    assert str(raised.value).startswith(f"out of memory {remedy}") and "\n" not in str(raised.value)
    run = only_run(outputs)
    assert run.status == "failed" and type(error).__name__ in (run.directory / "error.txt").read_text(encoding="utf-8")
