"""A project to which its user has added one part of each kind, in a package of their own, and changed no file of it."""

from __future__ import annotations

import shutil

import pytest
from conftest import PROJECT, Started, fork_server

from quartet.run import Run

# part -> the files that a user writes for it: two at most, three for a command
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
            from sklearn.datasets import load_iris
            from quartet.data.table.tabular import Table

            class Flowers:
                def __init__(self, *, kinds: list[int]):
                    self.kinds = kinds

                def load(self) -> Table:
                    iris = load_iris()
                    kept = [kind in self.kinds for kind in iris.target]
                    columns = dict(zip(iris.feature_names, iris.data[kept].T))
                    return Table(columns, {}, iris.target[kept], "species", tuple(iris.target_names[self.kinds]))
            """,
        "conf/data/flowers.yaml": """
            # @package _global_
            defaults:
              - _split
              - override /task: classification
              - _self_
            data:
              _target_: quartet.data.table.tabular.TableData
              source:
                _target_: mylib.flowers.Flowers
                kinds: [0, 1]
              scaling: standard
              batch_size: 16
            pairing:
              provides: table
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


@pytest.fixture
def project(tmp_path):
    """A copy of Quartet with the user's files."""
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
    return tmp_path


@pytest.fixture
def server(project):
    with fork_server(project) as process:
        yield process


def test_a_run_is_made_of_all_of_them(project, server, outputs):
    def script(name: str, *words: str) -> str:
        command = [str(project / "scripts" / f"{name}.py"), *words]
        process = Started(server, command, project, {}, project).wait()
        assert process.returncode == 0, process.stderr
        return process.stdout

    words = "model=mixer data=flowers callbacks=greeting task=agreement optimizer=rprop trainer.accelerator=cpu"
    script("train", *words.split(), "length.max_epochs=20", "monitor.metric=val/kappa", "monitor.mode=max")
    (config,) = outputs.glob("**/config.yaml")
    run = Run(config.parent)
    result = run.read("result.json")
    assert result["status"] == "completed"
    assert set(run.read("data.json")["classes"]) == {"setosa", "versicolor"}
    assert (run.directory / "greeting.txt").read_text() == "hello"
    assert result["objective"]["name"] == "val/kappa" and result["objective"]["value"] > 0.5  # 0: no better than chance
    assert result["metrics"]["test/kappa"] > 0.5
    # commands that come later open the run, as the project's own conf/ names the package
    assert "test/kappa" in script("evaluate", "run=latest", "split=test")
    assert "model: mylib.net.Mixer" in script("describe", "run=latest")
