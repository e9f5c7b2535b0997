"""Several workers: the same samples, losses and metrics as one process; killed ones are replaced; shards change nothing."""

from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import Started

from quartet.commands.evaluate import evaluate
from quartet.run import Run

SMALL = "model=transformer optimizer=muon model.d_model=32 model.n_layers=2 model.n_heads=2 model.d_ff=64 "
SMALL += "model.dropout=0 model.token_dropout=0 data=stdlib_topics data.context_length=48 data.tokenizer=byte "
SMALL += "trainer.accelerator=cpu trainer.max_epochs=-1 trainer.max_steps=24 trainer.val_check_interval=12 "
SMALL += "trainer.log_every_n_steps=1 callbacks=none"
TABLE = (
    "model=mlp trainer.accelerator=cpu trainer.max_epochs=4 callbacks.checkpoint.every_n_steps=2 callbacks.figures=null"
)


def finish(process: Started) -> str:
    ended = process.wait(200)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def losses(run: Run) -> list[float]:
    with (run.directory / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def metrics(run: Run) -> dict[str, float]:
    return run.read("result.json")["metrics"]


def test_two_workers_with_n_samples_are_one_process_with_2n_sharded_or_not(start, tmp_path):
    """The last batch of the test part is uneven: 2 workers share what one process sees.

    Muon's iteration amplifies rounding: in bfloat16 to 2e-2 of the loss, in float32, as where bfloat16 is emulated, to
    less than 1e-5. So these processes think that they are on a processor without its units.
    """
    without = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    settings = {
        "one": "data.batch_size=16",
        "ddp": "trainer=ddp data.batch_size=8",
        "fsdp": "trainer=fsdp data.batch_size=8",
    }
    runs = {}
    for name, words in settings.items():
        words = [*SMALL.split(), *words.split(), f"run.dir={tmp_path / name}"]
        output = finish(start("train", *words, environment=without))
        runs[name] = Run(tmp_path / name)
        assert ("workers: 2; a step takes 16 samples" in output) == (name != "one")
    for name in ("ddp", "fsdp"):
        assert len(losses(runs[name])) == 24
        assert losses(runs[name]) == pytest.approx(losses(runs["one"]), abs=1e-5)
        for metric, value in metrics(runs["one"]).items():  # ranks jump where rounding exchanges two samples
            ranked = metric.endswith(("auroc", "average_precision"))
            tolerance = 1e-4 if ranked else 1e-6
            assert metrics(runs[name])[metric] == pytest.approx(value, abs=tolerance, rel=tolerance), metric
    saved = {name: torch.load(run.checkpoints / "last.ckpt", weights_only=True) for name, run in runs.items()}
    assert saved["fsdp"]["state_dict"].keys() == saved["one"]["state_dict"].keys()
    assert evaluate(runs["fsdp"], "test")["test/loss"] == pytest.approx(metrics(runs["fsdp"])["test/loss"], abs=1e-6)


def test_a_sweep_of_workers_one_of_which_is_killed(start, outputs):
    """Two complete runs in two directories and nothing else; the killed worker is replaced, the weights are the same.

    Both jobs have the same learning rate, and only the first one is disturbed.
    """
    sweep = ["-m", "trainer=ddp", "optimizer.lr=1e-3,0.001", "sweep.report=false", *TABLE.split()]
    process = start("train", *sweep, f"hydra.sweep.dir={outputs / 'sweep'}")
    checkpoint = outputs / "sweep" / "0" / "checkpoints" / "last.ckpt"
    killed = kill_worker_once(checkpoint, process)
    finish(process)
    log = (outputs / "sweep" / "logs" / "0.log").read_text()
    assert f"worker {killed} was killed (SIGKILL); starting again" in log
    assert sorted(path.parent.name for path in outputs.rglob("config.yaml")) == ["0", "1"]
    assert [path.name for path in outputs.iterdir()] == ["sweep"]
    runs = [Run(outputs / "sweep" / job) for job in "01"]
    assert [run.status for run in runs] == ["completed", "completed"]
    states = [torch.load(run.checkpoints / "last.ckpt", weights_only=True) for run in runs]
    for name, value in states[1]["state_dict"].items():
        assert torch.equal(states[0]["state_dict"][name], value), name


def kill_worker_once(checkpoint: Path, process: Started) -> int:
    """SIGKILL to worker 1 of the run as soon as it has a checkpoint."""
    deadline = time.monotonic() + 150
    while not checkpoint.is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    run = str(checkpoint.parents[1])
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            rank = next(x for x in (entry / "environ").read_bytes().decode().split("\0") if x.startswith("RANK="))
        except (OSError, StopIteration):
            continue
        if "quartet.worker" in words and run in words and rank == "RANK=1":
            os.kill(int(entry.name), signal.SIGKILL)
            return 1
    raise AssertionError("no worker was found")


def test_workers_save_when_the_command_is_interrupted(start, tmp_path):
    settings = TABLE.replace("max_epochs=4", "max_epochs=400") + " trainer=ddp"
    process = start("train", *settings.split(), f"run.dir={tmp_path / 'run'}")
    run, deadline = Run(tmp_path / "run"), time.monotonic() + 150
    while run.last_checkpoint is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    ended = process.wait(60)
    assert ended.returncode == 143, ended.stderr
    assert "scripts/train.py resume=" in ended.stderr and "Traceback" not in ended.stderr
    assert run.status == "interrupted"
