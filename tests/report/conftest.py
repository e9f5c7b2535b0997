"""Sweeps that nobody trained: directories as a sweep leaves them, written in a millisecond a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

CONFIG = {
    "seed": 0,
    "monitor": {"metric": "val/loss", "mode": "min"},
    "run": {"name": "mlp-wine", "dir": None},
    "trainer": {"accumulate_grad_batches": 1, "devices": 1},
    "callbacks": {"pruning": None},
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 1e-3},
    "data": {"_target_": "Table", "source": {"name": "wine"}, "batch_size": 32, "folds": None, "fold": None, "seed": 0},
    "model": {"_target_": "quartet.models.mlp.MLP", "dropout": 0.1, "hidden": [8, 8]},
}


@pytest.fixture
def make_run():
    """make_run(directory, loss, {"optimizer.lr": 0.1}) -> the directory of a run with that config and result."""

    def make(
        directory: Path,
        loss: float | None = 1.0,
        values: dict[str, Any] | None = None,
        status: str = "completed",
        **metrics: Any,
    ) -> Path:
        directory.mkdir(parents=True)
        config = OmegaConf.create(CONFIG)
        for key, value in (values or {}).items():
            OmegaConf.update(config, key, value, force_add=True)
        config.data.seed, config.run.dir = config.seed, str(directory)
        (directory / "config.yaml").write_text(OmegaConf.to_yaml(config), encoding="utf-8")
        words = [f"{key}={'null' if value is None else value}" for key, value in (values or {}).items()]
        write(directory / "trial.json", {"number": 0, "overrides": ["model=mlp", *words]})
        write(
            directory / "environment.json", {"command": ["train.py", "model=mlp", *words], "packages": {"torch": "2"}}
        )
        if status != "unfinished":
            facts = {"steps": 20, "epochs": 2, "seconds": 1.5, "peak_memory_bytes": 2**30, "parameters": 100}
            throughput = {"per_second": 10.0, "unit": "samples"}
            scores = {"val/loss": loss, **{name.replace("_", "/", 1): value for name, value in metrics.items()}}
            write(directory / "result.json", {"status": status, "metrics": scores, **facts, "throughput": throughput})
            rows = "".join(f"{step},{(loss or 0) + 1 / (step + 1)}\n" for step in (9, 19))
            (directory / "metrics.csv").write_text(f"step,val/loss\n{rows}", encoding="utf-8")
        return directory

    return make


@pytest.fixture
def make_sweep(make_run, outputs):
    """make_sweep([(loss, {"seed": 1}, status), …], {"seed": "0,1"}) -> the directory of a sweep."""

    def make(runs: list[tuple], space: dict[str, str] | None = None, name: str = "one", **plan: Any) -> Path:
        directory = outputs / "sweeps" / name
        directory.mkdir(parents=True)
        facts = {"command": ["model=mlp"], "sampler": "grid", "pruner": None, "n_trials": len(runs)}
        plan = {**facts, "space": space or {}, "objectives": {"val/loss": "min"}, **plan}
        write(directory / "sweep.json", plan)
        for number, run in enumerate(runs):
            make_run(directory / str(number), *run[:3], **(run[3] if len(run) > 3 else {}))
        return directory

    return make


def write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture
def sketches(monkeypatch):
    """Figures are composed but not rendered, which takes a tenth of a second each."""
    from PIL import Image

    from quartet import lettering

    def save(drawn, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1, 1)).save(path)

    monkeypatch.setattr(lettering, "save", save)


@pytest.fixture
def seeds(make_sweep, sketches):
    """Two learning rates, five seeds each; figures are not rendered."""
    losses = {0.001: [0.50, 0.52, 0.49, 0.53, 0.51], 0.003: [0.40, 0.45, 0.41, 0.42, 0.44]}
    runs = [(losses[lr][seed], {"seed": seed, "optimizer.lr": lr}) for seed in range(5) for lr in losses]
    return make_sweep(runs, {"seed": "0,1,2,3,4", "optimizer.lr": "1e-3,3e-3"})
