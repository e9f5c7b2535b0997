"""The loop of a sweep: with a launcher that only writes results, and a few times as a user would start it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from quartet.cli import resumed_arguments
from quartet.config_groups import CONF
from quartet.run import Run, error_text
from quartet.sweeps import sweep as sweeps
from quartet.sweeps.jobs import JobResult
from quartet.sweeps.plan import Plan
from quartet.sweeps.study import open_study
from quartet.system.signals import Interrupted
from quartet.typed import command

PROJECT = Path(__file__).parents[2]


class Launcher:
    """`work(directory, settings)` stands for a job: it writes a result, returns a JobResult's status, or raises."""

    def __init__(self, work: Callable):
        self.work, self.launched = work, []

    def run(self, jobs, ended, watcher):
        for job in jobs:
            self.launched.append(job.number)
            watcher.started(job)
            words = job.run.read("trial.json")["overrides"]
            settings = dict(word.lstrip("+").split("=", 1) for word in words)
            status, message = "completed", "killed by SIGKILL"
            try:
                status = self.work(job.run.directory, settings) or status
            except Exception as error:
                job.run.mark_failed(error)
                status, message = "failed", error_text(error)
            ended(JobResult(job, status, message))


def write_result(run: Path, value: float | None = 1.0, status: str = "completed", **more) -> None:
    run.mkdir(exist_ok=True)
    (run / "preprocessing.json").write_text("{}")
    result = {"status": status, "metrics": {"val/loss": value, **more}, "steps": 5}
    (run / "result.json").write_text(json.dumps(result))


@pytest.fixture
def sweep(tmp_path, capsys):
    """sweep(work, "lr=1,2", …) -> (exit code, launcher, what was printed); again with the same words: it goes on."""
    import hydra

    def run(work, *words: str):
        GlobalHydra.instance().clear()
        launcher = Launcher(work)
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            loader = GlobalHydra.instance().config_loader()
            overrides = [*words, "sweep.report=false", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
            from hydra.types import RunMode

            config = loader.load_configuration("train", overrides, run_mode=RunMode.MULTIRUN)
            HydraConfig.instance().set_config(config)
            code = 0
            try:
                sweeps.sweep(loader, launcher, config, list(config.hydra.overrides.task))
            except SystemExit as stop:
                code = stop.code
        output = capsys.readouterr()
        return code, launcher, output.out + output.err

    return run


def states(directory: Path) -> list[str]:
    trials = open_study(directory, Plan.read(directory), create=False).get_trials()
    return [trial.state.name.lower() for trial in trials]


GRID = ["model=mlp", "optimizer.lr=1e-3,3e-3", "model.dropout=0,0.1"]
TPE = ["sweep=optuna", "model=mlp", "optimizer.lr=interval(0,1)", "sweep.n_trials=6"]


def good(run: Path, settings: dict[str, str]) -> None:
    write_result(run, float(settings["optimizer.lr"]))


@pytest.mark.parametrize("words", [GRID, TPE])
def test_each_trial_is_launched_once_and_told(sweep, tmp_path, words):
    code, launcher, output = sweep(good, *words)
    n = len(launcher.launched)
    assert code == 0 and launcher.launched == list(range(4 if words is GRID else 6))
    assert states(tmp_path / "sweep") == ["complete"] * n
    assert re.search(r"^job 0 completed  val/loss [\d.]+ \(best so far\)", output, re.M)
    assert sweep(good, *words)[1].launched == [], "it is finished"
    assert len(sweep(good, *words, "sweep.n_trials=9")[1].launched) == (0 if words is GRID else 3), "more of them"


def test_jobs_are_told_what_varies_and_nothing_about_the_sweep(sweep, tmp_path):
    seen = []
    sweep(lambda run, settings: (seen.append(settings), good(run, settings))[1], *GRID, "sweep.seed=3")
    assert seen[1] == {"model": "mlp", "optimizer.lr": "0.001", "model.dropout": "0.1"}
    plan = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert plan["command"] == [*GRID, "sweep.seed=3", "sweep.report=false"], "what sweep.resume repeats"


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 1), (0.7, 1), (0.75, 0)])
def test_each_kind_of_failure_is_told_and_the_others_go_on(sweep, tmp_path, rate, expected):
    def work(run, settings):
        if run.name == "0":
            (run / "preprocessing.json").write_text("{}")
            raise RuntimeError("a bug")
        if run.name == "1":
            return "killed"
        write_result(run, float("nan") if run.name == "2" else 1.0)

    code, launcher, output = sweep(work, *GRID, f"sweep.max_failure_rate={rate}")
    assert code == expected and launcher.launched == [0, 1, 2, 3]
    assert states(tmp_path / "sweep") == ["fail", "fail", "fail", "complete"]
    for line in (
        "job 0 failed: RuntimeError: a bug",
        "job 1 failed: killed by SIGKILL",
        "job 2 failed: its val/loss is missing or not a number",
    ):
        assert f"{line} (" in output
    assert json.loads((tmp_path / "sweep" / "1" / "result.json").read_text())["status"] == "failed", "not unfinished"
    assert ("3 of 4 runs failed, above sweep.max_failure_rate" in output) == bool(expected)


def test_a_pruned_run_is_no_failure(sweep, tmp_path):
    code, _, output = sweep(lambda run, settings: write_result(run, 2.0, status="pruned"), *TPE, "sweep.pruner=asha")
    assert code == 0 and states(tmp_path / "sweep") == ["pruned"] * 6
    assert "job 0 pruned after 5 steps  val/loss 2 (" in output


def test_an_interrupted_sweep_goes_on_where_it_was(sweep, tmp_path, capsys):
    def interrupted(run, settings):
        if run.name == "2":
            raise Interrupted(signal.SIGTERM)
        good(run, settings)

    with pytest.raises(Interrupted):
        sweep(interrupted, *TPE)
    assert f"2 of 6 runs are finished; resume with: {command('train', '-m')} sweep.resume={tmp_path}" in (
        capsys.readouterr().err
    )
    assert states(tmp_path / "sweep") == ["complete", "complete", "running"]
    code, launcher, output = sweep(good, *TPE)
    assert code == 0 and launcher.launched == [2, 3, 4, 5] and "2 of them finished before, 1 to resume" in output


def test_runs_that_ended_while_nobody_could_note_it_are_not_run_again(sweep, tmp_path):
    with pytest.raises(Interrupted):
        sweep(lambda run, settings: (_ for _ in ()).throw(Interrupted(15)), *TPE)
    write_result(tmp_path / "sweep" / "0", 0.25)
    _, launcher, _ = sweep(good, *TPE)
    assert launcher.launched == [1, 2, 3, 4, 5]
    assert open_study(tmp_path / "sweep", Plan.read(tmp_path / "sweep"), create=False).trials[0].value == 0.25


def test_a_time_budget_begins_no_more_runs(sweep, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(sweeps.time, "monotonic", lambda: clock[0])

    def slow(run, settings):
        clock[0] += 0.1
        good(run, settings)

    code, launcher, _ = sweep(slow, *TPE, f"sweep.max_minutes={0.15 / 60}")
    assert code == 0 and launcher.launched == [0, 1]


def test_known_points_come_first(sweep, tmp_path):
    seen = []
    words = [*TPE, "sweep.start=[{optimizer.lr:0.125}]"]
    sweep(lambda run, settings: (seen.append(settings["optimizer.lr"]), good(run, settings))[1], *words)
    assert seen[0] == "0.125" and len(seen) == 6


def test_several_objectives(sweep, tmp_path):
    def work(run, settings):
        more: Any = {"val/f1": 1 - float(settings["optimizer.lr"])}
        write_result(run, float(settings["optimizer.lr"]), **more)

    _, _, output = sweep(work, *TPE, "sweep.objectives={val/loss:min,val/f1:max}")
    study = open_study(tmp_path / "sweep", Plan.read(tmp_path / "sweep"), create=False)
    assert len(study.best_trials) == 1 and "val/f1 " in output and "best so far" not in output


def test_a_mistake_that_every_run_makes_is_told_and_ends_the_sweep(sweep, tmp_path):
    def mistaken(run, settings):
        raise ValueError("monitor.metric must be one of val/loss")

    with pytest.raises(ValueError, match="must be one of val/loss\nevery run of the sweep fails with this") as error:
        sweep(mistaken, *TPE)
    assert not (tmp_path / "sweep").exists() and len(str(error.value).splitlines()) == 2


def test_a_run_to_start_from_is_named_not_the_latest(sweep, tmp_path):
    """Which run is the latest changes while the sweep goes through its jobs."""
    message = "finetune.init_from=latest would be another run in each job of a sweep; name the run directory"
    with pytest.raises(ValueError, match=message):
        sweep(good, "model=rnn", "finetune.init_from=latest", "optimizer.lr=1e-3,3e-3,1e-2")


def test_a_mistake_that_is_new_does_not_end_a_sweep_that_has_had_good_runs(sweep, tmp_path):
    def mistaken_later(run, settings):
        if int(run.name) >= 1:
            raise ValueError("the file has gone")
        good(run, settings)

    code, launcher, _ = sweep(mistaken_later, *TPE)
    assert code == 1 and launcher.launched == [0, 1, 2, 3, 4, 5]


def test_where_all_runs_may_fail_a_mistake_ends_nothing(sweep, tmp_path):
    def mistaken(run, settings):
        raise ValueError("a mistake")

    code, launcher, _ = sweep(mistaken, *TPE, "sweep.max_failure_rate=1")
    assert code == 0 and len(launcher.launched) == 6


def test_another_sweep_in_the_directory_is_refused_with_the_difference(sweep, tmp_path):
    sweep(good, *GRID)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError) as error:
        sweep(good, *GRID[:2], "model.dropout=0,0.2", "trainer.max_epochs=3")
    assert "holds another sweep; give its own command again, or another hydra.sweep.dir" in str(error.value)
    assert "  model.dropout was 0,0.1, is 0,0.2" in str(error.value)
    assert "  trainer.max_epochs=3 is given, was not" in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_of_something_else_is_refused(sweep, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is not empty and not a sweep; name another directory"):
        sweep(good, *GRID)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=mlp", "data=shakespeare", "optimizer.lr=1,2"], "this model accepts table, these data provide tokens"),
        (["model=mlp", "optimizer.lr=interval(2,1)", "sweep=optuna"], "begins above its end"),
        (["model=mlp", "sweep=optuna"], "has nothing to vary"),
        (["model=mlp", "optimizer.lrr=1,2"], "optimizer.lrr: no such key, did you mean optimizer.lr?"),
        (
            ["model=mlp", "+sweep.params={optimizer.lrr:'1,2'}"],
            "optimizer.lrr: no such key, did you mean optimizer.lr?",
        ),
        (["model=mlp,rnm", "seed=1,2"], "model=rnm: unknown model, did you mean rnn"),
    ],
)
def test_mistakes_are_told_before_anything_is_launched(sweep, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        sweep(good, *words)
    assert not (tmp_path / "sweep").exists()


# as a user starts it


def test_the_command_of_a_sweep_is_repeated(outputs):
    with pytest.raises(FileNotFoundError, match="no sweep below"):
        resumed_arguments(["-m", "sweep.resume=latest"])
    directory = outputs / "sweeps" / "a"
    directory.mkdir(parents=True)
    (directory / "sweep.json").write_text(json.dumps({"command": ["model=mlp", "seed=1,2"]}))
    place = f"hydra.sweep.dir={directory}"
    assert resumed_arguments(["-m", "sweep.resume=latest"]) == ["-m", "model=mlp", "seed=1,2", place]
    assert resumed_arguments(["sweep.resume=latest", "-m", "sweep.n_trials=9"])[-2:] == ["sweep.n_trials=9", place]
    assert resumed_arguments(["-m", "seed=1,2"]) == ["-m", "seed=1,2"]
    with pytest.raises(ValueError, match="resumes a sweep; say -m too"):
        resumed_arguments(["sweep.resume=latest"])
    with pytest.raises(FileNotFoundError, match="is not a sweep"):
        resumed_arguments(["-m", f"sweep.resume={outputs}"])


@pytest.mark.parametrize(
    "word",
    [
        "hydra.callbacks.a._target_=os.system",
        "+hydra.callbacks={a:{_target_:os.system}}",
        "--config-dir=/tmp/elsewhere",
        "-cd=/tmp/elsewhere",
        "hydra.searchpath=[/tmp/elsewhere]",
        "hydra.launcher._target_=os.system",
        "hydra.launcher.slurm_setup=[touch /tmp/pwned]",
        "hydra/sweeper=other",
        "experiment=../../outputs/sweeps/stranger/evil",
        "experiment=topics_rnn,../evil",
        "experiment=choice(topics_rnn,/elsewhere/evil)",
        "experiment=[../evil]",
        "experiment='../evil'",
        "experiment=..\\/evil",
        "model@hydra.callbacks.x=mlp",
        "+model@_global_=mlp",
        "+a/../b=c",
        "+../evil=c",
        "elsewhere/model=mlp",
        "++hydra/callbacks=[x]",
        "model=@evil",
        "data.download=true",
        "+data.source.download=true",
        "hydra.launcher.init.address=192.0.2.1:6379",
    ],
)
def test_a_stranger_s_sweep_cannot_run_programs(outputs, word):
    directory = outputs / "sweeps" / "a"
    directory.mkdir(parents=True)
    (directory / "sweep.json").write_text(json.dumps({"command": ["model=mlp", word]}))
    with pytest.raises(ValueError) as error:
        resumed_arguments(["-m", "sweep.resume=latest"])
    assert f"would set {word}, which could run programs" in str(error.value)


@pytest.mark.parametrize(
    "words",
    [
        ["++sweep.params={experiment: '../evil,../worse'}"],
        ["++sweep.params={hydra.callbacks.a._target_: 'os.system,b'}"],
        ["++sweep.params={model@hydra.callbacks.x: 'mlp,rnn'}"],
    ],
)
def test_what_a_stranger_s_sweep_varies_is_read_from_nowhere_else(sweep, tmp_path, words):
    with pytest.raises(ValueError, match=r"^sweep\.params: .* is not (an option|a setting) of"):
        sweep(good, "model=mlp", *words)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("place", ["journal.log", "logs/0.log", "0/checkpoints", ".submitit"])
def test_a_link_that_leads_out_of_a_sweep(sweep, tmp_path, place):
    sweep(good, *GRID)
    victim, link = tmp_path / "victim", tmp_path / "sweep" / place
    victim.write_bytes(b"three thousand bytes" * 150) if "." in Path(place).name[1:] else victim.mkdir()
    before = sorted(path.name for path in tmp_path.iterdir()), victim.stat().st_mtime_ns
    shutil.rmtree(link) if link.is_dir() else link.unlink(missing_ok=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim)
    with pytest.raises(
        ValueError, match=f"{re.escape(place)} climbs out of the sweep, to .*victim; put what it names in"
    ):
        sweep(good, *GRID)
    assert before == (sorted(path.name for path in tmp_path.iterdir()), victim.stat().st_mtime_ns)


def test_a_damaged_sweep_has_no_command(outputs):
    (outputs / "sweeps" / "a").mkdir(parents=True)
    (outputs / "sweeps" / "a" / "sweep.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged"):
        resumed_arguments(["-m", "sweep.resume=latest"])


def test_what_a_launcher_needs_is_repeated(outputs):
    directory = outputs / "sweeps" / "a"
    directory.mkdir(parents=True)
    own = ["+a=1", "~callbacks.figures", "hydra/launcher=slurm", "hydra.launcher.timeout_min=60", "data.path='x y'"]
    own += [
        "model=mlp,image_small",
        "optimizer=choice(adam, sgd)",
        "callbacks=[ema,early_stopping]",
        "+experiment=null",
    ]
    (directory / "sweep.json").write_text(json.dumps({"command": own}))
    assert resumed_arguments(["-m", "sweep.resume=latest"])[1:-1] == own
    shell = "hydra.launcher.slurm_setup=[module load cuda]"
    (directory / "sweep.json").write_text(json.dumps({"command": [shell]}))
    assert resumed_arguments(["-m", "sweep.resume=latest", shell])[1:-1] == [shell, shell], "said again"


SMALL = "model=mlp model.hidden=[16] trainer.max_epochs=6 callbacks.figures=null callbacks.data_report=null"
SPACE = ["optimizer.lr=tag(log,interval(1e-4,1))", "model.dropout=choice(0,0.1)"]


def test_a_killed_sweep_of_real_runs_goes_on_and_touches_nothing_that_was_finished(start, outputs):
    """The long version is benchmarks/sweep_resume.py."""
    words = [*SPACE, "sweep=successive_halving", "sweep.n_trials=8", "sweep.report=false"]
    process = start("train", "-m", *SMALL.split(), *words, f"hydra.sweep.dir={outputs / 'sweeps' / 'a'}")
    deadline = time.monotonic() + 60
    while len(list(outputs.glob("sweeps/a/*/result.json"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    ended = [path for path in outputs.glob("sweeps/a/*/result.json") if Run(path.parent).status != "interrupted"]
    finished = {path: path.stat().st_mtime_ns for path in ended}
    again = start("train", "-m", *SMALL.split(), "sweep.resume=latest").wait()
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    directory = outputs / "sweeps" / "a"
    assert sorted(int(path.name) for path in directory.glob("[0-9]*")) == list(range(8))
    results = [json.loads((directory / str(n) / "result.json").read_text()) for n in range(8)]
    assert [{"completed": "complete"}.get(r["status"], r["status"]) for r in results] == states(directory)
    assert "pruned" in states(directory) and "complete" in states(directory)
    assert not any(name.startswith("test/") for result in results for name in result["metrics"])
    for number in range(8):
        shown = hparams(directory / str(number))
        assert shown.keys() == {"optimizer.lr", "model.dropout", "status"}
        assert shown["status"].string_value == results[number]["status"]
    trial = json.loads((directory / "3" / "trial.json").read_text())
    assert trial["number"] == 3 and "sweep=successive_halving" not in trial["overrides"]
    assert "model=mlp" in trial["overrides"] and any(w.startswith("optimizer.lr=") for w in trial["overrides"])


def hparams(run: Path) -> dict[str, Any]:
    """What TensorBoard's HPARAMS tab shows beside the metrics."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[attr-defined]

    content = EventAccumulator(str(run)).Reload().SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    return dict(HParamsPluginData.FromString(content).session_start_info.hparams)


def test_runs_of_several_workers_are_pruned_together(start, outputs):
    """All workers of a trial have the same settings, the first one asks, all stop."""
    words = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "optimizer.lr=1e-2,1e-6"]
    words += ["sweep.pruner=asha", "sweep.report=false", "hydra.launcher.workers=1"]
    process = start("train", "-m", *SMALL.split(), *words).wait(180)
    assert process.returncode == 0, process.stderr
    results = [json.loads(path.read_text()) for path in outputs.glob("sweeps/*/*/result.json")]
    assert sorted(r["status"] for r in results) == ["completed", "pruned"]
    assert min(result["steps"] for result in results) < max(result["steps"] for result in results)
