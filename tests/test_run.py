"""The run directory: unique names, whole files, "latest", safe reading."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time

import pytest
from omegaconf import OmegaConf

from quartet.environment import environment
from quartet.run import Run, signature
from quartet.run import outputs as outputs_of

SECONDS = itertools.count(1_000_000_000)  # when runs are made: in order, however fast


def config(**run):
    settings = {"name": "test", "root": "outputs", "dir": None, **run}
    return OmegaConf.create({"seed": 0, "run": settings, "data": {"path": "a", "batch_size": 4}})


def test_a_hundred_runs_started_in_one_second_get_a_hundred_directories(monkeypatch):
    monkeypatch.setattr("quartet.run.environment", lambda: {"git": None})
    monkeypatch.setattr(time, "strftime", lambda _: "2026-01-01_00-00-00")
    made = []
    threads = [threading.Thread(target=lambda: made.append(Run.create(config()).directory)) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 100 and all((path / "config.yaml").is_file() for path in made)


def test_a_name_that_is_taken_is_drawn_again(monkeypatch):
    names = iter(["same", "same", "other"])
    monkeypatch.setattr("secrets.token_hex", lambda n: next(names) if n == 3 else "x")
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    assert [Run.create(config()).directory.name for _ in range(2)] == ["now-same", "now-other"]


def test_run_dir_names_the_directory_and_a_full_one_is_refused(tmp_path):
    run = Run.create(config(dir=str(tmp_path / "here")))
    assert run.directory == tmp_path / "here"
    with pytest.raises(FileExistsError, match=r"run\.dir=.* is not empty"):
        Run.create(config(dir=str(tmp_path / "here")))
    with pytest.raises(FileExistsError, match=r"run\.dir=.* is a file; name another directory"):
        Run.create(config(dir=str(tmp_path / "here" / "config.yaml")))


@pytest.mark.parametrize("changes", [b"", b"diff --git a/x b/x\n"])
def test_what_is_written_is_read(monkeypatch, changes):
    """What the code has beyond its commit is kept beside the name of that."""
    facts = {**environment(), "git": {"commit": "0", "dirty": bool(changes)}}
    monkeypatch.setattr("quartet.run.environment", lambda: facts)
    monkeypatch.setattr("quartet.run.uncommitted_changes", lambda: changes)
    run = Run.create(config())
    run.write("result.json", {"text": "ü中", "number": 0.1})
    assert run.read("result.json") == {"text": "ü中", "number": 0.1}
    assert run.config.data.batch_size == 4
    assert run.read("environment.json")["python"]
    names = {path.name for path in run.directory.iterdir()} - {"config.yaml", "environment.json", "result.json"}
    assert names == ({"uncommitted.diff"} if changes else set())
    assert not changes or (run.directory / "uncommitted.diff").read_bytes() == changes


def made(name: str) -> Run:
    run, second = Run.create(config(name=name)), next(SECONDS)
    os.utime(run.directory / "config.yaml", (second, second))
    return run


def test_latest_is_the_newest_run_with_a_checkpoint(outputs):
    with pytest.raises(FileNotFoundError, match="no trained run"):
        Run.open("latest")
    runs = [made(name) for name in ("a", "b", "sweeps/c")]
    for run in runs[::2]:
        run.checkpoints.mkdir()
        (run.checkpoints / "last.ckpt").touch()
    assert Run.open("latest").directory == runs[2].directory
    (runs[2].checkpoints / "last.ckpt").unlink()
    assert Run.open("latest").directory == runs[0].directory


def test_mistakes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run=nowhere is not a run directory"):
        Run.open("nowhere")
    run = Run.create(config())
    with pytest.raises(FileNotFoundError, match=r"no preprocessing\.json"):
        run.read("preprocessing.json")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        _ = run.best_checkpoint


def test_the_signature_ignores_seed_paths_and_fold_and_nothing_else():
    one, other = config(), config(name="other", dir="elsewhere")
    other.seed, other.data.path = 1, "b"
    assert signature(one) == signature(other)
    other.data.batch_size = 8
    assert signature(one) != signature(other)


def finished(name: str, status: str | None, checkpoint: bool = True) -> Run:
    run = made(name)
    if checkpoint:
        run.checkpoints.mkdir()
        (run.checkpoints / "last.ckpt").touch()
    if status is not None:
        run.write("result.json", {"status": status})
    return run


def test_latest_says_which_and_takes_no_run_that_was_given_up_is_debugged_or_trains(outputs, capsys):
    good = finished("lab/wine/first/try", "completed")
    finished("b", "completed", checkpoint=False)
    finished("c", "pruned")
    finished("debug/d", "completed")
    busy = finished("e", None)
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(busy, pipe := multiprocessing.Event()))
    process.start()
    pipe.wait(10)
    try:
        assert Run.open("latest").directory == good.directory
        assert capsys.readouterr().err == f"latest: {good}\n"
        with pytest.raises(FileNotFoundError, match="was interrupted or killed; name one that failed or was pruned"):
            Run.open_for_resume("latest")
    finally:
        process.terminate()
        process.join()
    assert Run.open("latest").directory == busy.directory, "killed"
    assert Run.open_for_resume("latest").directory == busy.directory
    stopped = finished("f/g", "interrupted")
    finished("h", "failed")
    assert Run.open_for_resume("latest").directory == stopped.directory
    assert Run.open("latest", kind=("letter f", lambda c: c.run.name == "f/g")).directory == stopped.directory
    with pytest.raises(FileNotFoundError, match="no trained letter z below"):
        Run.open("latest", kind=("letter z", lambda c: False))


def _hold(run: Run, ready) -> None:
    with run.exclusively():
        ready.set()
        signal.pause()


@pytest.mark.parametrize("place", ["~/runs", "runs"])
def test_a_home_directory_is_expanded(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QUARTET_OUTPUTS", place)
    expected = tmp_path / "home" / "runs" if place.startswith("~") else tmp_path / place
    assert outputs_of("outputs") == expected and Run.create(config()).directory.is_relative_to(expected)
    assert not (tmp_path / "~").exists()
