"""Jobs as processes: however one ends, it ends alone, is noticed within a second, and nothing is left behind.

The jobs are a few lines without torch: each does what the word in its run directory says.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

import quartet
from quartet.run import Run
from quartet.sweeps.jobs import Job, JobResult
from quartet.sweeps.pool import Pool, log_tail
from quartet.system.signals import Interrupted, request, stoppable
from quartet.worker import run_job

SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"


class Watcher:
    """What a pool reports, in order, as (what, number of the job)."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def started(self, job: Job, log: Path | None = None) -> None:
        self.events.append(("started", job.number))

    def overdue(self, job: Job, seconds: float) -> None:
        self.events.append(("overdue", job.number))

    def retried(self, result: JobResult) -> None:
        self.events.append((result.status, result.job.number))

    def tick(self) -> None: ...


def end(run: Path, status: str, **more) -> None:
    (run / "result.json").write_text(json.dumps({"status": status, "metrics": {}, **more}))


def train(run: Path) -> int:
    """Does what the word in the run says."""
    word = (run / "word").read_text()
    print("working on", word)
    (run / "begun").write_text(str(time.time()))
    if word in ("once", "hang once") and (run / "checkpoint").exists():
        print("resuming from", (run / "checkpoint").read_text())
        word = "complete"
    (run / "checkpoint").write_text("step 7")
    if word == "complete":
        end(run, "completed")
        return 0
    if word == "slot":
        wait_for((run.parent / str(int(run.name) ^ 1) / "begun").exists)  # the job beside it
        own_group = os.getpgrp() == os.getpid()
        end(run, "completed", slot=os.environ["SLOT"], facts=[own_group, os.isatty(1), sys.stdin.read()])
        return 0
    if word == "fail":
        end(run, "failed", error="no such column")
        return 1
    if word in ("kill", "once"):
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "exit":
        os._exit(3)
    if word == "stubborn":  # with a helper in its group
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        helper = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE)
        assert helper.stdout
        helper.stdout.readline()
        (run / "pids").write_text(f"{helper.pid} {os.getpid()}")
    if word == "save":
        try:
            with stoppable() as request:
                request.deferred = True
                (run / "up").touch()
                while request.signum is None:
                    time.sleep(0.01)
                time.sleep(0.2)
                (run / "saved").write_text(str(request.signum))
                raise Interrupted(request.signum)
        except Interrupted as stop:
            end(run, "interrupted")
            return stop.exit_code
    time.sleep(60)
    return 0


@pytest.fixture
def pool(tmp_path):
    """pool("complete", "kill", …) -> the results of jobs with these words, in the order in which they came."""

    def run(*words: str, workers: int = 1, ended=None, watcher=None, **settings) -> list[JobResult]:
        results: list[JobResult] = []
        run.results = results  # type: ignore[attr-defined]
        slots = [{"SLOT": str(i)} for i in range(workers)]
        target = functools.partial(run_job, train=train)
        made = Pool(slots=slots, logs=tmp_path / "logs", target=target, **settings)
        made.run(jobs(tmp_path, words), ended or results.append, watcher or Watcher())
        return results

    return run


def jobs(folder: Path, words):
    for number, word in enumerate(words):
        directory = folder / str(number)
        directory.mkdir()
        (directory / "word").write_text(word)
        yield Job(number, Run(directory))


def wait_for(condition, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_however_a_job_ends_it_is_noticed_at_once_and_the_others_continue(pool, tmp_path):
    words = ("hang", "complete", "fail", "kill", "exit", "complete")
    ends: dict[int, float] = {}
    results: dict[int, JobResult] = {}

    def ended(result: JobResult) -> None:
        ends[result.job.number], results[result.job.number] = time.time(), result

    limit = 5  # seconds; more than the others take on a busy machine
    pool(*words, workers=2, ended=ended, timeout_seconds=limit)
    statuses = ["timeout", "completed", "failed", "killed", "killed", "completed"]
    assert [results[n].status for n in range(6)] == statuses
    for n, told in {0: f"limit of {limit:.1f} s", 2: "no such column", 3: "SIGKILL", 4: "exit code 3"}.items():
        assert told in results[n].message
    begun = {n: float((tmp_path / str(n) / "begun").read_text()) for n in results}
    assert all(ends[n] - begun[n] < (limit + 3 if n == 0 else limit) for n in results)
    assert log_tail(tmp_path / "logs" / "2.log", 2) == ["working on fail"]


def test_a_job_finds_its_slot_and_leaves_nothing_changed(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("QUARTET_TEST", "before")
    before = dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    pool(*["slot"] * 4, workers=2, environment={"QUARTET_TEST": "within"})
    found = [json.loads((tmp_path / str(n) / "result.json").read_text()) for n in range(4)]
    assert sorted(result["slot"] for result in found) == list("0011")
    assert all(result["facts"] == [True, False, ""] for result in found)
    assert before == (dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_server_imports_nothing_from_the_working_directory(tmp_path):
    (tmp_path / "random.py").write_text("print('mine')")
    (tmp_path / "quartet").mkdir()
    (tmp_path / "quartet" / "__init__.py").write_text("raise SystemExit('a stranger was imported')")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_pool import Pool, Watcher, functools, jobs, run_job, train\n"
        "if __name__ == '__main__':\n"
        "    pool = Pool(slots=[{'SLOT': ''}], logs=Path('logs'), target=functools.partial(run_job, train=train))\n"
        "    pool.run(jobs(Path.cwd(), ['complete']), lambda result: print(result.status), Watcher())\n"
    )
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "elsewhere" / "program.py"), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(quartet.__file__).parents[1])},
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("completed\n", "")


def test_a_job_is_asked_for_when_a_worker_is_free(tmp_path):
    """Whoever chooses the next one knows what came of those before."""
    order: list[str] = []

    def asked():
        for job in jobs(tmp_path, ["complete"] * 3):
            order.append("asked")
            yield job
        order.append("asked")

    made = Pool(slots=[{"SLOT": ""}], logs=tmp_path / "logs", target=functools.partial(run_job, train=train))
    made.run(asked(), lambda result: order.append("ended"), Watcher())
    assert order == ["asked", "ended"] * 3 + ["asked"]


def test_a_killed_or_hanging_job_starts_again(pool, tmp_path):
    """It resumes from what it saved, in the same log; an error of the program is final."""
    watcher = Watcher()
    results = pool("once", "hang once", "fail", retries=1, timeout_seconds=3, watcher=watcher)
    assert [(r.status, r.attempts) for r in results] == [("completed", 2), ("completed", 2), ("failed", 1)]
    assert watcher.events == [
        *[("started", 0), ("killed", 0), ("started", 0)],
        *[("started", 1), ("overdue", 1), ("timeout", 1), ("started", 1), ("started", 2)],
    ]
    assert (tmp_path / "logs" / "0.log").read_text() == "working on once\nworking on once\nresuming from step 7\n"


def test_a_job_that_is_killed_each_time_is_reported_once(pool):
    (result,) = pool("kill", retries=2)
    assert (result.status, result.attempts) == ("killed", 3)


def test_past_its_limit_a_job_that_does_not_stop_is_killed_with_its_group(pool, tmp_path):
    begun = time.monotonic()
    (result,) = pool("stubborn", timeout_seconds=1, grace=0.5)
    assert result.status == "timeout" and time.monotonic() - begun < 4
    wait_for(lambda: not any(map(alive, map(int, (tmp_path / "0" / "pids").read_text().split()))))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_sweep_lets_the_jobs_save(pool, tmp_path, capfd, signum):
    def interrupt() -> None:
        wait_for(lambda: all((tmp_path / str(n) / "up").exists() for n in (0, 1)))
        os.kill(os.getpid(), signum)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted) as stop:
        pool(*["save"] * 4, workers=2, retries=1)
    assert stop.value.signum == signum
    found = sorted((r.job.number, r.status, r.attempts) for r in pool.results)
    assert found == [(0, "stopped", 1), (1, "stopped", 1)]
    assert [(tmp_path / str(n) / "saved").read_text() for n in (0, 1)] == [str(int(signal.SIGTERM))] * 2
    assert capfd.readouterr().err.count("Ctrl-C again kills them") == 1


def test_a_second_ctrl_c_kills(pool, tmp_path):
    def interrupt() -> None:
        wait_for((tmp_path / "0" / "pids").exists)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            wait_for(lambda: request.signum == signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted):
        pool("stubborn", "stubborn")
    thread.join()
    assert [result.status for result in pool.results] == ["stopped"]
    wait_for(lambda: not any(map(alive, map(int, (tmp_path / "0" / "pids").read_text().split()))))


def test_an_error_of_whoever_hands_in_the_jobs_stops_them(pool, tmp_path):
    def ended(result: JobResult) -> None:
        wait_for((tmp_path / "0" / "up").exists)
        raise KeyError("the study")

    with pytest.raises(KeyError):
        pool("save", "complete", workers=2, ended=ended)
    assert (tmp_path / "0" / "saved").exists()


# a sweep in a process of its own
SWEEP = """
import sys
sys.path.insert(0, sys.argv[2])
from test_pool import *
folder = Path(sys.argv[1])
pool = Pool(slots=[{"SLOT": ""}], logs=folder / "logs", target=functools.partial(run_job, train=train))
pool.run(jobs(folder, ["save"]), print, Watcher())
"""


@pytest.mark.parametrize("group", [False, True], ids=["killed", "terminated with all that belongs to it"])
def test_jobs_do_not_outlive_the_sweep(tmp_path, group):
    """Killed, it cannot stop them; a scheduler tells all processes at once, and the sweep still waits for its jobs."""
    command = [sys.executable, "-c", SWEEP, str(tmp_path), str(Path(__file__).parent)]
    sweep = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "0" / "up").exists, seconds=30)
    begun = time.monotonic()
    os.killpg(sweep.pid, signal.SIGTERM) if group else sweep.kill()
    sweep.wait()
    if not group:
        wait_for((tmp_path / "0" / "saved").exists)
    assert (tmp_path / "0" / "saved").read_text() == str(int(signal.SIGTERM))
    wait_for(lambda: not processes_of(sweep.pid))
    assert time.monotonic() - begun < 5


def processes_of(session: int) -> list[int]:
    """The server and the jobs of a sweep that leads a session."""
    stats = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return [1 for stat in stats if int(stat[3]) == session and stat[0] != "Z"]


def test_the_tail_of_a_log_holds_the_last_state_of_a_progress_bar(tmp_path):
    (tmp_path / "log").write_bytes(b"a\nhalf\r\x1b[31mValueError\x1b[0m: no\n")
    assert log_tail(tmp_path / "log", 2) == ["a", "ValueError: no"] and log_tail(tmp_path / "none", 2) == []


def test_a_signal_while_the_server_starts_is_kept(pool, monkeypatch):
    start = forkserver.ensure_running

    def ensure_running() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        start()

    monkeypatch.setattr(forkserver, "ensure_running", ensure_running)
    with pytest.raises(Interrupted):
        pool("complete")
    assert pool.results == [], "no job begins any more"
