"""The command line: instant help without torch, and one clear message for each mistake."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from quartet.build import check
from quartet.config_groups import CONF
from quartet.system.cores import share_cores


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


@pytest.mark.parametrize("name", ["train", "evaluate", "generate", "baseline"])
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
        (["data.batch_size=many"], ["data.batch_size must be an integer of at least 1, not 'many'"]),
        (["model.dropout=1.5"], ["model.dropout must be a probability: at least 0 and below 1"]),
        (["trainer.max_steps=0"], ["trainer.max_steps must be"]),
        (
            ["trainer.val_check_interval=0"],
            ["trainer.val_check_interval must be an integer of at least 1 or a fraction"],
        ),
        (
            ["trainer.val_check_interval=1.5"],
            ["trainer.val_check_interval must be an integer of at least 1 or a fraction"],
        ),
        (["data.split=[0.5,0.6]"], ["data.split must be three shares"]),
        (["monitor.mode=best"], ["monitor.mode must be one of min, max or null"]),
        (["optimizer.lr=0", "seed=-1", "task.l1=-0.5"], ["optimizer.lr", "seed", "task.l1"]),
    ],
)
def test_values_out_of_range(compose, arguments, expected):
    with pytest.raises(ValueError) as error:
        check(compose("model=mlp", *arguments))
    assert len(str(error.value).splitlines()) == len(expected)
    assert all(piece in str(error.value) for piece in expected)


def test_what_only_constructors_know_is_reported_with_the_rest(script, outputs):
    arguments = ["model.n_heads=5", "model.n_layers=two", "optimizer.lr=-1", "monitor.metric=val/f1"]
    message = fails(script("train", *arguments), "model.n_heads=5", "model.n_layers must be an integer", "val/loss")
    assert len(message.splitlines()) == 4
    assert not outputs.exists(), "a refused config leaves no directory"


def test_a_setting_that_nobody_takes(script):
    fails(script("train", "model=mlp", "+model.depth=3"), "model.depth: MLP has no such argument")


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
    fails(script("generate", "run=latest"), "no trained language model")


def test_the_traceback_is_there_on_request(script):
    process = script("train", "model=mlp", "optimizer.lr=-1", environment={"HYDRA_FULL_ERROR": "1"})
    assert process.returncode != 0 and "Traceback" in process.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lr=0.1"], "lr: no such key, did you mean optimizer.lr?"),
        (["epochs=3"], "epochs: no such key, did you mean trainer.max_epochs?"),
        (["--epochs=3"], "--epochs=3: settings have no dashes, did you mean trainer.max_epochs=3?"),
        (["-lr=3"], "-lr=3: settings have no dashes, did you mean optimizer.lr=3?"),
        (["model=mlp", "data.path=x"], "data.path: no such key with this data; cifar10, csv, "),
        (
            ["model=mlp", "model.bidirectional=true"],
            "model.bidirectional: no such key with this model; rnn, rnn_classifier have it",
        ),
        (["debug=true"], "debug: no such key, did you mean trainer=debug?"),
        (["model=resnet18"], "unknown model; a network of torchvision's: model=image model.name=resnet18; choose from"),
        (["run=latest"], "run= is for scripts/evaluate.py and scripts/generate.py; to resume a run: resume="),
        (["callbacks=[early_stopping,emma]"], "callbacks=emma: unknown callbacks, did you mean ema?; choose from"),
        (["model=[mlp,"], "brackets and quotes come in pairs"),
    ],
)
def test_mistakes_of_a_first_hour(script, words, said):
    message = fails(script("train", *words), said)
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("names", ["early_stopping,ema", "ema,early_stopping", "default,ema,early_stopping"])
def test_a_list_of_callbacks_brings_all_of_them(compose, names):
    callbacks = compose("model=mlp", f"callbacks=[{names}]").callbacks
    assert callbacks.ema.decay == 0.99 and callbacks.early_stopping.patience == 5 and callbacks.checkpoint is not None
    assert callbacks.figures is not None and compose("model=mlp").callbacks.get("ema") is None


def test_every_pair_of_options_of_a_group_keeps_both(compose):
    """Whatever is added to conf/callbacks: an option that sets another one's part to null would drop it silently."""
    names = [path.stem for path in (CONF / "callbacks").glob("*.yaml") if path.stem not in ("none", "default")]
    alone = {
        name: {k for k, v in compose("model=mlp", f"callbacks={name}").callbacks.items() if v is not None}
        for name in names
    }
    for one in names:
        for other in names:
            both = {k for k, v in compose("model=mlp", f"callbacks=[{one},{other}]").callbacks.items() if v is not None}
            assert both == alone[one] | alone[other]


FAST = "model=mlp trainer.max_epochs=1 callbacks.data_report=null callbacks.figures=null logger=none"


@pytest.mark.parametrize("name", ["true", "1e3"])
def test_names_that_are_numbers(script, outputs, name, tmp_path):
    assert script("train", *FAST.split(), f"run.name={name}").returncode == 0
    (run,) = (outputs / name).iterdir()
    done = script("train", *FAST.split(), f"run.dir={name}")
    assert done.returncode == 0 and (tmp_path / name / "result.json").is_file(), done.stderr
    assert script("evaluate", f"run={name}", "split=val").returncode == 0
    fails(script("train", f"resume={name}"), f"{name} is completed")
    assert run.is_dir()


def test_a_run_for_debugging_lies_apart_and_is_not_the_latest(script, outputs):
    assert script("train", "model=mlp", "trainer=debug", "logger=none").returncode == 0
    assert [path.name for path in outputs.iterdir()] == ["debug"]
    fails(script("evaluate"), "no trained run below")


def test_data_that_have_moved(script, outputs, tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("a,b,y\n" + "".join(f"{i},{i * i % 7},{'xz'[i % 2]}\n" for i in range(60)))
    settings = [*FAST.split(), "data=csv", f"data.path={table}", "data.target=y", "data.batch_size=8"]
    first = script("train", *settings, "run.dir=run")
    assert first.returncode == 0, first.stderr
    before = script("evaluate", "run=run").stdout
    (tmp_path / "new").mkdir()
    moved = tmp_path / "new" / "b, c.csv"
    table.rename(moved)
    fails(
        script("evaluate", "run=run"),
        "a.csv does not exist; if the data have moved, say where they are: data.path=<path>",
    )
    assert script("evaluate", "run=run", f"data.path={moved}").stdout == before
    assert script("evaluate", "run=run", "data.path=new/b, c.csv").stdout == before
    config = (tmp_path / "run" / "config.yaml").read_text()
    other = tmp_path / "other.csv"
    other.write_text(moved.read_text().replace("3,", "4,"))
    fails(script("evaluate", "run=run", "split=test", f"data.path={other}"), "the data have changed")
    judged = script("evaluate", "run=run", f"data.path={other}").stdout  # without a part they are new data
    assert "new data: 60 samples" in judged and "new/accuracy" in judged and "test/" not in judged
    assert (tmp_path / "run" / "config.yaml").read_text() == config


def test_a_run_whose_data_have_moved_goes_on(script, outputs, tmp_path):
    table = tmp_path / "a.csv"
    table.write_text("a,b,y\n" + "".join(f"{i},{i * i % 7},{'xz'[i % 2]}\n" for i in range(60)))
    settings = [*FAST.split(), "data=csv", f"data.path={table}", "data.target=y", "data.batch_size=8"]
    assert script("train", *settings, "run.dir=run").returncode == 0
    (tmp_path / "run" / "result.json").unlink()  # as if it had been killed at its end
    table.rename(tmp_path / "b.csv")
    fails(script("train", "resume=run"), "if the data have moved")
    (tmp_path / "wrong.csv").write_text("a,b,y\n" + "1,2,x\n2,1,z\n" * 20)
    fails(script("train", "resume=run", "data.path=wrong.csv"), "the data have changed")
    assert str(table) in (tmp_path / "run" / "config.yaml").read_text()
    done = script("train", "resume=run", "data.path=b.csv")
    assert done.returncode == 0, done.stderr
    assert script("evaluate", "run=run").returncode == 0, "the run knows where they are"


def test_data_that_are_in_no_file_of_the_user_s_cannot_move(script, tmp_path):
    assert script("train", *FAST.split(), "run.dir=run").returncode == 0
    fails(script("evaluate", "run=run", "split=test", "data.path=x"), "reads no files of yours; leave it out")
    fails(script("evaluate", "run=run", "data.path=x"), "x does not exist")


def test_a_sweep_below_the_home_directory(script, tmp_path):
    home = {"HOME": str(tmp_path / "home")}
    words = [*FAST.split(), "optimizer.lr=1e-3,2e-3", "hydra.sweep.dir=~/sweep one", "sweep.report=false"]
    done = script("train", "-m", *words, environment=home)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "home" / "sweep one").glob("[0-9]")) == ["0", "1"]
    assert not (tmp_path / "~").exists() and not list(tmp_path.glob("~*"))


def test_the_table_of_classes_has_the_worst_first(capsys):
    from rich.cells import cell_len

    from quartet.commands.evaluate import show

    scores = {"猫": 0.9, "a very long name of a class": 0.1, "of_of": 0.5}
    per_class = {name: {"f1": f1, "precision": 1.0} for name, f1 in scores.items()}
    empty = {"part": "test", "metrics": {}, "intervals": {}, "gaps": [], "slices": [], "mistakes": []}
    show({**empty, "per_class": per_class})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1].strip() for line in lines] == ["class", "a very long name of a class", "of_of", "猫"]
    assert len({cell_len(line) for line in lines}) == 1, "aligned, also where letters are two wide"
    show({**empty, "per_class": {}})
    assert capsys.readouterr().out == ""


def test_metrics_without_classes_are_lines_and_nothing_else(script):
    words = "model=mlp data=diabetes trainer.max_epochs=1 callbacks.data_report=null callbacks.figures=null logger=none"
    assert script("train", *words.split(), "run.dir=run").returncode == 0
    lines = script("evaluate", "run=run", "split=test").stdout.splitlines()
    assert lines[0] == "run: run" and all(line.startswith("  test/") for line in lines[1:-1]) and len(lines) > 4
    assert lines[-1].startswith("page: ")


def test_a_folder_called_debug_above_the_project_debugs_nothing(script, outputs, tmp_path):
    place = tmp_path / "debug" / "outputs"
    done = script("train", *FAST.split(), environment={"QUARTET_OUTPUTS": str(place)})
    assert done.returncode == 0 and "Linear" not in done.stdout
    assert script("evaluate", "split=val", environment={"QUARTET_OUTPUTS": str(place)}).returncode == 0


LINES = """
from quartet.cli import command

@command("generate")
def main(config):
    while True:
        print("a line", flush=True)

main()
"""


def test_a_reader_that_leaves_ends_the_command_without_a_word():
    process = subprocess.Popen([sys.executable, "-c", LINES], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    assert process.stdout.readline() == "a line\n"
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_how_threads_wait_is_set_where_the_user_has_not(monkeypatch, given, expected):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    share_cores()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
