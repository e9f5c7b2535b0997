"""Signals to a job that submitit started: SLURM's are answered otherwise than a person's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pytorch_lightning import Callback

from quartet import build
from quartet.commands.train import create_and_train
from quartet.engine.fit import train
from quartet.run import Run
from quartet.system.signals import Interrupted, request, stoppable, stopping

SMALL = (
    "model=mlp model.hidden=[8] trainer.max_epochs=4 trainer.accelerator=cpu callbacks.checkpoint.every_minutes=null "
)
SMALL += "callbacks.figures=null callbacks.data_report=null"


@pytest.fixture
def submitit(monkeypatch):
    """submitit("slurm") -> the signals that its handler heard, as in a job of submitit."""

    def pretend(executor: str) -> list[int]:
        heard: list[int] = []
        monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
        signal.signal(signal.SIGUSR2, lambda signum, frame: heard.append(signum))
        return heard

    former = signal.getsignal(signal.SIGUSR2)
    yield pretend
    signal.signal(signal.SIGUSR2, former)


def test_outside_of_submitit_its_signal_is_nobody_s():
    former = signal.getsignal(signal.SIGUSR2)
    with stoppable():
        assert signal.getsignal(signal.SIGUSR2) is former


@pytest.mark.parametrize("executor", ["slurm", "local"])
def test_submitit_s_signal_stops_and_is_passed_on_once(submitit, executor):
    heard = submitit(executor)
    with pytest.raises(Interrupted, match="interrupted by SIGUSR2") as stop, stoppable(), stoppable():
        os.kill(os.getpid(), signal.SIGUSR2)
    assert heard == [signal.SIGUSR2] and stop.value.exit_code == 128 + signal.SIGUSR2


def test_the_signal_can_have_another_name(submitit, monkeypatch):
    submitit("slurm")
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    assert stopping() == (signal.SIGINT, signal.SIGUSR1)


def test_sigterm_of_slurm_stops_nothing(submitit):
    """A job that ends in its grace time is not started again by SLURM 22.05 (tried)."""
    submitit("slurm")
    with stoppable() as noted:
        os.kill(os.getpid(), signal.SIGTERM)
        assert noted.save and noted.signum is None
    submitit("local")
    with pytest.raises(Interrupted), stoppable():
        os.kill(os.getpid(), signal.SIGTERM)


class Signals(Callback):
    """Sends `signum` in step `at` and says what was there two steps later."""

    def __init__(self, signum: int, at: int):
        self.signum, self.at, self.saved = signum, at, False

    def on_before_optimizer_step(self, trainer, *_):
        if trainer.global_step == self.at:
            assert not (trainer_directory(trainer) / "checkpoints" / "last.ckpt").exists()
            os.kill(os.getpid(), self.signum)
        if trainer.global_step == self.at + 2:
            self.saved = (trainer_directory(trainer) / "checkpoints" / "last.ckpt").exists()


def trainer_directory(trainer):
    return Path(trainer.default_root_dir)


@pytest.fixture
def disturbed(compose, monkeypatch):
    def run(signum: int) -> tuple[Signals, Run | None]:
        callback, made = Signals(signum, at=3), build.build_callbacks
        with monkeypatch.context() as patch:
            patch.setattr(build, "build_callbacks", lambda *words, **more: [*made(*words, **more), callback])
            try:
                return callback, create_and_train(compose(*SMALL.split()))[0]
            except Interrupted:
                return callback, None

    return run


def test_sigterm_of_slurm_makes_a_checkpoint_and_training_goes_on(submitit, disturbed):
    submitit("slurm")
    callback, run = disturbed(signal.SIGTERM)
    assert callback.saved and run is not None and run.status == "completed" and not request.save


def test_submitit_s_signal_saves_and_the_run_goes_on_in_its_directory(submitit, disturbed, outputs):
    heard = submitit("slurm")
    _, none = disturbed(signal.SIGUSR2)
    (directory,) = [path.parent for path in outputs.glob("*/*/config.yaml")]
    assert none is None and heard == [signal.SIGUSR2] and Run(directory).status == "interrupted"
    assert Run(directory).last_checkpoint is not None
    result = train(Run(directory))
    assert result["status"] == "completed" and result["epochs"] == 4


INTERRUPTED = """
import os, runpy, signal, sys
class Hook:
    def find_spec(self, name, *_):
        if name == "hydra":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Hook())
sys.argv = [{script!r}, "--cfg", "job"]
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.parametrize("name", ["train", "evaluate", "generate", "report"])
def test_ctrl_c_while_python_imports_is_quiet(name):
    """It comes while the first large package is imported, most of the second that a start takes."""
    script = str(Path(__file__).parents[1] / "scripts" / f"{name}.py")
    command = [sys.executable, "-c", INTERRUPTED.format(script=script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
