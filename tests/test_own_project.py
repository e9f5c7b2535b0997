"""A project to which its user has added one part of each kind, in a package of their own: how many files that takes."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys

import pytest
from conftest import PROJECT
from sklearn.datasets import load_iris

from quartet.run import Run

# part -> the files that a user writes for it; CONTRIBUTING.md names the same ones
FILES = {
    "model": {
        "mylib/net.py": """
            from torch import nn

            class Mixer(nn.Module):
                def __init__(self, *, n_numeric: int, n_outputs: int, width: int):
                    super().__init__()
                    self.body = nn.Sequential(nn.Linear(n_numeric, width), nn.GELU())
                    self.head = nn.Linear(width, n_outputs)

                def forward(self, numeric, **others):
                    return self.head(self.body(numeric))
            """,
        "conf/model/mixer.yaml": """
            # @package _global_
            defaults:
              - override /data: breast_cancer
              - _self_
            model:
              _target_: mylib.net.Mixer
              width: 64
            pairing:
              accepts: table
            """,
    },
    "data": {
        "mylib/flowers.py": """
            from quartet.data.table.files import TableFile

            class Flowers(TableFile):
                pass
            """,
        "conf/data/flowers.yaml": """
            # @package _global_
            defaults:
              - csv
              - _self_
            data:
              _target_: mylib.flowers.Flowers
              path: flowers.csv
              target: species
            """,
    },
    "callback": {
        "mylib/greeting.py": """
            from pathlib import Path
            from pytorch_lightning import Callback

            class Greeting(Callback):
                def on_fit_start(self, trainer, pl_module):
                    Path(trainer.default_root_dir, "greeting.txt").write_text("hello")
            """,
        "conf/callbacks/greeting.yaml": """
            defaults:
              - default
              - _self_
            greeting:
              _target_: mylib.greeting.Greeting
            """,
    },
    "metric": {
        "mylib/agreement.py": """
            from torchmetrics import MetricCollection
            from torchmetrics.classification import MulticlassCohenKappa
            from quartet.tasks.classification import Classification

            class Agreement(Classification):
                METRICS = (*Classification.METRICS, "kappa")

                def new_metrics(self) -> MetricCollection:
                    metrics = super().new_metrics()
                    metrics.add_metrics({"kappa": MulticlassCohenKappa(self.n_classes)})
                    return metrics
            """,
        "conf/task/agreement.yaml": """
            # @package _global_
            defaults:
              - classification
              - _self_
            task:
              _target_: mylib.agreement.Agreement
            """,
    },
    "optimizer": {
        "conf/optimizer/rprop.yaml": """
            _target_: torch.optim.Rprop
            lr: 0.01  # first step of each weight
            """,
    },
    "command": {
        "mylib/describe.py": """
            from quartet import build
            from quartet.run import Run

            def describe(where):
                run = Run.open(where)
                print("model:", build.opened(run).model._target_)
            """,
        "scripts/describe.py": """
            from quartet.cli import command

            @command("describe")
            def main(config):
                from mylib.describe import describe
                describe(config.run)

            if __name__ == "__main__":
                main()
            """,
        "conf/describe.yaml": """
            defaults:
              - _self_
              - hydra: default
            run: latest
            """,
    },
}
AT_MOST = {"model": 2, "data": 2, "callback": 2, "metric": 2, "optimizer": 1, "command": 3}


@pytest.fixture
def project(tmp_path):
    """A copy of Quartet with the user's files and a table of the user's own."""
    for folder in ("conf", "scripts", "src"):
        shutil.copytree(PROJECT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for files in FILES.values():
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            assert not path.exists(), "nothing of Quartet's own is changed"
            lines = text.strip("\n").splitlines()
            indent = len(lines[0]) - len(lines[0].lstrip())
            path.write_text("\n".join(line[indent:] for line in lines).rstrip() + "\n", encoding="utf-8")
    flowers = load_iris()
    with (tmp_path / "flowers.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*flowers.feature_names, "species"])  # type: ignore[attr-defined]
        for row, kind in zip(flowers.data, flowers.target, strict=True):  # type: ignore[attr-defined]
            writer.writerow([*row, flowers.target_names[kind]])  # type: ignore[attr-defined]
    return tmp_path


def test_each_part_takes_few_files_and_a_run_is_made_of_all_of_them(project, outputs):
    assert {part: len(files) for part, files in FILES.items()}.items() <= AT_MOST.items()

    def script(name: str, *words: str) -> str:
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(project / "src"), str(project)])}
        process = subprocess.run(
            [sys.executable, str(project / "scripts" / f"{name}.py"), *words],
            env=variables, cwd=project, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        return process.stdout

    words = "model=mixer data=flowers callbacks=greeting task=agreement optimizer=rprop trainer.accelerator=cpu"
    script("train", *words.split(), "length.max_epochs=40", "monitor.metric=val/kappa", "monitor.mode=max")
    (config,) = outputs.glob("**/config.yaml")
    run = Run(config.parent)
    result = run.read("result.json")
    assert result["status"] == "completed"
    assert (run.directory / "greeting.txt").read_text() == "hello"
    assert result["objective"]["name"] == "val/kappa" and result["objective"]["value"] > 0.5  # 0: no better than chance
    assert result["metrics"]["test/kappa"] > 0.5
    # commands that come later open the run, as the project's own conf/ names the package
    assert "test/kappa" in script("evaluate", "run=latest", "split=test")
    assert "model: mylib.net.Mixer" in script("describe", "run=latest")
