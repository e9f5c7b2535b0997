"""Jobs in the hands of a scheduler: with queues and a submitit that only pretend, so that neither has to be installed."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode

from hydra_plugins import quartet_cluster
from quartet.cli import CONF
from quartet.interruption import Interrupted
from quartet.run import Run
from quartet.sweeps import cluster
from quartet.sweeps.batches import launch_batches
from quartet.sweeps.child import Job
from quartet.sweeps.cluster import Submitit, Work, run_jobs
from quartet.sweeps.locks import job_lock, sweep_lock
from quartet.sweeps.pool import Ending

LAUNCHERS = ("slurm", "slurm_local", "ray_tasks")
JOBS = [Job(n, (f"seed={n}",), f"seed={n}") for n in range(5)]


def config_of(launcher: str, *words: str) -> Any:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        loader = GlobalHydra.instance().config_loader()
        words = ("model=mlp", f"hydra/launcher={launcher}", "hydra.sweep.dir=a", *words)
        return loader.load_configuration("train", list(words), run_mode=RunMode.MULTIRUN)


def made(launcher: str, *words: str) -> tuple[Any, Any]:
    config = config_of(launcher, *words)
    return hydra.utils.instantiate(config.hydra.launcher), config


def set_up(launcher: str, *words: str) -> Any:
    plugin, config = made(launcher, *words)
    plugin.setup(hydra_context=None, task_function=None, config=config)  # type: ignore[arg-type]
    return plugin


# the configs


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(name, monkeypatch):
    monkeypatch.setattr(quartet_cluster, "find_spec", lambda package: None)
    package, extra = ("ray", "ray") if name == "ray_tasks" else ("submitit", "slurm")
    with pytest.raises(ValueError, match=rf"hydra/launcher={name} needs the package {package}: .*'\.\[{extra}\]'"):
        set_up(name)
    project = (CONF.parent / "pyproject.toml").read_text()
    assert f'\n{extra} = ["{package}>=' in project


def test_a_missing_plugin_is_told_in_one_line(script):
    done = script("train", "-m", "model=mlp", "hydra/launcher=submitit_slurm")
    assert done.returncode == 1 and done.stderr.startswith("error: hydra/launcher=submitit_slurm: unknown launcher")
    assert done.stderr.count("\n") == 1 and "slurm, slurm_local" in done.stderr


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("jobs", ["0", "many", "1.5"])
def test_a_wrong_number_of_jobs_is_refused(name, jobs, monkeypatch):
    monkeypatch.setattr(quartet_cluster, "find_spec", lambda package: True)
    with pytest.raises(ValueError, match=r"hydra.launcher.jobs=.*: a whole number from 1 on, or null"):
        set_up(name, f"hydra.launcher.jobs={jobs}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["seed=1,2"], 7), (["sweep=optuna"], 1), (["sweep=optuna", "sweep.n_jobs=3"], 3), (["hydra.launcher.jobs=2"], 2)],
)
def test_a_grid_is_handed_in_at_once_and_a_sampler_gets_results_between(words, expected, monkeypatch):
    monkeypatch.setattr(quartet_cluster, "find_spec", lambda package: True)
    seen = []
    monkeypatch.setattr(cluster, "run_jobs", lambda queue, width, *_: seen.append(width))
    launcher = set_up("slurm", *words)
    launcher.queue = lambda: None
    launcher.stream(lambda: None, lambda ending: "", total=7)
    assert seen == [expected]


# the loop


class Queue:
    """`records` by job number; a job ends at the second look at it."""

    name, stop = "SLURM", "scancel"

    def __init__(self, records: dict[int, Any]):
        self.records, self.looks, self.handed, self.most = records, {}, [], 0

    def submit(self, jobs):
        self.handed.append([job.number for job in jobs])
        return [f"7_{job.number}" for job in jobs]

    def results(self, names):
        self.most = max(self.most, len(names))
        for name in names:
            self.looks[name] = self.looks.get(name, 0) + 1
            record = self.records.get(int(name[2:]), {"value": 1.0})
            if isinstance(record, BaseException):
                raise record
            if self.looks[name] == 2:
                yield name, record


def go_through(queue: Queue, width: int) -> list[Ending]:
    jobs, endings = iter(JOBS), []

    def ended(ending: Ending) -> str:
        endings.append(ending)
        return "completed" if ending.kind == "returned" else f"failed: {ending.message}"

    run_jobs(queue, width, lambda: next(jobs, None), ended, poll=0)
    return endings


def test_as_many_jobs_as_are_wanted_are_in_the_queue(capsys):
    queue = Queue({})
    assert [ending.job for ending in go_through(queue, 5)] == JOBS and queue.handed == [[0, 1, 2, 3, 4]]
    queue = Queue({})
    assert len(go_through(queue, 2)) == 5 and queue.most == 2 and queue.handed == [[0, 1], [2, 3], [4]]
    assert "job 4 (7_4) completed" in capsys.readouterr().out


def test_each_way_to_end_is_told(capsys):
    error = cluster.describe(ValueError("too deep"))
    endings = go_through(Queue({0: {"error": error}, 1: {"lost": "ended in SLURM as OUT_OF_MEMORY"}}), 5)
    assert [(e.kind, e.message) for e in endings[:3]] == [
        ("error", "too deep"),
        ("killed", "ended in SLURM as OUT_OF_MEMORY"),
        ("returned", "returned"),
    ]
    assert "error: job 1 (7_1) failed: ended in SLURM as OUT_OF_MEMORY" in capsys.readouterr().err


def test_an_interrupted_sweep_says_how_to_end_what_goes_on(capsys):
    with pytest.raises(KeyboardInterrupt):
        go_through(Queue({3: KeyboardInterrupt()}), 2)
    assert "what SLURM has goes on; to end it: scancel 7_2 7_3" in capsys.readouterr().err


# what travels


def test_the_work_returns_a_record_or_none_at_all(monkeypatch):
    assert Work(lambda job: 0.5)(JOBS[0]) == {"value": 0.5}

    def broken(job):
        raise ValueError("a mistake")

    assert Work(broken)(JOBS[0])["error"]["message"] == "a mistake"

    def stopped(job):
        raise Interrupted(signal.SIGUSR2)

    with pytest.raises(SystemExit) as end:
        Work(stopped)(JOBS[0])
    assert end.value.code == 128 + signal.SIGUSR2
    for name, value in {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "quartet"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        Work(stopped)(JOBS[0])
    assert end.value.code == 0, "the first one is to speak with SLURM, undisturbed"


# submitit


class FakeExecutor:
    """Writes what submitit writes; a result comes only when a test says so."""

    handed: list[list[Job]] = []  # noqa: RUF012
    parameters: dict[str, Any] = {}  # noqa: RUF012
    number = 10

    def __init__(self, folder, cluster, **known):
        self.folder, self._executor = folder, self
        FakeExecutor.parameters = {"cluster": cluster, **known}

    def update_parameters(self, **parameters):
        FakeExecutor.parameters.update(parameters)

    def map_array(self, work, jobs):
        FakeExecutor.number += 1
        self.handed.append(list(jobs))
        return [self.job_class(self.folder, f"{self.number}_{n}", [0]) for n in range(len(jobs))]

    def _num_tasks(self):
        return 1

    class job_class:
        _process = None

        def __init__(self, folder, job_id, tasks):
            self.job_id, place = job_id, Path(str(folder).replace("%j", job_id))
            place.mkdir(exist_ok=True)
            self.paths = types.SimpleNamespace(
                folder=place, result_pickle=place / "result.pkl", stderr=place / "log.err"
            )

        def task(self, n):
            return self


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """slurm() -> a Submitit; slurm.alive: what squeue lists; slurm.clock: seconds."""
    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(AutoExecutor=FakeExecutor))
    monkeypatch.setattr(FakeExecutor, "handed", [])
    monkeypatch.setattr(FakeExecutor, "number", 10)
    (tmp_path / ".submitit").mkdir()

    def make() -> Submitit:
        launcher, _ = made("slurm")
        settings = {name: quartet_cluster._plain(value) for name, value in launcher.settings.items()}
        settings.pop("cluster")
        return Submitit("slurm", tmp_path / ".submitit", settings, settings.pop("max_num_timeout"), Work(lambda job: 1))

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


def finish(queue: Submitit, name: str, record: dict[str, Any]) -> None:
    (queue.folder / name / cluster.RECORD).write_text(json.dumps(record))


def test_jobs_handed_in_together_are_one_array_with_what_was_set_only(slurm):
    assert slurm().submit(JOBS[:3]) == ["11_0", "11_1", "11_2"] and FakeExecutor.handed == [JOBS[:3]]
    assert None not in FakeExecutor.parameters.values() and "slurm_partition" not in FakeExecutor.parameters
    assert FakeExecutor.parameters["slurm_max_num_timeout"] == 10 and FakeExecutor.parameters["timeout_min"] == 240


def test_results_come_one_by_one(slurm):
    queue = slurm()
    slurm.alive = names = queue.submit(JOBS[:2])
    assert list(queue.results(names)) == []
    finish(queue, "11_1", {"value": 2.0})
    assert list(queue.results(names)) == [("11_1", {"value": 2.0})]


def test_a_job_that_slurm_does_not_know_any_more_is_lost_after_two_looks(slurm):
    queue = slurm()
    names = queue.submit(JOBS[:1])
    looks = []
    for alive in ([], ["11_0"], [], None, [], []):  # one look may fall into the moment in which a job queues again
        slurm.clock += cluster.LOOK
        slurm.alive = alive
        looks.append(list(queue.results(names)))
    assert looks[:5] == [[]] * 5
    assert looks[5] == [
        ("11_0", {"lost": f"ended in SLURM as TIMEOUT without a result; see {queue.folder}/11_0/log.err"})
    ]


def test_a_sweep_that_goes_on_finds_its_jobs_again(slurm):
    queue = slurm()
    queue.submit(JOBS[:4])
    finish(queue, "11_1", {"value": 3.0})
    slurm.alive = ["11_2"]  # 0 and 3 have been cancelled
    again = slurm()
    assert again.submit(JOBS) == ["12_0", "11_1", "11_2", "12_1", "12_2"]
    assert FakeExecutor.handed[-1] == [JOBS[0], JOBS[3], JOBS[4]]
    assert list(again.results(["11_1"])) == [("11_1", {"value": 3.0})]
    slurm.alive = ["12_0"]
    assert slurm().submit(JOBS[:1]) == ["12_0"], "the last time it was handed in counts"


class Bomb:
    def __init__(self, harm: Path):
        self.harm = harm

    def __reduce__(self):
        return os.system, (f"touch {self.harm}",)


def test_the_pickles_of_a_stranger_s_sweep_are_not_read(slurm, tmp_path):
    queue = slurm()
    (queue.folder / cluster.JOBS).write_text('{"number": 0, "id": "1"}\n')
    (queue.folder / "1").mkdir()
    (queue.folder / "1" / "result.pkl").write_bytes(pickle.dumps(Bomb(tmp_path / "harm")))
    assert queue.submit(JOBS[:1]) == ["1"]
    assert list(queue.results(["1"])) == [("1", {"lost": f"ended before it began; see {queue.folder}/1/log.err"})]
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("record", ["", "[]", "{}", '{"error": 1}', '{"error": {"types": [1], "message": "a"}}'])
def test_a_damaged_record_is_no_result(slurm, record):
    queue = slurm()
    names = queue.submit(JOBS[:1])
    (queue.folder / names[0] / cluster.RECORD).write_text(record)
    ((_, found),) = queue.results(names)
    assert "record.json" in found["lost"]


def test_a_line_of_jobs_that_was_cut_or_is_strange_is_left_out(slurm):
    queue = slurm()
    (queue.folder / cluster.JOBS).write_text(
        '{"number": 0, "id": "../../x"}\n[]\n{"number": 1, "id": "9"}\n{"number": 2, "i'
    )
    assert queue._handed_in() == {1: "9"}
    queue.submit(JOBS[2:3])
    assert queue._handed_in() == {1: "9", 2: "11_0"}


# locks


def test_locks_are_taken_as_nfs_has_them(tmp_path, monkeypatch):
    """flock(2): on NFS a shared lock needs a file open for reading, an exclusive one a file open for writing."""
    taken, flock = [], fcntl.flock

    def strict(file, operation):
        mode = fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_ACCMODE
        shared = bool(operation & fcntl.LOCK_SH)
        assert mode == os.O_RDWR or mode == (os.O_RDONLY if shared else os.O_WRONLY)
        taken.append(shared)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", strict)
    (tmp_path / "config.yaml").write_text("run: {}\n")
    with sweep_lock(tmp_path), job_lock(tmp_path), Run(tmp_path).exclusively():
        pass
    assert taken.count(True) == 1 and len(taken) > 3
    assert (tmp_path / "config.yaml").read_text() == "run: {}\n"


def test_a_sweep_that_finds_its_jobs_again_does_not_wait_for_them(tmp_path):
    with job_lock(tmp_path):
        with pytest.raises(BlockingIOError, match="still going"), sweep_lock(tmp_path, patience=0):
            pass
        with sweep_lock(tmp_path, patience=0, alone=False):
            pass


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


@pytest.mark.parametrize(
    ("numbers", "expected"), [(range(5), [[0, 1], [2, 3], [4]]), ([0, 3, 4, 7], [[0], [3, 4], [7]])]
)
def test_a_batch_has_numbers_without_gaps(numbers, expected, capsys):
    """Launchers are told the first number and count on from it."""
    launcher, endings = Batches(3), []
    jobs = iter([Job(n, (f"seed={n}",), "") for n in numbers])
    words = {"returned": "completed", "error": "failed: it"}
    launch_batches(launcher, lambda: next(jobs, None), lambda e: (endings.append(e), words[e.kind])[1], n_jobs=2)
    assert launcher.calls == expected
    assert [ending.job.number for ending in endings if ending.kind == "error"] == [3]
    assert "error: job 3 failed: it" in capsys.readouterr().err


def test_a_launcher_that_gives_up_leaves_its_jobs_to_go_on(capsys):
    """As the published submitit launcher does where one of the jobs is killed, while others work."""
    launcher, endings, jobs = Batches(gives_up=True), [], iter(JOBS)
    with pytest.raises(RuntimeError, match="not produced any output"):
        launch_batches(launcher, lambda: next(jobs, None), lambda e: (endings.append(e), "stopped")[1], n_jobs=3)
    assert [(ending.job.number, ending.kind) for ending in endings] == [(0, "stopped"), (1, "stopped"), (2, "stopped")]


def test_config_has_no_key_that_submitit_does_not_know():
    """submitit's own words; those of SLURM alone begin with slurm_."""
    shared = {"name", "timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb"}
    ours = {"_target_", "cluster", "jobs", "max_num_timeout"}
    keys = set(config_of("slurm").hydra.launcher)
    assert {key for key in keys - shared - ours if not key.startswith("slurm_")} == set()
    assert keys == set(config_of("slurm_local").hydra.launcher)
