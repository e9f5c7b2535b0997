"""Jobs in the hands of a scheduler: with queues and a submitit that only pretend, so that neither has to be installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode

from quartet.config_groups import CONF
from quartet.run import Run
from quartet.sweeps import cluster
from quartet.sweeps.cluster import Submitit, TrainRun, run_in_batches, run_jobs
from quartet.sweeps.jobs import Job, JobResult

LAUNCHERS = ("slurm", "slurm_local", "ray_tasks")


def config_of(launcher: str, *words: str) -> Any:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        loader = GlobalHydra.instance().config_loader()
        words = ("model=mlp", f"hydra/launcher={launcher}", "hydra.sweep.dir=a", *words)
        return loader.load_configuration("train", list(words), run_mode=RunMode.MULTIRUN)


def made(launcher: str, *words: str) -> tuple[Any, Any]:
    config = config_of(launcher, *words)
    return hydra.utils.instantiate(config.hydra.launcher), config


def set_up(launcher: str, *words: str, installed: bool | None = None) -> Any:
    """A launcher that is set up; `installed`: as if its package were, or were not."""
    plugin, config = made(launcher, *words)
    if installed is not None:  # Hydra imports plugins anew, so that patching the module would not reach the class
        type(plugin).setup.__globals__["find_spec"] = lambda package: installed or None
    plugin.setup(hydra_context=None, task_function=None, config=config)  # type: ignore[arg-type]
    return plugin


# the configs


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(name):
    package, extra = ("ray", "ray") if name == "ray_tasks" else ("submitit", "slurm")
    with pytest.raises(ValueError, match=rf"hydra/launcher={name} needs the package {package}: .*'\.\[{extra}\]'"):
        set_up(name, installed=False)
    project = (CONF.parent / "pyproject.toml").read_text()
    assert f'\n{extra} = ["{package}>=' in project


def test_a_missing_plugin_is_told_in_one_line(script):
    done = script("train", "-m", "model=mlp", "hydra/launcher=submitit_slurm")
    assert done.returncode == 1 and done.stderr.startswith("error: hydra/launcher=submitit_slurm: unknown launcher")
    assert done.stderr.count("\n") == 1 and "slurm, slurm_local" in done.stderr


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("jobs", ["0", "many", "1.5"])
def test_a_wrong_number_of_jobs_is_refused(name, jobs):
    with pytest.raises(ValueError, match=r"hydra.launcher.jobs=.*: an integer of at least 1, or null"):
        set_up(name, f"hydra.launcher.jobs={jobs}", installed=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["seed=1,2"], sys.maxsize),
        (["sweep=optuna"], 1),
        (["sweep=optuna", "sweep.n_jobs=3"], 3),
        (["hydra.launcher.jobs=2"], 2),
    ],
)
def test_a_grid_is_handed_in_at_once_and_a_sampler_gets_results_between(words, expected, monkeypatch):
    seen = []
    monkeypatch.setattr(cluster, "run_jobs", lambda queue, width, *_: seen.append(width))
    launcher = set_up("slurm", *words, installed=True)
    launcher.queue = lambda: None
    launcher.run(iter([]), print, Watcher())
    assert seen == [expected]


# the loop


@pytest.fixture
def jobs(tmp_path) -> list[Job]:
    """Five jobs, each with a run directory."""
    runs = [Run(tmp_path / str(n)) for n in range(5)]
    for n, run in enumerate(runs):
        run.directory.mkdir()
        run.write("trial.json", {"number": n, "overrides": [f"seed={n}"]})
        run.write("result.json", {"status": "completed", "metrics": {}})
    return [Job(n, run, f"seed={n}") for n, run in enumerate(runs)]


class Watcher:
    def started(self, job: Job, log: Path | None = None) -> None: ...

    def overdue(self, job: Job, seconds: float) -> None: ...

    def retried(self, result: JobResult) -> None: ...

    def tick(self) -> None: ...


class Queue:
    """`codes` by job number; a job ends at the second look at it."""

    name, stop = "SLURM", "scancel"

    def __init__(self, codes: dict[int, Any]):
        self.codes, self.looks, self.handed, self.most = codes, {}, [], 0

    def submit(self, jobs):
        self.handed.append([job.number for job in jobs])
        return [f"7_{job.number}" for job in jobs]

    def exits(self, ids):
        self.most = max(self.most, len(ids))
        for name in ids:
            self.looks[name] = self.looks.get(name, 0) + 1
            code = self.codes.get(int(name[2:]), 0)
            if isinstance(code, BaseException):
                raise code
            if self.looks[name] == 2:
                yield name, code


def go_through(queue: Queue, width: int, jobs: list[Job]) -> list[JobResult]:
    results: list[JobResult] = []
    run_jobs(queue, width, iter(jobs), results.append, Watcher(), poll=0)
    return results


def test_as_many_jobs_as_are_wanted_are_in_the_queue(jobs):
    queue = Queue({})
    assert [result.job for result in go_through(queue, 5, jobs)] == jobs and queue.handed == [[0, 1, 2, 3, 4]]
    queue = Queue({})
    assert len(go_through(queue, 2, jobs)) == 5 and queue.most == 2 and queue.handed == [[0, 1], [2, 3], [4]]


def test_each_way_to_end_has_a_status(jobs):
    jobs[0].run.write("result.json", {"status": "failed", "error": "too deep"})
    results = go_through(Queue({0: 1, 1: "ended in SLURM as OUT_OF_MEMORY"}), 5, jobs)
    assert [(r.status, r.message) for r in results[:3]] == [
        ("failed", "too deep"),
        ("killed", "ended in SLURM as OUT_OF_MEMORY"),
        ("completed", ""),
    ]


def test_an_interrupted_sweep_says_how_to_end_what_keeps_running(jobs, capsys):
    with pytest.raises(KeyboardInterrupt):
        go_through(Queue({3: KeyboardInterrupt()}), 2, jobs)
    assert "the jobs that SLURM has keep running; to end them: scancel 7_2 7_3" in capsys.readouterr().err


# what submitit sends to a job


@pytest.mark.parametrize("code", [0, 1])
def test_a_job_writes_its_exit_code(jobs, monkeypatch, code):
    monkeypatch.setattr("quartet.worker.train_directory", lambda directory: code)
    TrainRun(str(jobs[0].run.directory), {"QUARTET_TEST": "1"})()
    assert jobs[0].run.read(cluster.ENDED) == {"exit_code": code} and os.environ.pop("QUARTET_TEST") == "1"


def test_a_job_trusts_what_the_user_of_the_sweep_trusts(jobs, monkeypatch):
    """Whatever a scheduler makes of environment variables."""
    monkeypatch.setenv("QUARTET_TRUST", "mylib")
    assert "mylib" in cluster.environment(jobs[0])["QUARTET_TRUST"].split(",")


@pytest.mark.parametrize(("rank", "expected"), [("0", 128 + signal.SIGUSR2), ("1", 0)])
def test_a_job_whose_time_is_over_ends_for_the_moment(jobs, monkeypatch, rank, expected):
    """Only the first task speaks with SLURM, and the others must not end it."""
    monkeypatch.setenv("SLURM_PROCID", rank)
    monkeypatch.setattr("quartet.worker.train_directory", lambda directory: 128 + signal.SIGUSR2)
    with pytest.raises(SystemExit) as end:
        TrainRun(str(jobs[0].run.directory), {})()
    assert end.value.code == expected and not (jobs[0].run.directory / cluster.ENDED).exists()


# submitit


class FakeExecutor:
    """Hands out ids; a job ends only when a test says so."""

    handed: list[list[str]] = []  # noqa: RUF012
    parameters: dict[str, Any] = {}  # noqa: RUF012
    number = 10

    def __init__(self, folder, cluster, **known):
        self.folder, self._executor = folder, self
        FakeExecutor.parameters = {"cluster": cluster, **known}

    def update_parameters(self, **parameters):
        FakeExecutor.parameters.update(parameters)

    @contextmanager
    def batch(self):
        FakeExecutor.number += 1
        self.handed.append([])
        yield

    def submit(self, work):
        self.handed[-1].append(Path(work.directory).name)
        return types.SimpleNamespace(job_id=f"{self.number}_{len(self.handed[-1]) - 1}")


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """slurm() -> a Submitit; slurm.alive: what squeue lists; slurm.clock: seconds."""
    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(AutoExecutor=FakeExecutor))
    monkeypatch.setattr(FakeExecutor, "handed", [])
    monkeypatch.setattr(FakeExecutor, "number", 10)

    def make() -> Submitit:
        launcher = set_up("slurm", installed=True)
        launcher.directory = tmp_path
        return launcher.queue()

    def answer(command, **_):
        if command[0] == "squeue":
            if make.alive is None:  # type: ignore[attr-defined]
                raise subprocess.CalledProcessError(1, command)
            return types.SimpleNamespace(stdout="\n".join(make.alive))  # type: ignore[attr-defined]
        return types.SimpleNamespace(stdout="JobId=1 JobState=TIMEOUT Reason=None")

    make.alive, make.clock = [], 0.0  # type: ignore[attr-defined]
    monkeypatch.setattr(cluster.subprocess, "run", answer)
    monkeypatch.setattr(cluster.time, "monotonic", lambda: make.clock)  # type: ignore[attr-defined]
    return make


def finish(job: Job, code: int = 0) -> None:
    job.run.write(cluster.ENDED, {"exit_code": code})


def named(names: list[str], jobs: list[Job]) -> dict[str, Job]:
    return dict(zip(names, jobs, strict=True))


def test_jobs_handed_in_together_are_one_array_with_what_was_set_only(slurm, jobs):
    assert slurm().submit(jobs[:3]) == ["11_0", "11_1", "11_2"] and FakeExecutor.handed == [["0", "1", "2"]]
    assert None not in FakeExecutor.parameters.values() and "slurm_partition" not in FakeExecutor.parameters
    assert FakeExecutor.parameters["slurm_max_num_timeout"] == 10 and FakeExecutor.parameters["timeout_min"] == 240


def test_results_come_one_by_one(slurm, jobs):
    queue = slurm()
    slurm.alive = names = queue.submit(jobs[:2])
    assert list(queue.exits(named(names, jobs[:2]))) == []
    finish(jobs[1])
    assert list(queue.exits(named(names, jobs[:2]))) == [("11_1", 0)]


def test_a_job_that_slurm_does_not_know_any_more_is_lost_after_two_looks(slurm, jobs):
    queue = slurm()
    names = queue.submit(jobs[:1])
    looks = []
    for alive in ([], ["11_0"], [], None, [], []):  # one look may fall into the moment in which a job queues again
        slurm.clock += cluster.LOOK
        slurm.alive = alive
        looks.append(list(queue.exits(named(names, jobs[:1]))))
    assert looks[:5] == [[]] * 5
    assert looks[5] == [("11_0", f"ended in SLURM as TIMEOUT without a result; see {queue.folder}/11_0")]


def test_a_sweep_that_resumes_finds_its_jobs_again(slurm, jobs):
    slurm().submit(jobs[:4])
    finish(jobs[1])
    slurm.alive = ["11_2"]  # 0 and 3 have been cancelled
    again = slurm()
    assert again.submit(jobs) == ["12_0", "11_1", "11_2", "12_1", "12_2"]
    assert FakeExecutor.handed[-1] == ["0", "3", "4"]
    assert list(again.exits({"11_1": jobs[1]})) == [("11_1", 0)]
    slurm.alive = ["12_0"]
    assert slurm().submit(jobs[:1]) == ["12_0"], "the last time it was handed in counts"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"exit_code": "0"}', '{"exit_code": true}'])
def test_a_damaged_record_is_no_end(slurm, jobs, text):
    queue = slurm()
    names = queue.submit(jobs[:1])
    (jobs[0].run.directory / cluster.ENDED).write_text(text)
    assert list(queue.exits(named(names, jobs[:1]))) == []


@pytest.mark.parametrize("text", ["", "[]", '{"id": "../../x"}', '{"id": 3}', '{"id'])
def test_an_id_that_is_strange_is_not_believed(slurm, jobs, text):
    (jobs[0].run.directory / cluster.QUEUED).write_text(text)
    assert slurm().submit(jobs[:1]) == ["11_0"]


# launchers of others, which return when all of a batch has ended


class Batches:
    def __init__(self, *failing: int, gives_up: bool = False):
        self.failing, self.gives_up, self.calls = failing, gives_up, []

    def launch(self, job_overrides, initial_job_idx):
        numbers = list(range(initial_job_idx, initial_job_idx + len(job_overrides)))
        self.calls.append(numbers)
        if self.gives_up:
            raise RuntimeError("Job 4_1 has not produced any output")
        return [self._returned(number) for number in numbers]

    def _returned(self, number: int) -> JobReturn:
        returned = JobReturn(status=JobStatus.COMPLETED, _return_value=1.0)
        if number in self.failing:
            returned.status, returned.return_value = JobStatus.FAILED, ValueError("no such thing")
        return returned


@pytest.mark.parametrize(("numbers", "expected"), [(range(5), [[0, 1], [2, 3], [4]]), ([0, 3, 4], [[0], [3, 4]])])
def test_a_batch_has_numbers_without_gaps(jobs, numbers, expected):
    """Launchers are given the first number and count on from it."""
    launcher, results = Batches(3), []
    jobs[3].run.write("result.json", {"status": "failed", "error": "no such thing"})
    run_in_batches(launcher, 2, iter([jobs[n] for n in numbers]), results.append, Watcher())
    assert launcher.calls == expected
    assert [(r.job.number, r.message) for r in results if r.status == "failed"] == [(3, "no such thing")]


def test_a_launcher_that_gives_up_leaves_its_jobs_to_be_resumed(jobs):
    """As the published submitit launcher does when one of the jobs is killed, while others work."""
    launcher, results = Batches(gives_up=True), []
    with pytest.raises(RuntimeError, match="not produced any output"):
        run_in_batches(launcher, 3, iter(jobs), results.append, Watcher())
    assert [(result.job.number, result.status) for result in results] == [(n, "stopped") for n in range(3)]


def test_config_has_no_key_that_submitit_does_not_know():
    """submitit's own words; those of SLURM alone begin with slurm_."""
    shared = {"name", "timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb"}
    ours = {"_target_", "cluster", "jobs", "max_num_timeout"}
    keys = set(config_of("slurm").hydra.launcher)
    assert {key for key in keys - shared - ours if not key.startswith("slurm_")} == set()
    assert keys == set(config_of("slurm_local").hydra.launcher)
