"""Several devices: workers that open the run directory and train, started again when one is killed.

One device trains in this process. For several, torchelastic starts and watches the workers of one attempt. A restart is a
new agent with a new run_id, because torchelastic's own restart can hang while gloo connects; what it resumes from is in
the run directory. Imports torch late.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from quartet.run import Run
from quartet.system.cores import n_cores
from quartet.system.signals import Interrupted, signals, stoppable, stopping

RENDEZVOUS_TIMEOUT_S, RESTART_TIMEOUT_S = 600, 60  # of nodes that wait for each other: queues are slow
PARENT = "QUARTET_PARENT"  # the process that a worker does not outlive
LOOPBACK = "127.0.0.1"
UNTOUCHED = {"PYTHONSAFEPATH": "1"}  # what lies in the working directory is not imported in place of a package

# what gloo, NCCL, the stores and DataLoaders raise when another process went away; not what NCCL says of mistakes
LOST_TYPES = {"ConnectionError", "DistNetworkError", "DistStoreError", "DistBackendError", "RendezvousError"}
LOST_TEXT = re.compile(
    r"gloo/transport|[Cc]onnection (closed|reset|refused)|Broken pipe|Timed out waiting \d+ ?ms"
    r"|DataLoader worker .*(killed by signal|exited unexpectedly)"
)
MISTAKE = re.compile(r"ncclInvalid|Duplicate GPU|unhandled cuda error")

_meeting_points: dict[str, Any] = {}  # by address: stores at which nodes meet, served by one of them until it ends


class WorkerFailed(RuntimeError):
    """A worker's error that is neither a ValueError nor an OSError; the message begins with its type."""


@dataclass(frozen=True)
class Failure:
    """How a worker ended: exit code (-9: killed by signal 9) and the error it handed over, empty where it could not."""

    rank: int
    exit_code: int
    error: dict[str, Any]

    @property
    def kind(self) -> str:
        if self.error:
            text, types = self.error["message"], set(self.error["types"])
            return "lost" if (LOST_TYPES & types or LOST_TEXT.search(text)) and not MISTAKE.search(text) else "final"
        if self.exit_code in (-signal.SIGTERM, *(128 + signum for signum in signals())):
            return "stopped"
        return "killed" if self.exit_code < 0 else "final"

    @property
    def root_cause_key(self) -> tuple[int, float, int]:
        """Sort key, smallest first: whoever dies is lost by its peers, and torchelastic then stops the rest."""
        return ("final", "killed", "lost", "stopped").index(self.kind), self.error.get("timestamp", 0.0), self.rank

    def __str__(self) -> str:
        if self.kind in ("killed", "stopped"):
            signum = -self.exit_code if self.exit_code < 0 else self.exit_code - 128
            return f"worker {self.rank} was killed ({signal.Signals(signum).name})"
        if self.kind == "lost":
            return f"worker {self.rank} lost another process"
        return f"worker {self.rank} ended with exit code {self.exit_code}; what it printed says why"


def execute(run: Run, data: Any = None) -> None:
    """Train a run: here if it wants one device, or if this process is one of its workers; else by workers.

    `data` are the run's, if this process has read them. Errors and signals are noted in the run and raised.
    """
    n, n_nodes = (1, 1) if environment_rank() else (n_workers(run.config), run.config.trainer.num_nodes)
    if n * n_nodes == 1:
        from quartet.engine.fit import train

        train(run, data)
        return
    del data  # each worker reads them for itself
    # fail before workers start if another process trains the run; then the first worker holds the lock
    if n_nodes == 1:
        with run.exclusively():
            pass
    workers = run.config.workers
    try:
        with inherited(run.for_workers()):
            run_workers(
                run.directory, n, n_nodes=n_nodes, rendezvous=workers.rendezvous, max_restarts=workers.max_restarts
            )
    # it is another process's to say how the run ends
    except BlockingIOError:
        raise
    except (Exception, Interrupted) as error:
        run.mark_failed(error)
        raise


def n_workers(config: DictConfig) -> int:
    """Processes on this machine: one for each device."""
    devices = config.trainer.devices
    if isinstance(devices, list | ListConfig):
        return len(devices)
    if devices not in (-1, "-1", "auto"):
        return int(devices)
    if config.trainer.accelerator in ("cpu", "mps"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def run_workers(
    directory: Path,
    n: int,
    *,
    max_restarts: int,
    n_nodes: int = 1,
    rendezvous: str | None = None,
    command: list[str] | None = None,
) -> None:
    """Train the run in `directory` with `n` processes on this node; returns when all of them ended well.

    Raises the error of the worker that failed first: ValueError or OSError where it was one, else WorkerFailed.
    ChildProcessError: killed or cut off more than `max_restarts` times. Interrupted: a signal came, workers have saved.
    """
    if n_nodes > 1 and not rendezvous:
        raise ValueError(f"trainer.num_nodes={n_nodes} needs workers.rendezvous=<host:port>, the same on all nodes")
    command = command or [sys.executable, "-m", "quartet.worker", str(directory)]
    for attempt in itertools.count():
        failures = _attempt(command, n, n_nodes, rendezvous, f"{directory.name}-{attempt}")
        if not failures:
            return
        # a mistake would happen again; only what was killed or cut off is started again
        first = min(failures, key=lambda failure: failure.root_cause_key)
        if first.kind == "final":
            raise exception_from_dict(first.error) if first.error else ChildProcessError(str(first))
        if attempt == max_restarts:
            likely = "mostly because memory ran out" if first.exit_code == -signal.SIGKILL else "a signal from outside"
            reason = first.error.get("message") or likely
            raise ChildProcessError(f"{first} after {attempt} of {max_restarts} restarts: {reason}")
        again = f"starting again from the last checkpoint, restart {attempt + 1} of {max_restarts}"
        print(f"{first}; {again}", file=sys.stderr, flush=True)


def _attempt(command: list[str], n: int, n_nodes: int, rendezvous: str | None, run_id: str) -> list[Failure]:
    """One torchelastic agent from start to end; empty where all workers of this node ended well."""
    # 1. what workers find in their environment; before torch is imported, whose C++ part reads its log level then
    variables = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, n_cores() // n))),
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        PARENT: str(os.getpid()),
    }
    # gloo and NCCL trust whoever connects: workers of one machine talk to each other on its own interface
    interface = next((name for _, name in socket.if_nameindex() if re.fullmatch(r"lo\d*", name)), None)
    if n_nodes == 1 and interface is not None:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            variables[name] = os.environ.get(name, interface)
    with inherited(variables, "TORCHELASTIC_SIGNALS_TO_HANDLE"):
        from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.elastic.rendezvous.api import RendezvousError, RendezvousParameters
        from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

        # what torchelastic logs is said here in our words
        for name in ("torch.distributed.elastic", "torch.distributed.launcher", "torchelastic-events-null"):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [logging.NullHandler()], False

        # 2. start the workers, and wait for all of them
        seconds = RENDEZVOUS_TIMEOUT_S if run_id.endswith("-0") else RESTART_TIMEOUT_S
        try:
            with stoppable(), tempfile.TemporaryDirectory(prefix="quartet-") as folder:
                config = LaunchConfig(
                    min_nodes=n_nodes,
                    max_nodes=n_nodes,
                    nproc_per_node=n,
                    run_id=run_id,  # the same on all nodes, because an attempt ends on all of them together
                    rdzv_backend="c10d" if n_nodes > 1 else _loopback_rendezvous(),
                    rdzv_endpoint=rendezvous if rendezvous and n_nodes > 1 else "",
                    rdzv_configs={"timeout": seconds, "join_timeout": seconds, "read_timeout": seconds},
                    local_addr=None if n_nodes > 1 else LOOPBACK,  # alone, the host's name need not resolve
                    max_restarts=0,
                    logs_specs=DefaultLogsSpecs(log_dir=folder),
                    signals_to_handle=",".join(signum.name for signum in stopping()),
                )
                try:
                    # the store at which nodes meet outlives this attempt's agent, which uses it
                    if n_nodes > 1 and rendezvous and rendezvous not in _meeting_points:
                        where = RendezvousParameters("c10d", rendezvous, "quartet", 1, 1, read_timeout=seconds)
                        _meeting_points[rendezvous] = create_backend(where)
                    elastic_launch(config, command[0])(*command[1:])
                except RendezvousError as error:
                    # torchelastic makes a folder when it starts workers
                    if any(Path(folder).iterdir()):
                        return [Failure(0, 1, exception_to_dict(error))]
                    raise ConnectionError(
                        f"{n_nodes} nodes did not meet at {rendezvous} within {seconds} s: the same command must run on "
                        f"each of them; where one failed, what it printed says why ({type(error).__name__}: {error})"
                    ) from error
        # 3. how it ended; a signal has been passed on, and the workers have saved
        except SignalException as stop:
            raise Interrupted(stop.sigval) from None
        except ChildFailedError as error:
            ends = [(rank, f.exitcode, f.error_file_data) for rank, f in error.failures.items()]
            return [Failure(rank, code, data if "types" in data else {}) for rank, code, data in ends]
    return []


@cache
def _loopback_rendezvous() -> str:
    """The name of a rendezvous for one node: a store that only this machine reaches.

    torch's own listens on all networks, and unpickles at each heartbeat what anyone has written into it.
    """
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
    from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

    class AtHome(StaticTCPRendezvous):
        def __init__(self, parameters: RendezvousParameters):
            listener = socket.create_server((LOOPBACK, 0))
            port, seconds = listener.getsockname()[1], int(parameters.config["timeout"])
            super().__init__(LOOPBACK, port, 0, 1, parameters.run_id, seconds)
            self._store = TCPStore(LOOPBACK, port, 1, True, self.timeout, master_listen_fd=listener.detach())

        def get_backend(self) -> str:
            return "quartet"

    rendezvous_handler_registry.register("quartet", AtHome)
    return "quartet"


@contextmanager
def inherited(variables: dict[str, str], *others: str) -> Iterator[None]:
    """What processes that start meanwhile inherit, and this package on their path. As it was afterwards, `others` too."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    own = {**variables, "PYTHONPATH": path, **UNTOUCHED}
    former = {name: os.environ.get(name) for name in (*own, *others)}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in former.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


# errors between processes


def exception_to_dict(error: BaseException) -> dict[str, Any]:
    """An error as plain data, with the keys that torchelastic expects of an error file: `message`, `timestamp`."""
    return {
        "message": str(error),
        "timestamp": time.time(),
        "types": [kind.__name__ for kind in type(error).__mro__],
        "traceback": "".join(traceback.format_exception(error)),
    }


def exception_from_dict(record: dict[str, Any]) -> Exception:
    """The error to raise for it here; a traceback of it ends with the other process's traceback."""
    kind = next((kind for kind in (ValueError, BlockingIOError, OSError) if kind.__name__ in record["types"]), None)
    error = kind(record["message"]) if kind else WorkerFailed(f"{record['types'][0]}: {record['message']}")
    error.add_note(f"\nin the worker:\n{record['traceback']}")
    return error


# processes that somebody else started


def environment_rank() -> tuple[int, int] | None:
    """(rank, world size) where torchrun or SLURM (srun with several tasks) started this process, None where a person did."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"])
    interactive = env.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "SLURM_PROCID" in env and int(env.get("SLURM_NTASKS", 1)) > 1 and not interactive:
        return int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"])
    return None


_turns = itertools.count()  # all ranks share equally often
_stores: list[Any] = []  # the last one lives on: Lightning's process group uses the server at the same port


def share_directory(make: Callable[[], Path]) -> Path:
    """The path that rank 0 makes, on all ranks; or rank 0's error, on all ranks."""
    ranks = environment_rank()
    if ranks is None:
        return make()
    rank, world_size = ranks
    store, key = _store(rank, world_size), f"quartet {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)} {next(_turns)}"
    if rank == 0:
        try:
            store.set(key, json.dumps({"path": str(make())}))
        except Exception as error:
            store.set(key, json.dumps({"error": exception_to_dict(error)}))
    made = json.loads(store.get(key))
    store.set(f"{key} {rank}", "read")
    # rank 0 serves the store: its end may come only when all have read
    if rank == 0:
        store.wait([f"{key} {other}" for other in range(world_size)])
    if "error" in made:
        raise exception_from_dict(made["error"])
    return Path(made["path"])


def _store(rank: int, world_size: int) -> Any:
    """The store at MASTER_ADDR:MASTER_PORT, where torch.distributed will look for it too."""
    from torch.distributed.rendezvous import rendezvous

    if "TORCHELASTIC_RUN_ID" not in os.environ:
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        slurm = SLURMEnvironment()
        os.environ.update(MASTER_ADDR=slurm.main_address, MASTER_PORT=str(slurm.main_port))
    store, *_ = next(iter(rendezvous("env://", rank, world_size)))
    _stores[:] = [store]
    return store
