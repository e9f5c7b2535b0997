"""Every file in conf/, every pair of model and optimizer, every scheduler: composed, built and run for a few steps."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import samples
from conftest import OURS

from quartet.commands.train import create_and_train

CONF = Path(__file__).parents[1] / "conf"
SMALL = {
    "transformer": ["model.d_model=16", "model.n_layers=1", "model.n_heads=2", "model.d_ff=32"],
    "rnn": ["model.d_hidden=16", "model.n_layers=1"],
    "image_small": ["model.widths=[4,8]"],
    "mlp": ["model.hidden=[8]"],
}
BRIEF = ["trainer=debug", "trainer.detect_anomaly=false", "callbacks=none", "logger=none", "data.batch_size=4"]


OWN = {
    "text": lambda folder: [f"data.path={samples.sample_text(folder)}"],
    "labelled_text": lambda folder: [f"data.path={samples.sample_labelled_text(folder)}"],
    "image_folder": lambda folder: [f"data.path={samples.sample_image_folder(folder)}"],
    "cifar10": lambda folder: [f"data.path={samples.sample_cifar10(folder)}"],
    "mnist": lambda folder: [f"data.path={samples.sample_mnist(folder)}"],
    "fashion_mnist": lambda folder: [f"data.path={samples.sample_mnist(folder, 'FashionMNIST')}"],
    "csv": lambda folder: [f"data.path={samples.sample_table(folder)}", "data.target=diagnosis"],
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """own("csv") -> overrides that name a small file of a user's own where such data want one."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())
    folder = tmp_path / "own"
    folder.mkdir()
    return lambda data: OWN[data](folder) if data in OWN else []


def options(group: str) -> list[str]:
    """Those of Quartet itself: what a user adds is the user's to try."""
    return sorted(Path(name).stem for name in OURS if Path(name).match(f"conf/{group}/[!_]*.yaml"))


def small(model: str) -> list[str]:
    """Sizes that make a step take milliseconds."""
    return SMALL.get(model.split("_")[0] if model.startswith("transformer") else model, [])


def brief(compose, model: str, *overrides: str) -> dict:
    """A run of four steps; its losses must be finite."""
    _, result = create_and_train(compose(f"model={model}", *small(model), *BRIEF, *overrides))
    assert result["status"] == "completed" and result["steps"] == 4
    assert all(math.isfinite(value) for name, value in result["metrics"].items() if name.endswith("/loss"))
    assert {"val/loss", "test/loss"} <= result["metrics"].keys()
    return result


CLASSIFIERS = ("rnn_classifier", "transformer_classifier")  # the networks of rnn and transformer


@pytest.mark.parametrize("model", CLASSIFIERS)
def test_the_classifiers_of_texts(compose, small_text, model):
    network = model.removesuffix("_classifier")
    brief(compose, model, *small(network), "data.context_length=8")


@pytest.mark.parametrize("optimizer", options("optimizer"))
@pytest.mark.parametrize("model", [name for name in options("model") if name not in CLASSIFIERS])
def test_every_pair_of_model_and_optimizer(compose, small_text, model, optimizer):
    large = ["callbacks.checkpoint=null"] if model == "image" else []  # 134 MB, flushed to the disk
    brief(compose, model, f"optimizer={optimizer}", *large)


@pytest.mark.parametrize("scheduler", options("scheduler"))
def test_every_scheduler(compose, scheduler):
    brief(compose, "mlp", f"scheduler={scheduler}")


@pytest.mark.parametrize("data", options("data"))
def test_all_data(compose, small_text, own, data):
    from quartet.config_groups import fitting

    provides = next(kind for kind in ("tokens", "images", "table") if data in fitting("data", "provides", kind))
    model = {"tokens": "rnn", "images": "image_small", "table": "mlp"}[provides]
    short = ["data.context_length=8"] if provides == "tokens" else []
    brief(compose, model, f"data={data}", *short, *own(data))


@pytest.mark.parametrize("trainer", [name for name in options("trainer") if name not in ("gpu", "ddp", "fsdp")])
def test_every_trainer_of_one_device_that_needs_no_gpu(compose, trainer):
    """Those of several devices train in test_distributed.py."""
    _, result = create_and_train(compose("model=mlp", f"trainer={trainer}", "trainer.max_steps=4", "callbacks=none"))
    assert result["steps"] == 4


@pytest.mark.parametrize("limit", ["1", "0.5", "1.0"])
def test_validation_may_be_cut_short(compose, limit):
    brief(compose, "mlp", f"++trainer.limit_val_batches={limit}", f"++trainer.limit_test_batches={limit}")


def test_the_gpu_trainer_composes(compose):
    trainer = compose("trainer=gpu").trainer
    assert trainer.accelerator == "gpu" and trainer.precision == "bf16-mixed"


@pytest.mark.parametrize("callbacks", options("callbacks"))
@pytest.mark.parametrize("logger", [name for name in options("logger") if name not in ("wandb", "mlflow")])
def test_all_callbacks_and_loggers(compose, callbacks, logger):
    arguments = ["model=mlp", "trainer=debug", f"callbacks={callbacks}", f"logger={logger}"]
    _, result = create_and_train(compose(*arguments))
    assert result["status"] == "completed"


@pytest.mark.parametrize("logger", ["wandb", "mlflow"])
def test_loggers_of_other_packages_stay_in_the_run_directory_or_name_their_extra(compose, logger, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    arguments = ["model=mlp", "trainer=debug", "callbacks=none", f"logger={logger}"]
    if find_spec(logger):
        run, result = create_and_train(compose(*arguments))
        assert (
            result["status"] == "completed"
            and (run.directory / ("mlflow.db" if logger == "mlflow" else logger)).exists()
        )
    else:
        with pytest.raises(
            ValueError, match=rf"logger={logger} needs a package that is not installed: .*'\.\[{logger}\]'"
        ):
            create_and_train(compose(*arguments))
    assert f"\n{logger} = [" in (CONF.parent / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_composes_builds_and_logs_what_it_monitors(compose, small_text, own, experiment):
    """The rows of the results table, cut to four steps: the monitored name must be among the logged ones."""
    overrides = [
        f"experiment={experiment}",
        "trainer.max_steps=4",
        "trainer.val_check_interval=4",
        "trainer.max_epochs=-1",
    ]
    (data,) = re.findall(r"/data: (\w+)", (CONF / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8"))
    overrides += own(data)
    config = compose(*overrides, "data.batch_size=4", "+trainer.limit_val_batches=2", "+trainer.limit_test_batches=2")
    _, result = create_and_train(config)
    assert result["objective"]["name"] == config.monitor.metric
    assert math.isfinite(result["objective"]["value"])


def test_every_value_says_why():
    """Each line that sets a value in conf/ carries a comment, or stands under a heading that does."""
    silent = []
    for path in [CONF.parent / name for name in OURS if name.startswith("conf/")]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            key, _, value = line.strip().partition(":")
            sets_a_number = any(c.isdigit() for c in value.split("#")[0]) and not key.startswith(("-", "#", "_target_"))
            if sets_a_number and "#" not in line:
                silent.append(f"{path.relative_to(CONF)}:{number}: {line.strip()}")
    assert not silent, "\n".join(silent)
