"""Files of a run that are damaged, and mistakes while it begins and ends: what is told, what is kept, what is left alone."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning import Callback

from quartet import build
from quartet.callbacks.metrics_file import MetricsFile
from quartet.cli import command
from quartet.commands.evaluate import evaluate
from quartet.commands.train import create, create_and_train
from quartet.data.spec import Spec
from quartet.engine import workers
from quartet.engine.fit import train
from quartet.engine.workers import exception_from_dict, exception_to_dict
from quartet.files import read_metrics
from quartet.run import BEGUN, Run
from quartet.say import printable, say
from quartet.system.signals import Interrupted

SMALL = (
    "model=mlp model.hidden=[4] data.batch_size=64 trainer.accelerator=cpu trainer.max_steps=4 trainer.max_epochs=-1 "
)
SMALL += "callbacks=none trainer.val_check_interval=2"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tmp_path_factory.mktemp("damage") / "original"


@pytest.fixture
def stopped(compose, original, tmp_path) -> Run:
    """A run of four steps that is to go on; trained once, copied."""
    if not original.exists():
        create_and_train(compose(*SMALL.split(), f"run.dir={original}"))
    run = Run(shutil.copytree(original, tmp_path / "stopped"))
    run.write("result.json", {"status": "interrupted"})
    return run


# metrics.csv

DAMAGE = {
    "zeros": b"\0" * 5000,
    "more zeros than a field may have": b"\0" * 200_000,
    "half a line": b"1",
    "half a line with a line end": b"1\r\n",
    "text": b"error: x,1,2\r\n",
    "no UTF-8": b"\xff\xfe,\xff\r\n",
    "a step that is not whole": b"1.5,1\r\n",
    "a quote that never ends": b'7,"' + b"x" * 200_000 + b"\n",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_rows_of_metrics_that_a_power_failure_has_damaged_are_left_out(tmp_path, what):
    log = MetricsFile(save_dir=str(tmp_path))
    for step in range(20):
        log.log_metrics({"loss": step / 2, "val/é": math.nan}, step)
    log.save()
    with log.path.open("ab") as file:
        file.write(DAMAGE[what])
    again = MetricsFile(save_dir=str(tmp_path))
    again.truncate_from(12)
    assert [row["step"] for row in read_metrics(log.path)] == [str(step) for step in range(12)]
    again.log_metrics({"loss": 1.0, "new": 2.0}, 12)
    again.save()
    rows = read_metrics(log.path)
    assert rows[-1] == {"step": "12", "loss": "1.0", "new": "2.0", "val/é": ""} and len(rows) == 13


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"a,b\r\n1,2\r\n", b"\xff", b"step\r\n"])
def test_a_file_of_metrics_without_rows_is_begun_anew(tmp_path, content):
    log = MetricsFile(save_dir=str(tmp_path))
    log.path.write_bytes(content)
    log.truncate_from(3)
    log.log_metrics({"loss": 1.0}, 3)
    log.save()
    assert read_metrics(log.path) == [{"step": "3", "loss": "1.0"}]


def test_a_run_with_damaged_metrics_goes_on(stopped):
    with (stopped.directory / "metrics.csv").open("ab") as file:
        file.write(b"\0" * 3000)
    train(Run.open_for_resume(str(stopped.directory)))
    assert stopped.status == "completed"


# preprocessing.json and other facts

GOOD: dict[str, Any] = {"sizes": {"n_numeric": 2, "cardinalities": [3], "quantiles": [[-0.5]]}, "classes": ("a", "b")}


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": 3}, {"sizes": {"n_numeric": -1}}, {"sizes": {"n_numeric": 2**40}}, {"sizes": {"n_outputs": []}},
        {"sizes": {"vocab_size": 1.5}}, {"sizes": {"cardinalities": [-1]}}, {"sizes": {"quantiles": [["x"]]}},
        {"classes": "ab"}, {"classes": ("a", "a")}, {"classes": ("a", 1)}, {"class_counts": (1,)}, {"class_counts": (-1, 1)},
        {"sizes": {"vocab_size": 3}, "token_bytes": (1, 2)}, {"sizes": {"vocab_size": 3}}, {"target_std": 0.0},
        {"target_mean": math.nan}, {"target_mean": "x"}, {"target_mean": 10**20},
    ],
)  # fmt: skip
def test_facts_that_no_data_module_writes(change):
    Spec(**GOOD).check()
    with pytest.raises(ValueError, match="spec: "):
        Spec(**{**GOOD, **change}).check()


SPOILT = {
    "a negative size": lambda p: p["spec"]["sizes"].update(n_outputs=-2),
    "a size that is missing": lambda p: p["spec"]["sizes"].pop("n_outputs"),
    "fewer columns": lambda p: p["numeric"].pop(),
    "a column of another shape": lambda p: p.update(numeric=[3] * len(p["numeric"])),
    "a column without its scale": lambda p: p["numeric"][0].pop("width"),
    "a scale that is a list": lambda p: p["numeric"][0].update(width=[]),
    "no fingerprint": lambda p: p.pop("fingerprint"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_preprocessing_of_another_shape_is_named(stopped, what):
    values = stopped.read("preprocessing.json")
    SPOILT[what](values)
    stopped.write("preprocessing.json", values)
    for open_it in (lambda: evaluate(Run.open(str(stopped.directory)), "val"), lambda: train(Run(stopped.directory))):
        with pytest.raises(ValueError) as error:
            open_it()
        assert "preprocessing.json" in str(error.value) and str(error.value).endswith("or train again")
        assert "\n" not in str(error.value)


RESULTS: list[tuple[dict[str, Any], str]] = [
    ({"steps": 10**400}, "steps is not a number"),
    ({"seconds": math.inf}, "seconds is not a number"),
    ({"metrics": {"val/loss": "low"}}, "metrics.val/loss is not a number"),
    ({"metrics": {"a\x1b": []}}, "metrics.a\\x1b is not a number"),
    ({"metrics": 3}, "metrics is not an object"),
    ({"objective": None}, "objective is not an object"),
    ({"objective": {"name": 3}}, "objective.name is not a text"),
    ({"status": ["completed"]}, "status is not a text"),
    ({"throughput": [1]}, "throughput is not an object"),
]


@pytest.mark.parametrize(("values", "message"), RESULTS)
def test_a_result_of_another_shape(tmp_path, values, message):
    (tmp_path / "result.json").write_text(json.dumps(values))
    with pytest.raises(ValueError) as error:
        Run(tmp_path).read("result.json")
    assert str(error.value) == f"{tmp_path / 'result.json'} is damaged ({message}); restore the file, or train again"


# last.ckpt

STATES = {
    "a moment of another shape": lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(7)),
    "a moment that is text": lambda c: c["optimizer_states"][0]["state"][1].update(exp_avg_sq="x"),
    "a rate that is not a number": lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr=math.nan),
    "a rate that is text": lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr="x"),
    "a schedule's rate": lambda c: c["lr_schedulers"][0].update(base_lrs=[math.nan, 0.1]),
    "a schedule that is text": lambda c: c.update(lr_schedulers=["x"]),
    "the best value": lambda c: next(s for s in c["callbacks"].values() if "best" in s).update(best="x"),
    "rows of validations": lambda c: next(s for s in c["callbacks"].values() if "rows" in s).update(
        rows=[{"step": "x"}]
    ),
    "rows that are numbers": lambda c: next(s for s in c["callbacks"].values() if "rows" in s).update(rows=[1, 2]),
}


@pytest.mark.parametrize("what", STATES)
def test_a_state_of_another_shape_is_found_before_the_first_step(stopped, what, monkeypatch):
    path = stopped.checkpoints / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    STATES[what](checkpoint)
    torch.save(checkpoint, path)
    monkeypatch.setattr("quartet.tasks.base.Task.training_step", lambda *_: pytest.fail("a step was made"))
    with pytest.raises(ValueError) as error:
        train(Run.open_for_resume(str(stopped.directory)))
    assert f"{path} does not fit the run (" in str(error.value) or f"{path} is damaged (" in str(error.value)
    assert "\n" not in str(error.value)


# how a run begins


def test_a_mistake_removes_what_the_run_wrote_and_nothing_else(compose, tmp_path, monkeypatch):
    """In an empty directory of the user's, in one that a link leads to, and in one that other files come to meanwhile."""
    home, target = tmp_path / "mine", tmp_path / "target"
    home.mkdir()
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    monkeypatch.chdir(home)
    for where in (".", str(tmp_path / "link"), str(home)):
        with pytest.raises(FileNotFoundError, match=r"/nowhere\.csv"):
            create(compose("model=mlp", "data=csv", "data.path=/nowhere.csv", "data.target=x", f"run.dir={where}"))
        assert home.is_dir() and target.is_dir() and (tmp_path / "link").is_symlink()
        assert not list(home.iterdir()) and not list(target.iterdir())
    with pytest.raises(FileNotFoundError):
        create(
            compose("model=mlp", "data=csv", "data.path=/nowhere.csv", "data.target=x", f"run.dir={tmp_path / 'new'}")
        )
    assert not (tmp_path / "new").exists(), "which it had made"

    def fail(*_: Any) -> None:
        (tmp_path / "new" / "notes.txt").write_text("precious")
        raise ValueError("the mistake")

    monkeypatch.setattr("quartet.engine.fit.fit_data", fail)
    with pytest.raises(ValueError, match="the mistake"):
        create(compose("model=mlp", f"run.dir={tmp_path / 'new'}"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["notes.txt"]


def test_a_directory_that_cannot_be_removed_hides_no_mistake(compose, tmp_path, monkeypatch):
    """A mount point is such a directory, and a disk that fails."""

    def refuse(self, *_, **__):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "rmdir", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(FileNotFoundError, match=r"/nowhere\.csv"):
        create(
            compose("model=mlp", "data=csv", "data.path=/nowhere.csv", "data.target=x", f"run.dir={tmp_path / 'new'}")
        )


def test_of_two_that_begin_in_one_directory_at_once_one_does(compose, tmp_path, monkeypatch):
    """The second has looked before the first wrote: it is refused, and takes nothing away."""
    config = compose("model=mlp", f"run.dir={tmp_path / 'here'}")
    first: list[Run] = []
    really_open = Path.open

    def be_late(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if mode == "x" and not first:  # the second one, about to make its config
            first.append(Run(tmp_path))  # not again
            first[:] = [Run.create(compose("model=mlp", "seed=7", f"run.dir={tmp_path / 'here'}"))]
        return really_open(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", be_late)
    with pytest.raises(FileExistsError, match=r"run\.dir=.*here is not empty; name another directory"):
        create(config)
    assert first[0].config.seed == 7 and first[0].read("environment.json")


def test_a_second_command_on_a_run_of_several_workers_leaves_it_as_it_is(compose, stopped, monkeypatch):
    """It is told so before a worker starts, and where it is told by a worker; the run's own end is another's to tell."""
    OmegaConf.save(OmegaConf.merge(stopped.config, {"trainer": {"devices": 2}}), stopped.directory / "config.yaml")
    started: list[Any] = []
    monkeypatch.setattr(workers, "run_workers", lambda *_, **__: started.append(1))
    (stopped.directory / "result.json").unlink()
    with stopped.exclusively(), pytest.raises(BlockingIOError, match="is being trained by another process"):
        workers.execute(Run(stopped.directory), None)
    assert not started

    def refused(*_: Any, **__: Any) -> None:
        raise exception_from_dict(
            exception_to_dict(BlockingIOError("is being trained by another process; stop that one first"))
        )

    monkeypatch.setattr(workers, "run_workers", refused)
    with pytest.raises(BlockingIOError):
        workers.execute(Run(stopped.directory), None)
    assert stopped.status == "unfinished" and not (stopped.directory / "error.txt").exists()


# how it ends


def test_an_error_while_an_error_is_told(compose, outputs, monkeypatch):
    """Neither the facts of the run nor TensorBoard hide it, and it is noted."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    def mistake(*_: Any) -> None:
        raise ZeroDivisionError("the mistake")

    monkeypatch.setattr("quartet.engine.fit.History.best", property(fail))
    monkeypatch.setattr("quartet.tasks.base.Task.training_step", mistake)
    with pytest.raises(ZeroDivisionError, match="the mistake"):
        create_and_train(compose(*SMALL.split()))
    (config,) = outputs.rglob("config.yaml")
    run = Run(config.parent)
    assert run.status == "failed" and "the mistake" in (run.directory / "error.txt").read_text()


def test_what_cannot_be_written_as_a_result_is_told_all_the_same(tmp_path):
    run = Run(tmp_path)
    run.mark_failed(ValueError("caf\udce9"), metrics={1j: 2})
    assert "caf\\udce9" in (tmp_path / "error.txt").read_text() and not list(tmp_path.glob(".*"))


def test_a_completed_run_has_no_error(stopped):
    class Meanwhile(Callback):
        def on_test_end(self, trainer: Any, pl_module: Any) -> None:
            (stopped.directory / "error.txt").write_text("of another command")

    made = build.build_trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            build, "build_trainer", lambda *a, callbacks, **k: made(*a, callbacks=(*callbacks, Meanwhile()), **k)
        )
        train(Run.open_for_resume(str(stopped.directory)))
    assert stopped.status == "completed" and not (stopped.directory / "error.txt").exists()


def test_names_that_are_not_utf_8_are_kept(tmp_path):
    Run(tmp_path).write("data.json", {"caf\udce9": "中"})
    assert Run(tmp_path).read("data.json") == {"caf\udce9": "中"}


def test_a_signal_in_the_last_validation_stops(compose, outputs, monkeypatch):
    """It is the last step's: nothing is left but the test part, which begins when the run is resumed."""

    class Signal(Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.state.fn == "fit" and trainer.global_step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    made = build.build_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(build, "build_callbacks", lambda *arguments: [Signal(), *made(*arguments)])
        patch.setattr("quartet.engine.fit.measure", lambda *_: pytest.fail("it was tested"))
        with pytest.raises(Interrupted):
            create_and_train(compose(*SMALL.split()))
    (config,) = outputs.rglob("config.yaml")
    run = Run(config.parent)
    assert run.status == "interrupted" and run.last_checkpoint is not None
    result = train(Run.open_for_resume(str(run.directory)))
    assert result["status"] == "completed" and result["steps"] == 4 and "test/loss" in result["metrics"]


# what a run from elsewhere asks for


def test_a_run_that_is_read_back_downloads_nothing(compose, tmp_path, monkeypatch):
    """Neither pictures nor texts nor weights; the user's own command does, in the processes that train for it too."""
    config = compose("model=image", "data=mnist", f"data.path={tmp_path / 'dl'}", "data.download=true")
    run = Run.create(config)
    assert build.opened(run).data.download is True
    elsewhere = Run(run.directory)
    assert build.opened(elsewhere).data.download is False
    monkeypatch.setattr("torchvision.datasets.MNIST.download", lambda self: pytest.fail("a download"))
    with pytest.raises(FileNotFoundError, match=r"MNIST is not in data\.path=.*add data\.download=true"):
        train(Run(run.directory))
    assert not (tmp_path / "dl").exists()
    monkeypatch.setenv(BEGUN, run.for_workers()[BEGUN])
    assert build.opened(Run(run.directory)).data.download is True


def test_weights_that_are_not_there_are_fetched_for_the_user_s_own_command_only(compose, monkeypatch, tmp_path):
    from quartet.engine import weights

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(
        "torchvision.models._api.WeightsEnum.get_state_dict", lambda *_, **__: pytest.fail("a download")
    )
    config = compose("model=image", "data=digits", "model.weights=DEFAULT")
    spec = Spec(sizes={"in_channels": 1, "image_size": 8, "n_classes": 10})
    network = build.build_network(config, spec)
    with pytest.raises(FileNotFoundError, match="and a run that is read back fetches nothing; start a new run"):
        weights.initialise(network, config, spec, None, download=False)


@pytest.mark.parametrize("name", ["result.json", "config.yaml"])
def test_somebody_else_s_unreadable_file_does_not_hide_the_newest_run(compose, outputs, monkeypatch, name):
    mine, theirs = (Run.create(compose("model=mlp", f"run.name={name}")) for name in ("mine", "theirs"))
    for run in (mine, theirs):
        run.checkpoints.mkdir()
        (run.checkpoints / "last.ckpt").touch()
    os.utime(theirs.directory / "config.yaml", (time.time() + 9, time.time() + 9))
    (theirs.directory / name).write_bytes(b"\xff[")
    assert Run.open_for_resume("latest").directory == mine.directory
    if name == "config.yaml":
        assert Run.open("latest").directory == mine.directory
    read = Path.read_text

    def refuse(self: Path, *arguments: Any, **settings: Any) -> str:
        if self == theirs.directory / "result.json":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self, *arguments, **settings)

    (theirs.directory / "result.json").write_text("{}")
    monkeypatch.setattr(Path, "read_text", refuse)
    assert Run.open_for_resume("latest").directory == mine.directory


# what reaches the terminal

EVIL = "x\x1b]0;title\x07\nerror: forged\x9b2J\u202e\u2028end"
SHOWN = "x\\x1b]0;title\\x07\\nerror: forged\\x9b2J\\u202e\\u2028end"


def test_what_steers_a_terminal_is_written_out(capsys):
    assert printable(EVIL) == SHOWN and printable("a\nb\tc", keep="\n\t") == "a\nb\tc"
    assert printable("é中\u200d\u200c ×") == "é中\u200d\u200c ×" and printable("\udce9") == "\\udce9"
    say(f"\n{EVIL}")
    assert capsys.readouterr().out == f"\n{SHOWN}\n"


def test_messages_keep_their_own_lines_only(monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # the command sets it, for Hydra to raise

    @command("generate")
    def main(config):
        raise ValueError("one\ntwo\x1b[2J\x85three")

    monkeypatch.setattr("sys.argv", ["generate.py"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "error: one\nerror: two\\x1b[2J\\x85three\n"


def test_names_of_a_run_are_shown_as_they_are(compose, stopped, capsys, monkeypatch):
    path = stopped.directory / "config.yaml"
    monkeypatch.setattr("quartet.inference.parts.measure", lambda *_: {f"val/{EVIL}": 0.5})
    from quartet.commands.evaluate import report

    settings: Any = OmegaConf.load(Path(__file__).parents[1] / "conf" / "evaluate.yaml")
    report(OmegaConf.merge(settings, {"run": str(stopped.directory), "split": "val"}))  # type: ignore[arg-type]
    assert f"val/{SHOWN}" in capsys.readouterr().out
    path.write_text(path.read_text().replace("_target_: quartet.models.mlp.MLP", f"_target_: {json.dumps(EVIL)}"))
    with pytest.raises(ValueError) as error:
        build.opened(stopped)
    assert f"_target_={SHOWN} is not allowed" in str(error.value)


@pytest.mark.parametrize("content", [None, "", "[]", '{"command": 5}', '{"command": [1, 2]}'])
def test_a_run_whose_environment_is_damaged_ends_well(stopped, content):
    """Only a table in TensorBoard says less; found out after the last step, an error would fail a whole training."""
    path = stopped.directory / "environment.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    build_loggers = {"tensorboard": {"_target_": "quartet.callbacks.tensorboard.RunTensorBoard"}}
    config = stopped.config
    config.logger = build_loggers
    (stopped.directory / "config.yaml").write_text(OmegaConf.to_yaml(config))
    assert train(stopped)["status"] == "completed" and stopped.status == "completed"
