"""Parts of the user's own package: named on the command line or in conf/, noted in the run, never believed of a file."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from quartet import build, trust
from quartet.cli import resumed_arguments
from quartet.commands.evaluate import evaluate
from quartet.commands.generate import generate
from quartet.commands.train import create, create_and_train
from quartet.engine import workers
from quartet.engine.fit import train
from quartet.run import Run

MYLIB = """
from pathlib import Path

import torch
from torch import nn
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger
from quartet.data.table.tabular import TableData
from quartet.data.table.tabular import EmbeddedTable
from quartet.tasks.classification import Classification


class Mixer(nn.Module):
    def __init__(self, *, n_numeric: int, n_outputs: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_numeric, width), nn.GELU(), nn.Linear(width, n_outputs))

    def forward(self, numeric, **others):
        return self.layers(numeric)


class Bigram(nn.Module):
    def __init__(self, *, vocab_size: int):
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, tokens):
        return self.table(tokens)


class Greeting(Callback):
    def __init__(self, *, text: str):
        self.text = text

    def on_fit_start(self, trainer, pl_module):
        Path(trainer.default_root_dir, "greeting.txt").write_text(self.text)


class Saver(ModelCheckpoint):
    pass


class SignSGD(torch.optim.Optimizer):
    def __init__(self, params, *, lr: float):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"])
        return loss


def halving(step: int, total: int, *, every: int) -> float:
    return 0.5 ** (step // every)


class Step(torch.optim.lr_scheduler.StepLR):
    pass


class Table(TableData):
    pass


class Cancer(EmbeddedTable):
    pass


class Task(Classification):
    pass


class Lines(Logger):
    def __init__(self, *, ending: str):
        super().__init__()
        self.ending, self.lines = ending, 0

    name = version = "lines"

    def log_metrics(self, metrics, step=None):
        self.lines += 1

    def log_hyperparams(self, *_, **__): ...


def program(command: str):
    raise SystemExit(command)


CONSTANT = 3
"""
BRIEF = (
    "data.batch_size=64 trainer.accelerator=cpu trainer.max_steps=2 trainer.max_epochs=-1 callbacks=none logger=none"
)
MODEL = yaml.safe_load((Path(__file__).parents[1] / "conf" / "model" / "mlp.yaml").read_text(encoding="utf-8"))["model"]
GENERATION: Any = {"prompt": "a", "max_tokens": 3, "temperature": 0.0, "top_k": None, "top_p": None, "seed": 0}
names = itertools.count()


@pytest.fixture
def mylib(tmp_path):
    """A package with a name that no other test has, in a folder that is not on the path."""
    name = f"mylib{next(names)}"
    folder = tmp_path / "lib" / name
    folder.mkdir(parents=True)
    (folder / "net.py").write_text(MYLIB, encoding="utf-8")
    path = list(sys.path)
    yield name
    sys.path[:] = path
    forget(name)


def forget(name: str) -> None:
    """As in another process, where nobody has named the package."""
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]
    trust.revoke([name])


@pytest.fixture
def importable(mylib, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    return mylib


def mixer(name: str) -> list[str]:
    """The table's model replaced by the user's own, with its own settings."""
    keys = [key for key in MODEL if key != "_target_"]
    return ["model=mlp", *(f"~model.{key}" for key in keys), f"model._target_={name}.net.Mixer", "+model.width=4"]


def everything(name: str) -> list[str]:
    """One part of each kind."""
    lib = f"{name}.net"
    return [
        *mixer(name), *BRIEF.split(),
        f"+callbacks.greeting={{_target_:{lib}.Greeting,text:hello}}",
        "optimizer=sgd", "~optimizer.momentum", "~optimizer.nesterov", "~optimizer.weight_decay", "~optimizer.fused",
        f"optimizer._target_={lib}.SignSGD",
        "scheduler=constant", "~scheduler.warmup", "+scheduler.every=1", f"scheduler._target_={lib}.halving",
        f"data._target_={lib}.Table", f"data.source._target_={lib}.Cancer", f"task._target_={lib}.Task",
        f"+logger.lines={{_target_:{lib}.Lines,ending:x}}",
    ]  # fmt: skip


def test_one_part_of_each_kind_trains_and_is_noted(compose, importable):
    run, result = create_and_train(compose(*everything(importable)))
    assert result["status"] == "completed" and result["steps"] == 2
    assert (run.directory / "greeting.txt").read_text() == "hello"
    assert run.read("environment.json")["own_packages"] == [importable]


@pytest.fixture
def interrupted(compose, importable):
    """A run of the user's own network, read back as by a process to which nobody has named it."""
    run, _ = create_and_train(compose(*mixer(importable), *BRIEF.split()))
    run.write("result.json", {"status": "interrupted"})
    forget(importable)
    return run


def resume(where: str, compose: Any) -> None:
    train(Run.open_for_resume(where))


def score(where: str, compose: Any) -> None:
    evaluate(Run.open(where), "test")


def write(where: str, compose: Any) -> None:
    list(generate(Run.open(where), **GENERATION))


def begin_from(where: str, compose: Any) -> None:
    create_and_train(compose("model=image", "data.batch_size=8", f"finetune.init_from='{where}'"))


def test_a_run_that_is_read_back_does_not_name_who_is_trusted(compose, interrupted, importable, monkeypatch):
    """Whatever its files say; what is refused is not imported either."""
    noted = interrupted.read("environment.json")
    interrupted.write("environment.json", {**noted, "QUARTET_TRUST": importable})
    monkeypatch.setenv("QUARTET_TRUST", "another")
    for read_back in (resume, score, write, begin_from):
        with pytest.raises(ValueError) as error:
            read_back(str(interrupted.directory), compose)
        assert str(error.value) == (
            f"{interrupted.directory / 'config.yaml'}: _target_={importable}.net.Mixer is not allowed: nothing of that name "
            "belongs there; a config may use parts of quartet, torch, torchvision, torchmetrics and pytorch_lightning, and "
            f"of packages that you trust; if {importable} is yours, set QUARTET_TRUST={importable} or name it in conf/"
        )
        assert importable not in sys.modules


def test_what_the_user_trusts_is_read_back(compose, interrupted, importable, monkeypatch, tmp_path):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mixer.yaml").write_text(f"_target_: {importable}.net.Mixer\n")
    with monkeypatch.context() as patch:
        patch.setattr(trust, "PROJECT", tmp_path)
        score(str(interrupted.directory), compose)
    monkeypatch.setenv("QUARTET_TRUST", f"another,{importable}")
    resume(str(interrupted.directory), compose)
    assert interrupted.status == "completed"


def test_a_language_model_that_has_forward_only(compose, importable, small_text, monkeypatch):
    keys = [key for key in compose("model=rnn").model if key != "_target_"]
    words = ["model=rnn", *(f"~model.{key}" for key in keys), f"model._target_={importable}.net.Bigram"]
    words += ["data.context_length=16", "data.vocab_size=300", "data.batch_size=4", *BRIEF.split()[1:]]
    with pytest.raises(ValueError, match=r"windows need a network with advance\(tokens, state\) .* Bigram"):
        create_and_train(compose(*words))
    run, result = create_and_train(compose(*words, "pairing.window_order=shuffled"))
    assert result["steps"] == 2
    monkeypatch.setenv("QUARTET_TRUST", importable)
    assert list(generate(run, **GENERATION))


WRONG = {
    ("model", "Greeting"): "model must be a class derived from torch.nn.modules.module.Module, or a function annotated",
    ("model", "program"): "model must be a class derived from torch.nn.modules.module.Module, or a function annotated",
    ("model", "CONSTANT"): "model must be a class",
    ("model", "Nothing"): "model must be a class",
    ("data", "Mixer"): "data must be a class derived from quartet.data.base.DataModule, or",
    (
        "scheduler",
        "program",
    ): "scheduler must be a class derived from torch.optim.lr_scheduler.LRScheduler, or a function "
    "annotated as -> float",
    (None, "program"): "within another part there may be classes, and",
    (None, "Path"): "within another part there may be classes, and",
}


def test_a_part_of_another_kind_is_refused(importable):
    trust.grant([importable])
    for (place, name), message in WRONG.items():
        with pytest.raises(ValueError, match=f"_target_={importable}.net.{name} is not allowed: {message}"):
            build.locate(f"{importable}.net.{name}", place)
    for place, name in (("callbacks", "Saver"), ("scheduler", "Step"), (None, "Cancer")):
        build.locate(f"{importable}.net.{name}", place)


def test_what_derives_from_a_library_s_part_writes_into_the_run_only(compose, importable):
    saver = f"+callbacks.saver={{_target_:{importable}.net.Saver,dirpath:elsewhere}}"
    with pytest.raises(ValueError, match=r"callbacks\.saver\.dirpath=elsewhere climbs out of the run"):
        create_and_train(compose("model=mlp", saver))
    build.check(compose("model=mlp", f"+callbacks.saver={{_target_:{importable}.net.Saver,filename:own}}"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x = (", "(SyntaxError: '(' was never closed (net.py, line 1))"),
        (
            "import nowhere_1",
            "(ModuleNotFoundError: No module named 'nowhere_1'); put its folder on PYTHONPATH",
        ),
        ("1 / 0", "(ZeroDivisionError: division by zero)"),
    ],
)
def test_a_package_that_cannot_be_imported(compose, importable, tmp_path, outputs, line, message):
    (tmp_path / "lib" / importable / "net.py").write_text(line)
    with pytest.raises(ValueError) as error:
        create_and_train(compose(*mixer(importable)))
    assert str(error.value) == f"_target_={importable}.net.Mixer: importing {importable}.net failed {message}"
    assert not outputs.exists()


def test_sizes_that_nobody_gives_are_named(compose, importable):
    words = [word for word in mixer(importable) if word != "+model.width=4"]
    with pytest.raises(
        ValueError, match=r"net\.Mixer needs width; the data give n_numeric, .*, such as \+model\.width=64"
    ):
        create_and_train(compose(*words, *BRIEF.split()))


def test_freezing_needs_a_head(compose, importable):
    with pytest.raises(
        ValueError, match=r"finetune\.backbone_lr spares the head, and .*net\.Mixer has no module named head"
    ):
        create_and_train(compose(*mixer(importable), *BRIEF.split(), "finetune.backbone_lr=0.1"))


def test_the_working_directory_is_looked_at_last_and_only_for_what_is_allowed(mylib, tmp_path, monkeypatch):
    """A folder that holds a package of the user's holds other names too: they come after everything else."""
    monkeypatch.chdir(tmp_path / "lib")
    with pytest.raises(ValueError, match=r"is not allowed"):
        build.locate(f"{mylib}.net.Mixer", "model")
    assert str(tmp_path / "lib") not in sys.path
    trust.grant([mylib])
    build.locate(f"{mylib}.net.Mixer", "model")
    assert sys.path[-1] == str(tmp_path / "lib")


def test_a_run_directory_is_no_place_for_packages(mylib, tmp_path, monkeypatch):
    """QUARTET_TRUST=mylib is meant for the user's own, not for what lies beside a config of somebody else."""
    (tmp_path / "lib" / "environment.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "lib")
    monkeypatch.setenv("QUARTET_TRUST", mylib)
    with pytest.raises(ValueError, match=rf"importing {mylib}\.net failed \(ModuleNotFoundError"):
        build.locate(f"{mylib}.net.Mixer", "model")


def test_workers_learn_it_from_the_environment(compose, importable, monkeypatch):
    seen: list[str | None] = []
    monkeypatch.setattr(workers, "run_workers", lambda *_, **__: seen.append(os.environ.get("QUARTET_TRUST")))
    run, data = create(compose(*mixer(importable), *BRIEF.split(), "trainer=ddp", "trainer.devices=2"))
    workers.execute(run, data)
    workers.execute(Run(run.directory), None)
    assert seen == [importable, None], "it is the user's command that counts, not the directory"


def test_a_sweep_of_the_user_s_own_package_in_the_working_directory(mylib, script, tmp_path, outputs, monkeypatch):
    """Its jobs are processes of their own; the same sweep of a file alone may not."""
    words = [*mixer(mylib), *BRIEF.split(), "optimizer.lr=choice(0.01)", "sweep.report=false"]
    process = script("train", "-m", *words, cwd=tmp_path / "lib")
    assert process.returncode == 0, process.stderr
    (config,) = outputs.glob("sweeps/*/*/config.yaml")
    assert Run(config.parent).status == "completed"
    with pytest.raises(ValueError) as error:
        resumed_arguments(["-m", "sweep.resume=latest"])
    assert str(error.value).endswith(
        f"would use the package {mylib}, which a file alone cannot ask for; if it is yours, set QUARTET_TRUST={mylib} "
        "or name it in conf/"
    )
    monkeypatch.setenv("QUARTET_TRUST", mylib)
    assert f"model._target_={mylib}.net.Mixer" in resumed_arguments(["-m", "sweep.resume=latest"])
