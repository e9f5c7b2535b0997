"""Data-parallel workers: replaced when killed, one clear error when the program fails, nobody left behind.

Most workers here are stubs without torch; only what is about gloo, torchrun and SLURM imports it again.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quartet.engine.workers import (
    Failure,
    WorkerFailed,
    environment_rank,
    exception_from_dict,
    exception_to_dict,
    run_workers,
    share_directory,
)

PROJECT = Path(__file__).parents[1]

# the real worker, with a training of a few lines in the place of ours
WORKER = """
import os, signal, sys, time, types
from pathlib import Path
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RUN_ID"].split("-")[-1])
def kill(): os.kill(os.getpid(), signal.SIGKILL)
def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition(): assert time.monotonic() < deadline; time.sleep(0.01)
def dead(note):
    try: return "Z" in Path("/proc", note.read_text(), "stat").read_text().rpartition(")")[2]
    except FileNotFoundError: return note.exists()
def train(run):
    {body}
sys.modules["quartet.engine.fit"] = types.SimpleNamespace(train=train)
from quartet import worker
sys.argv = ["worker", {directory!r}]
worker.main()
"""

# run_workers in a process of its own, once for each script
PARENT = """
import signal, sys
from pathlib import Path
from quartet.system.signals import Interrupted
from quartet.engine.workers import run_workers
for script in sys.argv[3:]:
    try:
        run_workers(Path(script).parent, int(sys.argv[1]), max_restarts=2, command=[sys.executable, script],
                    n_nodes=2 if sys.argv[2] else 1, rendezvous=sys.argv[2] or None)
        print("well", flush=True)
    except Interrupted as stop:
        print(stop.exit_code, flush=True)
"""


@pytest.fixture
def stub(tmp_path):
    """stub("print(rank)") -> a script whose training is these lines; its folder is the run directory."""

    def write(*lines: str) -> Path:
        path = tmp_path / f"run{len(list(tmp_path.glob('run*')))}" / "worker.py"
        path.parent.mkdir()
        path.write_text(WORKER.format(body="\n    ".join(lines), directory=str(path.parent)))
        return path

    return write


def run(script: Path, n: int = 2, max_restarts: int = 2, **settings) -> None:
    run_workers(script.parent, n, max_restarts=max_restarts, command=[sys.executable, str(script)], **settings)


@pytest.fixture
def python():
    """python("-c", …) -> a running process that imports this package; killed after the test."""
    running = []

    def start(*command: str, **environment: str) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": str(PROJECT / "src"), **environment}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen([sys.executable, *command], env=env, **pipes))
        return running[-1]

    yield start
    for process in running:
        process.kill()


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 60
    while not all(path.is_file() and path.read_text() for path in paths):
        assert time.monotonic() < deadline, f"{paths} were never written"
        time.sleep(0.02)


def assert_one_restart(err: str) -> None:
    """One line that names the worker, the signal and the restart."""
    assert re.fullmatch(r"worker 1 .*SIGKILL.* 1 of 2\n", err), err


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_several_calls_in_one_process(stub, capfd, monkeypatch):
    """As in a multirun. Rank 0 alone is heard, errors of all are; nothing of torchelastic, and nothing stays changed."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    before = dict(os.environ), [signal.getsignal(signum) for signum in signals]
    for _ in range(2):
        run(stub("print('rank', rank, os.environ['OMP_NUM_THREADS']); print('from', rank, file=sys.stderr)"))
        out, err = capfd.readouterr()
        assert out == f"rank 0 {max(1, len(os.sched_getaffinity(0)) // 2)}\n"
        assert sorted(err.splitlines()) == ["from 0", "from 1"]
    assert before == (dict(os.environ), [signal.getsignal(signum) for signum in signals])


def test_a_killed_worker_is_replaced(stub, capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run(
        stub(
            "if attempt == 0: kill() if rank == 1 else time.sleep(60)", "print(attempt, os.environ['OMP_NUM_THREADS'])"
        )
    )
    out, err = capfd.readouterr()
    assert out == "1 3\n"
    assert_one_restart(err)


def test_a_worker_killed_each_time_is_an_error(stub, capfd):
    with pytest.raises(ChildProcessError, match=r"^worker 1 was killed \(SIGKILL\) after 1 of 1 restarts: .* memory"):
        run(stub("kill() if rank == 1 else time.sleep(60)"), max_restarts=1)
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        ("ValueError('no such column')", ValueError, "no such column"),
        ("FileNotFoundError(2, 'gone', 'x.csv')", OSError, "[Errno 2] gone: 'x.csv'"),
        ("TypeError('not a number')", WorkerFailed, "TypeError: not a number"),
    ],
)
def test_an_error_of_the_program_is_raised_here_and_not_retried(stub, capfd, error, kind, message):
    """Worker 1 fails first. Worker 0 fails because of it, and is not the one to be shown."""
    note = (
        "Path(os.environ['TORCHELASTIC_ERROR_FILE'].replace('/0/error', '/1/error'))"  # worker 1 hands its error over
    )
    script = stub(f"if rank == 1: raise {error}", f"wait_for({note}.exists); raise KeyError('because of 1')")
    with pytest.raises(kind) as raised:
        run(script)
    assert (type(raised.value), str(raised.value)) == (kind, message)
    assert ", in train" in raised.value.__notes__[0], "the worker's traceback is there for HYDRA_FULL_ERROR=1"
    assert capfd.readouterr() == ("", "")


def test_an_error_that_was_not_handed_over(tmp_path):
    (tmp_path / "worker.py").write_text("import sys; sys.exit(3)")
    with pytest.raises(ChildProcessError, match=r"^worker \d ended with exit code 3"):
        run(tmp_path / "worker.py")


def test_signals_to_the_parent_reach_the_workers_once(stub, python):
    """They have time to save after SIGINT and SIGTERM, and they do not outlive a parent that is killed."""
    script = stub(
        "from quartet.system.signals import Interrupted, stoppable",
        "with stoppable() as request:",
        "    request.deferred, seen = True, []",
        "    request.receive, receive = (lambda *a: (seen.append(a[0]), receive(*a))), request.receive",
        "    request.listen()",
        "    (run.directory / f'up{rank}').write_text(str(os.getpid()))",
        "    while request.signum is None: time.sleep(0.01)",
        "    time.sleep(0.3)",
        "    (run.directory / f'saved{rank}').write_text(str(seen))",
        "    raise Interrupted(request.signum)",
    )
    scripts = [script, *(script.parents[1] / f"run{i}" / "worker.py" for i in (1, 2))]
    for copy in scripts[1:]:
        copy.parent.mkdir()
        copy.write_text(script.read_text().replace(str(script.parent), str(copy.parent)))
    parent = python("-c", PARENT, "2", "", *map(str, scripts), TMPDIR=str(script.parents[1]))
    for script, signum in zip(scripts, (signal.SIGINT, signal.SIGTERM, signal.SIGKILL), strict=True):
        up, saved = ([script.with_name(f"{name}{rank}") for rank in (0, 1)] for name in ("up", "saved"))
        wait_for(*up)
        pids = [int(path.read_text()) for path in up]
        time.sleep(0.1)
        begun = time.monotonic()
        parent.send_signal(signum)
        wait_for(*saved)
        while any(map(alive, pids)):
            assert time.monotonic() < begun + 20
            time.sleep(0.02)
        expected = signal.SIGTERM if signum == signal.SIGKILL else signum
        assert [path.read_text() for path in saved] == [f"[{int(expected)}]"] * 2
    out, err = parent.communicate()
    assert out.split() == ["130", "143"] and "Traceback" not in err


def test_a_worker_killed_within_a_collective_operation(stub, capfd):
    """Its peer gets an error from gloo, which is not what the user is told; the next attempt adds up."""
    run(
        stub(
            "import torch, torch.distributed as dist",
            "dist.init_process_group('gloo')",
            "for step in range(20):",
            "    if attempt == 0 and rank == 1 and step == 10: kill()",
            "    total = torch.ones(1); dist.all_reduce(total)",
            "print(attempt, int(total)); dist.destroy_process_group()",
        )
    )
    out, err = capfd.readouterr()
    assert out == "1 2\n"
    assert_one_restart(err)


def test_two_nodes(stub, python, capfd):
    """A worker each. One is killed; both nodes start again, and meet again."""
    script = stub(
        "note = run.directory / 'pid'",
        "if attempt == 0 and rank == 1: note.write_text(str(os.getpid())); kill()",
        "if attempt == 0: wait_for(lambda: dead(note)); raise ConnectionError('the other end')",
        "(run.directory / f'well{rank}').write_text(os.environ['WORLD_SIZE'])",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    other = python("-c", PARENT, "1", endpoint, str(script))
    run(script, n=1, n_nodes=2, rendezvous=endpoint)
    out, err = other.communicate()
    assert out == "well\n", err
    told = [text.split(";")[0] for text in (err, capfd.readouterr().err)]
    assert sorted(told) == ["worker 0 lost another process", "worker 1 was killed (SIGKILL)"]
    assert [script.with_name(f"well{rank}").read_text() for rank in (0, 1)] == ["2", "2"]


@pytest.mark.skipif(not Path("/proc/net/tcp6").exists(), reason="looks at Linux's table of sockets")
def test_workers_of_one_machine_are_closed_to_the_network(stub):
    """Whoever reaches a rendezvous of torch's, or gloo, can make it run programs."""
    script = stub(
        "import time, torch, torch.distributed as dist",
        "dist.init_process_group('gloo')",
        "dist.all_reduce(torch.ones(1))",
        "inodes = set()",
        "for fd in os.listdir('/proc/self/fd'):",
        "    try: inodes.add(os.readlink(f'/proc/self/fd/{fd}'))",
        "    except OSError: pass",
        "store = f\"{int(os.environ['MASTER_PORT']):04X}\"",
        "rows = [l.split() for t in ('tcp', 'tcp6') for l in open(f'/proc/net/{t}').read().splitlines()[1:]]",
        "rows = [(*r[1].split(':'), r[9]) for r in rows if r[3] == '0A']  # 0A: listening",
        "places = [place for place, port, inode in rows if port == store or f'socket:[{inode}]' in inodes]",
        "(run.directory / str(rank)).write_text(' '.join(places))",
        "dist.barrier()",
        "dist.destroy_process_group()",
    )
    run(script)
    loopback = "0100007F"
    for rank in "01":
        places = (script.parent / rank).read_text().split()
        assert len(places) > 1 and set(places) == {loopback}, places


def test_nothing_is_imported_from_the_working_directory(stub, tmp_path, monkeypatch):
    (tmp_path / "quartet").mkdir()
    (tmp_path / "quartet" / "__init__.py").write_text("raise SystemExit('a stranger was imported')")
    (tmp_path / "random.py").write_text("raise SystemExit('a file of the user was imported')")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    with pytest.raises(OSError, match=r"config\.yaml"):  # of the package: the directory is no run
        run_workers(tmp_path / "run", 1, max_restarts=0)


def test_several_nodes_need_a_place_to_meet(tmp_path):
    with pytest.raises(ValueError, match=r"trainer.num_nodes=2 needs workers.rendezvous=<host:port>"):
        run_workers(tmp_path, 1, max_restarts=0, n_nodes=2)


def test_nodes_that_do_not_meet(tmp_path, monkeypatch):
    monkeypatch.setattr("quartet.engine.workers.RENDEZVOUS_TIMEOUT_S", 1)
    with pytest.raises(ConnectionError, match=r"2 nodes did not meet at 127.0.0.1:\d+ within 1 s"):
        run(tmp_path / "worker.py", n_nodes=2, rendezvous="127.0.0.1:1")


def failed(rank: int, exit_code: int, error: Exception | None = None) -> Failure:
    return Failure(rank, exit_code, exception_to_dict(error) if error else {})


LOST = RuntimeError("[/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:29861: Connection reset by peer")


@pytest.mark.parametrize(
    ("failures", "kind", "rank"),
    [
        ([failed(0, 1, LOST), failed(1, -9)], "killed", 1),
        ([failed(0, -15), failed(1, -9)], "killed", 1),  # torchelastic stopped 0
        ([failed(0, -6), failed(1, 1, ValueError("x"))], "final", 1),  # NCCL's watchdog aborts peers
        ([failed(0, 143), failed(1, 1, LOST)], "lost", 1),
        ([failed(1, 143), failed(0, 143)], "stopped", 0),
        ([failed(1, 1, TypeError("first")), failed(0, 1, ValueError("second"))], "final", 1),
        ([failed(0, 1, RuntimeError("NCCL error, ncclInvalidUsage: Duplicate GPU detected"))], "final", 0),
        ([failed(0, 1, RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."))], "lost", 0),
    ],
)
def test_who_is_to_blame(failures, kind, rank):
    first = min(failures, key=lambda failure: failure.root_cause_key)
    assert (first.kind, first.rank) == (kind, rank)


def test_an_error_keeps_its_kind_and_its_traceback():
    with pytest.raises(UnicodeDecodeError) as raised:
        b"\xff".decode()
    error = exception_from_dict(exception_to_dict(raised.value))
    assert type(error) is ValueError and "can't decode byte" in str(error) and "Traceback" in error.__notes__[0]
    assert isinstance(exception_from_dict(exception_to_dict(KeyError("x"))), WorkerFailed)


# three jobs, the second fails; then a process group as Lightning makes it
SHARE = """
import sys
from pathlib import Path
from quartet.engine.workers import environment_rank, share_directory
(rank, world_size), made = environment_rank(), []
def make():
    assert rank == 0
    if len(made) == 1: raise ValueError("nothing")
    return Path(f"job{len(made)}")
for job in range(3):
    try: made.append(share_directory(make))
    except ValueError as error: made.append(error)
import torch, torch.distributed as dist
dist.init_process_group("gloo", rank=rank, world_size=world_size)
total = torch.ones(1); dist.all_reduce(total); dist.destroy_process_group()
sys.stdout.write(" ".join(map(str, (*made, int(total)))) + "\\n")
"""


def test_torchrun_s_processes_share_a_directory(python, tmp_path):
    """Or the error of the one that makes it; and the process group can be made afterwards."""
    (tmp_path / "share.py").write_text(SHARE)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "share.py")]
    out, err = python(*words).communicate()
    assert out.splitlines() == ["job0 nothing job2 2"] * 2, err


def test_slurm_s_tasks_share_a_directory(python, monkeypatch, capsys):
    """MASTER_ADDR and MASTER_PORT come from the node list and the job's number, as Lightning has it. Rank 0 is here."""
    job = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "job", "SLURM_NODELIST": "localhost",
           "SLURM_JOB_ID": str(os.getpid()), "SLURM_PROCID": "0", "MASTER_ADDR": "", "MASTER_PORT": ""}  # fmt: skip
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name)
    other = python("-c", SHARE, SLURM_PROCID="1")
    exec(SHARE, {})
    out, err = other.communicate()
    assert [capsys.readouterr().out, out] == ["job0 nothing job2 2\n"] * 2, err


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_JOB_NAME": "train"}, (3, 4)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash"}, None),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
    ],
)
def test_who_started_this_process(monkeypatch, tmp_path, environment, expected):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert environment_rank() == expected
    if expected is None:
        assert share_directory(lambda: tmp_path) == tmp_path
