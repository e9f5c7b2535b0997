"""hydra/launcher=local: what each job gets, what is refused, and a few jobs of a real sweep."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from quartet.sweeps.pool import make_pool, make_slots, visible_gpus
from quartet.system.cores import n_cores

PROJECT = Path(__file__).parents[2]
SETTINGS = {"workers": None, "threads": None, "timeout_minutes": None, "retries": 1}


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """machine(3) -> a computer with three GPUs; without a call it has none."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def make(n_gpus: int) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        lines = "".join(f"echo 'GPU {i}: NVIDIA (UUID: GPU-{i})'; echo '  MIG 1g Device 0:';" for i in range(n_gpus))
        program.write_text(f"#!/bin/sh\n{lines} exit {0 if n_gpus else 9}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    make(0)
    return make


def visible(slots: list[dict[str, str]]) -> list[str]:
    return [slot["CUDA_VISIBLE_DEVICES"] for slot in slots]


def test_a_job_for_each_gpu(machine, monkeypatch):
    machine(4)
    assert visible(make_slots(None, {})) == ["0", "1", "2", "3"]
    assert visible(make_slots(None, {"devices": 2})) == ["0,1", "2,3"]
    assert visible(make_slots(None, {"devices": 3})) == ["0,1,2"]
    assert visible(make_slots(None, {"devices": "auto", "accelerator": "gpu"})) == ["0", "1", "2", "3"]
    assert visible(make_slots(3, {"devices": 2})) == ["0,1", "2,3", "0,1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-7")
    assert visible(make_slots(None, {})) == ["3", "GPU-7"]


@pytest.mark.parametrize("names", ["", "-1"])
def test_no_gpus(machine, monkeypatch, names):
    assert visible_gpus() == []
    machine(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    assert visible_gpus() == []


def test_a_job_for_each_core(machine, monkeypatch):
    machine(2)
    monkeypatch.setattr("quartet.sweeps.pool.n_cores", lambda: 6)
    assert make_slots(None, {"accelerator": "cpu"}) == [{}] * 4
    assert make_slots(None, {"accelerator": "cpu", "devices": 3}) == [{}] * 2
    assert make_slots(None, {"accelerator": "cpu", "devices": 9}) == [{}]
    assert make_slots(5, {"accelerator": "cpu"}) == [{}] * 5


def pool(config: dict | None = None, **settings):
    composed = OmegaConf.create({"hydra": {"sweep": {"dir": "sweep"}}, **(config or {})})
    return make_pool({**SETTINGS, **settings}, composed)


def test_a_share_of_the_cores(monkeypatch):
    monkeypatch.setattr("quartet.sweeps.pool.n_cores", lambda: 8)
    assert pool(workers=3).environment == {"OMP_NUM_THREADS": "2", "RAYON_NUM_THREADS": "2"}
    assert pool(workers=9).environment["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert pool(workers=3).environment["OMP_NUM_THREADS"] == "5"
    assert pool(threads=7).environment["OMP_NUM_THREADS"] == "7"
    two_workers = {"trainer": {"devices": 2, "accelerator": "cpu"}}
    assert pool(two_workers, threads=7).environment["OMP_NUM_THREADS"] == "3", "of a job, for all of its workers"


def test_settings_of_the_pool():
    made = pool(workers=3, timeout_minutes=0.5, retries=0)
    assert (len(made.slots), made.timeout_seconds, made.retries) == (3, 30, 0)
    assert made.logs == Path.cwd() / "sweep" / "logs"
    assert pool().timeout_seconds is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "workers must be an integer of at least 1 or null, not 0"),
        ({"workers": "all"}, "workers must be an integer of at least 1 or null, not 'all'"),
        ({"workers": True}, "workers must be an integer of at least 1 or null, not True"),
        ({"threads": 1.5}, "threads must be an integer of at least 1 or null, not 1.5"),
        ({"timeout_minutes": -1}, "timeout_minutes must be a number above 0 or null, not -1"),
        ({"timeout_minutes": "1h"}, "timeout_minutes must be a number above 0 or null, not '1h'"),
        ({"retries": None}, "retries must be an integer of at least 0, not None"),
        ({"retries": -1}, "retries must be an integer of at least 0, not -1"),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(ValueError) as raised:
        pool(**settings)
    assert str(raised.value) == f"hydra.launcher.{message}"


def test_all_mistakes_at_once():
    with pytest.raises(ValueError) as raised:
        pool(workers=0, retries=-1)
    assert len(str(raised.value).splitlines()) == 2


def test_devices_that_a_job_cannot_have(machine):
    machine(2)
    with pytest.raises(ValueError, match=r"^trainer.devices=4 for each job, and there are 2 GPUs; ask for fewer"):
        pool({"trainer": {"devices": 4, "accelerator": "auto"}})
    with pytest.raises(ValueError, match=r"^trainer.devices=\[0, 1\]: in a sweep .* say how many, not which"):
        pool({"trainer": {"devices": [0, 1]}})


# real jobs

# scripts/train.py in a process that then looks at itself
PROGRAM = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported torch:", "torch" in sys.modules)
"""


def sweep(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    small = ("model=mlp", "trainer.accelerator=cpu", "callbacks.figures=null", "callbacks.data_report=null")
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        str(PROJECT / "scripts" / "train.py"),
        "-m",
        "hydra/launcher=local",
        *small,
    ]
    command += ["sweep.report=false", f"hydra.sweep.dir={directory}", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_launcher_s_mistakes_are_one_line(tmp_path):
    ended = sweep(tmp_path / "sweep", "hydra.launcher.workers=0")
    assert ended.returncode == 1
    assert ended.stderr == "error: hydra.launcher.workers must be an integer of at least 1 or null, not 0\n"


def test_a_sweep_of_two(tmp_path):
    """One fails, the other is a complete run; the sweep's own process imports no torch, and the jobs need not."""
    ended = sweep(tmp_path / "sweep", "optimizer.lr=1e-3,nan", "trainer.max_epochs=1", "hydra.launcher.workers=2")
    assert ended.returncode == 1
    assert "job 0 started: optimizer.lr=0.001\n" in ended.stdout and "job 0 completed" in ended.stdout
    assert "job 1 failed: optimizer.lr must be a number above 0, not nan" in ended.stderr
    assert "sweep/logs/1.log" in ended.stderr and "Traceback" not in ended.stderr
    assert (tmp_path / "sweep" / "0" / "result.json").exists()
    assert "epoch 1/1" in (tmp_path / "sweep" / "logs" / "0.log").read_text()
    assert ended.stdout.endswith("imported torch: False\n")


def test_past_its_limit_a_job_goes_on_from_its_checkpoint_once(tmp_path):
    """The limit is several times what a job takes to its first step."""
    ended = sweep(tmp_path / "sweep", "trainer.max_epochs=100000", "hydra.launcher.timeout_minutes=0.08")
    assert ended.returncode == 1
    told = ended.stderr.splitlines()
    assert told[0] == "job 0 is past its time limit of 4.8 s: stopping it"
    assert told[1].startswith("job 0 stopped at its time limit of 4.8 s; starting it again")
    assert told[2] == told[0] and told[3].startswith("job 0 failed: stopped at its time limit of 4.8 s")
    log = (tmp_path / "sweep" / "logs" / "0.log").read_text()
    assert log.count("resuming from its last checkpoint") == 1 and log.count("interrupted by SIGTERM") == 2


# the server's imports, in a process of its own
IMPORTS = """
import sys, threading
import torch
asked = []
for name in ("_cuda_getDeviceCount", "_cuda_init"):
    setattr(torch._C, name, lambda name=name: asked.append(name) or 0)
from quartet.sweeps import preload
missing = {*preload.LATE, "quartet.models.mlp", "quartet.data.image.augment"} - {*sys.modules}
assert not missing, missing
assert not asked and len(threading.enumerate()) == 1
"""


def test_what_is_imported_before_the_fork():
    """All of it exists; no GPU is asked for, which would be of no use to the forks, and no thread is started."""
    ended = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_cores_are_those_of_this_process():
    assert 1 <= n_cores() <= (os.cpu_count() or 1)
