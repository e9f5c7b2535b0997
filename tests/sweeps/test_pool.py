"""Jobs as processes: however one ends, it ends alone, is told within a second, and nothing is left behind.

The work of these jobs is a few lines without torch; cloudpickle carries this file's functions.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import pytest

import quartet
from quartet.interruption import Interrupted, stoppable
from quartet.sweeps.child import Job, marked
from quartet.sweeps.pool import Ending, Observer, Pool

cloudpickle.register_pickle_by_value(sys.modules[__name__])
SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"


class Told(Observer):
    """What a pool told, in order, as (what, number of the job)."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def started(self, job: Job, log: Path) -> None:
        self.events.append(("started", job.number))

    def overdue(self, job: Job, seconds: float) -> None:
        self.events.append(("overdue", job.number))

    def retried(self, ending: Ending) -> None:
        self.events.append((ending.message, ending.job.number))


@pytest.fixture
def run(tmp_path):
    """run(work, "a", "b") -> the endings of the jobs with these words, in the order in which they came."""

    def run_pool(
        work, *words: str, workers: int = 1, ended=None, tell: Observer | None = None, **settings
    ) -> list[Ending]:
        jobs = iter([Job(number, (str(tmp_path), word)) for number, word in enumerate(words)])
        endings: list[Ending] = []
        pool = Pool(work, slots=[{"SLOT": str(i)} for i in range(workers)], logs=tmp_path / "logs", **settings)
        run_pool.endings = endings
        pool.run(lambda: next(jobs, None), ended or endings.append, tell)
        return endings

    return run_pool


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


def end_as_told(job: Job):
    folder, word = job.overrides
    print("working on", word)
    (Path(folder) / word).write_text(str(time.time()))
    if word == "value":
        return [1.5, None]
    if word == "raise":
        raise ValueError("no such column")
    if word == "memory":
        raise MemoryError
    if word == "set":
        return {1}
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "exit":
        os._exit(3)
    time.sleep(60)


def test_however_a_job_ends_it_is_told_at_once_and_the_others_go_on(run, tmp_path):
    words = ("hang", "value", "raise", "memory", "set", "kill", "exit", "value")
    ends: dict[int, float] = {}
    endings: dict[int, Ending] = {}

    def ended(ending: Ending) -> None:
        ends[ending.job.number], endings[ending.job.number] = time.time(), ending

    run(end_as_told, *words, workers=2, ended=ended, timeout_seconds=1)
    found = {n: (e.kind, e.message, e.value, e.exit_code, e.attempts) for n, e in endings.items()}
    assert found == {
        0: ("timeout", "stopped at its time limit of 1 s", None, -signal.SIGTERM, 1),
        1: ("returned", "completed", [1.5, None], 0, 1),
        2: ("error", "no such column", None, 1, 1),
        3: ("error", "MemoryError", None, 1, 1),
        4: ("error", "TypeError: Object of type set is not JSON serializable", None, 1, 1),
        5: ("killed", "killed by SIGKILL, as Linux does when memory runs out", None, -signal.SIGKILL, 1),
        6: ("killed", "ended with exit code 3 and without an error", None, 3, 1),
        7: ("returned", "completed", [1.5, None], 0, 1),
    }
    for number in (1, 2, 3, 4, 5, 6, 7):
        assert ends[number] - float((tmp_path / words[number]).read_text()) < 1
    assert ends[0] - float((tmp_path / "hang").read_text()) < 2, "a second after the limit"
    assert endings[2].log_tail(2) == ["working on raise", "error: no such column"]
    assert endings[3].log_tail(1) == ["MemoryError"] and "Traceback" in (tmp_path / "logs" / "3.log").read_text()


def test_a_job_finds_its_slot_and_leaves_nothing_changed(run, monkeypatch):
    monkeypatch.setenv("QUARTET_TEST", "before")
    before = dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def slot(job: Job):
        time.sleep(0.2)
        own_group, method = os.getpgrp() == os.getpid(), multiprocessing.get_start_method(allow_none=True)
        return [os.environ["SLOT"], own_group, os.isatty(1), sys.stdin.read(), method]

    endings = run(slot, *"abcd", workers=2, environment={"QUARTET_TEST": "within"})
    assert sorted(e.value for e in endings) == [[slot, True, False, "", None] for slot in "0011"]
    assert before == (dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_server_imports_nothing_from_the_working_directory(tmp_path):
    (tmp_path / "random.py").write_text("print('mine')")
    (tmp_path / "quartet").mkdir()
    (tmp_path / "quartet" / "__init__.py").write_text("raise SystemExit('a stranger was imported')")
    program = (
        "from pathlib import Path; from quartet.sweeps.child import Job; from quartet.sweeps.pool import Pool\n"
        "ends = []; jobs = iter([Job(0, ())])\n"
        "if __name__ == '__main__':\n"
        "    pool = Pool(lambda job: 1.5, slots=[{}], logs=Path('logs'))\n"
        "    pool.run(lambda: next(jobs, None), ends.append)\n"
        "    print(ends[0].value)\n"
    )
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "program.py").write_text(program)
    path = str(Path(quartet.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(tmp_path / "elsewhere" / "program.py")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("1.5\n", "")


def test_a_job_is_asked_for_when_a_worker_is_free(run, tmp_path):
    """So that who chooses the next one knows what came of those before."""
    order: list[str] = []
    jobs = iter([Job(number, (str(tmp_path), "value")) for number in range(3)])

    def next_job() -> Job | None:
        order.append("asked")
        return next(jobs, None)

    pool = Pool(end_as_told, slots=[{}], logs=tmp_path / "logs")
    pool.run(next_job, lambda ending: order.append("ended"))
    assert order == ["asked", "ended"] * 3 + ["asked"]


def fail_once(job: Job):
    folder, _ = job.overrides
    checkpoint = Path(folder) / f"{job.number}.ckpt"
    if checkpoint.exists():
        print("going on from", checkpoint.read_text())
        return checkpoint.read_text()
    checkpoint.write_text("step 7")
    return end_as_told(job)


def test_a_killed_or_hanging_job_starts_again(run, tmp_path):
    """It goes on from what it saved, in the same log; an error of the program is final."""
    tell = Told()
    endings = run(fail_once, "kill", "hang", "raise", retries=1, timeout_seconds=0.5, tell=tell)
    assert [(e.kind, e.value, e.attempts) for e in endings] == [
        ("returned", "step 7", 2),
        ("returned", "step 7", 2),
        ("error", None, 1),
    ]
    assert tell.events == [
        ("started", 0),
        ("killed by SIGKILL, as Linux does when memory runs out", 0),
        ("started", 0),
        ("started", 1),
        ("overdue", 1),
        ("stopped at its time limit of 0.5 s", 1),
        ("started", 1),
        ("started", 2),
    ]
    assert (tmp_path / "logs" / "0.log").read_text() == "working on kill\ngoing on from step 7\n"


def test_a_job_that_fails_each_time_is_reported_once(run):
    (ending,) = run(end_as_told, "kill", retries=2)
    assert (ending.kind, ending.attempts) == ("killed", 3)


def ignore_signals(job: Job):
    """With a helper in its group and one in a session of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    helpers = [
        subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, start_new_session=session)
        for session in (False, True)
    ]
    for helper in helpers:
        assert helper.stdout
        helper.stdout.readline()
    (Path(job.overrides[0]) / "pids").write_text(" ".join(str(helper.pid) for helper in helpers))
    if job.overrides[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def test_past_its_limit_a_job_that_does_not_stop_is_killed_with_all_that_it_started(run, tmp_path):
    begun = time.monotonic()
    (ending,) = run(ignore_signals, "hang", timeout_seconds=1, grace=0.5)
    assert (ending.kind, ending.exit_code) == ("timeout", -signal.SIGKILL)
    assert time.monotonic() - begun < 4
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    wait_for(lambda: not any(map(alive, pids)))


def test_what_a_killed_job_leaves_is_gone_before_it_starts_again(run, tmp_path):
    """As torchelastic's workers, which write to the same run; they have the grace to save."""

    def work(job: Job):
        if not (Path(job.overrides[0]) / "pids").exists():
            ignore_signals(job)
        return [alive(int(pid)) for pid in (Path(job.overrides[0]) / "pids").read_text().split()]

    (ending,) = run(work, "kill", retries=1, grace=0.5)
    assert ending.value == [False, False]
    assert 0.5 < ending.seconds < 5


def save_when_stopped(job: Job):
    folder = Path(job.overrides[0])
    with stoppable() as request:
        request.deferred = True
        (folder / f"up{job.number}").touch()
        while request.signum is None:
            time.sleep(0.01)
        time.sleep(0.2)
        (folder / f"saved{job.number}").write_text(str(request.signum))
        raise Interrupted(request.signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_sweep_lets_the_jobs_save(run, tmp_path, capfd, signum):
    def interrupt() -> None:
        wait_for(lambda: all((tmp_path / f"up{i}").exists() for i in (0, 1)))
        os.kill(os.getpid(), signum)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Interrupted) as stop:
        run(save_when_stopped, *"abcd", workers=2, retries=1)
    assert stop.value.signum == signum
    assert [(e.job.number, e.kind, e.message, e.attempts) for e in sorted(run.endings, key=lambda e: e.job.number)] == [
        (0, "stopped", "stopped with the sweep", 1),
        (1, "stopped", "stopped with the sweep", 1),
    ]
    assert [(tmp_path / f"saved{i}").read_text() for i in (0, 1)] == [str(int(signal.SIGTERM))] * 2
    assert capfd.readouterr().err == (
        "\nstopping the jobs after their step, with a checkpoint each; Ctrl-C again kills them\n"
    )


def test_a_second_ctrl_c_kills(run, tmp_path):
    def interrupt() -> None:
        wait_for((tmp_path / "pids").exists)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted):
        run(ignore_signals, "hang", "hang")
    thread.join()
    assert [(e.kind, e.exit_code) for e in run.endings] == [("stopped", -signal.SIGKILL)]
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    wait_for(lambda: not any(map(alive, pids)))


def test_an_error_of_the_one_who_asks_stops_the_jobs(run, tmp_path):
    def ended(ending: Ending) -> None:
        wait_for((tmp_path / "up0").exists)
        raise KeyError("the study")

    def work(job: Job):
        return save_when_stopped(job) if job.overrides[1] == "save" else 1

    with pytest.raises(KeyError):
        run(work, "save", "end", workers=2, ended=ended)
    assert (tmp_path / "saved0").exists()


def test_without_its_server_a_job_starts_again(run):
    """The kernel may choose the server where memory runs out."""

    def work(job: Job):
        mark = Path(job.overrides[0]) / "killed"
        if not mark.exists():
            mark.write_text(str(os.getpid()))
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        return alive(int(mark.read_text()))

    (ending,) = run(work, "a", retries=1)
    assert (ending.kind, ending.value, ending.attempts) == ("returned", False, 2)


# a sweep in a process of its own
SWEEP = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_pool import *
folder = Path(sys.argv[1])
jobs = iter([Job(0, (str(folder), "a"))])
Pool(save_when_stopped, slots=[{}], logs=folder / "logs").run(lambda: next(jobs, None), print)
"""


@pytest.mark.parametrize("group", [False, True], ids=["killed", "terminated with all that belongs to it"])
def test_jobs_do_not_outlive_the_sweep(tmp_path, group):
    """Killed, it cannot stop them; a scheduler tells all processes at once, and the sweep still waits for its jobs."""
    command = [sys.executable, "-c", SWEEP, str(tmp_path), str(Path(__file__).parent)]
    sweep = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "up0").exists)
    begun = time.monotonic()
    os.killpg(sweep.pid, signal.SIGTERM) if group else sweep.kill()
    sweep.wait()
    if not group:
        wait_for((tmp_path / "saved0").exists)
    assert (tmp_path / "saved0").read_text() == str(int(signal.SIGTERM))
    wait_for(lambda: not processes_of(sweep.pid))
    assert time.monotonic() - begun < 5


def processes_of(session: int) -> list[int]:
    """The server and the jobs of a sweep that leads a session."""
    stats = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    return [1 for stat in stats if int(stat[3]) == session and stat[0] != "Z"]


def test_marks(tmp_path):
    log = tmp_path / "7.log"
    process = subprocess.Popen([sys.executable, "-c", SLEEPER], env={"QUARTET_JOB": str(log)}, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    assert marked(log) == [process.pid] and marked(tmp_path / "8.log") == []
    process.kill()


def test_a_log_that_cannot_be_written(run, tmp_path, capfd):
    (tmp_path / "logs").touch()
    (ending,) = run(end_as_told, "value")
    assert (ending.kind, ending.message) == ("error", f"[Errno 17] File exists: '{tmp_path / 'logs'}'")
    assert ending.log_tail(3) == []
