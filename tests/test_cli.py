"""The command line: instant help without torch, and one clear message for each mistake."""

from __future__ import annotations

import time

import pytest

from quartet.build import check


def fails(process, *expected: str) -> str:
    """Exit code 1, every expected piece in stderr, no traceback, nothing else."""
    assert process.returncode == 1, process.stderr or process.stdout
    assert "Traceback" not in process.stderr
    for piece in expected:
        assert piece in process.stderr
    assert all(line.startswith("error: ") for line in process.stderr.splitlines())
    return process.stderr


@pytest.fixture
def no_torch(tmp_path):
    """A directory that makes `import torch` (and Lightning) fail, to be put first on the path."""
    for name in ("torch", "pytorch_lightning", "torchvision", "torchmetrics", "numpy", "sklearn", "matplotlib"):
        (tmp_path / "blocked" / name).mkdir(parents=True)
        (tmp_path / "blocked" / name / "__init__.py").write_text(f"raise ImportError('{name} was imported')")
    return {"PYTHONPATH": str(tmp_path / "blocked")}


@pytest.mark.parametrize("name", ["train", "evaluate", "generate"])
@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_help_and_config_import_no_torch(script, no_torch, name, arguments):
    process = script(name, *arguments, environment=no_torch)
    assert process.returncode == 0, process.stderr
    assert "run" in process.stdout


def test_help_answers_in_about_a_second(script):
    """The best of three, with room for a busy machine; importing torch alone takes longer."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        script("train", "--help")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2.5, seconds


def test_help_shows_the_choices_and_the_config_that_they_make(script):
    text = script("train", "--help", "model=mlp", "optimizer.lr=0.5").stdout
    assert text.startswith("Train a model") and "breast_cancer" in text
    assert "  lr: 0.5" in text and "quartet.models.mlp.MLP" in text and "\n  trainer     auto" in text
    fails(script("train", "--help", "modl=mlp"), "did you mean model?")


def test_mistakes_in_a_config_are_found_before_torch_is_imported(script, no_torch):
    fails(script("train", "model=mlp", "data=stdlib", environment=no_torch), "breast_cancer", "diabetes", "wine")


def test_a_misspelt_key_names_the_nearest(script):
    fails(script("train", "optimizer.lrr=1"), "optimizer.lrr: no such key", "did you mean optimizer.lr?")


def test_an_unknown_option_names_the_nearest_and_the_list(script):
    message = fails(
        script("train", "model=transformr"), "did you mean transformer?", "choose from", "rnn", "image", "mlp"
    )
    assert len(message.splitlines()) == 1


def test_all_mistakes_in_names_are_reported_together(script):
    message = fails(script("train", "model=transformr", "optimizr=adam", "data.batchsize=3"))
    assert len(message.splitlines()) == 3
    assert "did you mean optimizer?" in message and "did you mean data.batch_size?" in message


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (
            "optimizer.lr=1,2",
            "optimizer.lr=1,2: several values need -m (a sweep), or brackets for a list: 'optimizer.lr=[…]'",
        ),
        ("adam", "adam: a setting is written key=value"),
        ("=3", "=3: a setting is written key=value"),
        ("optimizer=null", "optimizer=null: unknown optimizer; choose from adagrad, adam"),
        ("data.split=[1", "data.split=[1: not understood; brackets and quotes come in pairs"),
    ],
)
def test_what_is_no_setting_is_explained(script, word, expected):
    message = fails(script("train", "model=mlp", word), expected)
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["optimizer.lr=-1"], ["optimizer.lr must be a number above 0, not -1"]),
        (["data.batch_size=many"], ["data.batch_size must be a whole number of at least 1, not 'many'"]),
        (["model.dropout=1.5"], ["model.dropout must be a number from 0 to below 1"]),
        (["trainer.max_steps=0"], ["trainer.max_steps must be"]),
        (["trainer.val_check_interval=0"], ["must be a whole number of steps, or a share of an epoch"]),
        (["trainer.val_check_interval=1.5"], ["must be a whole number of steps, or a share of an epoch"]),
        (["data.split=[0.5,0.6]"], ["data.split must be three shares"]),
        (["monitor.mode=best"], ["monitor.mode must be min, max or null"]),
        (["optimizer.lr=0", "seed=-1", "task.l1=-0.5"], ["optimizer.lr", "seed", "task.l1"]),
    ],
)
def test_values_out_of_range(compose, arguments, expected):
    with pytest.raises(ValueError) as error:
        check(compose("model=mlp", *arguments))
    assert len(str(error.value).splitlines()) == len(expected)
    assert all(piece in str(error.value) for piece in expected)


def test_what_only_constructors_know_is_reported_with_the_rest(script, outputs):
    arguments = ["model.n_heads=5", "model.n_layers=two", "optimizer.lr=-1", "monitor.metric=val/accuracy"]
    message = fails(script("train", *arguments), "model.n_heads=5", "model.n_layers must be a whole number", "val/loss")
    assert len(message.splitlines()) == 4
    assert not outputs.exists(), "a refused config leaves no directory"


def test_a_setting_that_nobody_takes(script):
    fails(script("train", "model=mlp", "+model.depth=3"), "model.depth: MLP takes no such setting")


def test_a_size_that_comes_from_the_data_cannot_be_given_twice(script, outputs):
    fails(script("train", "model=mlp", "+model.n_numeric=3"), "n_numeric", "comes from the data")
    assert not list(outputs.rglob("config.yaml"))


def test_a_batch_larger_than_the_data(script, outputs):
    message = fails(script("train", "model=mlp", "data.batch_size=5000"), "data.batch_size=5000", "training samples")
    assert "or less" in message
    assert not list(outputs.rglob("config.yaml")), "no half-written run"


def test_a_missing_file(script, outputs):
    fails(script("train", "data=shakespeare", "data.path=nowhere.txt"), "nowhere.txt")
    assert not list(outputs.rglob("config.yaml"))


def test_a_run_that_does_not_exist(script):
    fails(script("evaluate", "run=nowhere"), "run=nowhere is not a run directory")
    fails(script("generate", "run=latest"), "no trained run")


def test_the_traceback_is_there_on_request(script):
    process = script("train", "model=mlp", "optimizer.lr=-1", environment={"HYDRA_FULL_ERROR": "1"})
    assert process.returncode != 0 and "Traceback" in process.stderr
