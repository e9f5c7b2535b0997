"""The run directory: create, open, resolve "latest", read and write its files. Imports no torch.

config.yaml         the resolved config             preprocessing.json  what inference needs (plain data)
environment.json    versions, hardware, command     metrics.csv         every logged value
checkpoints/        best.ckpt, last.ckpt            events.*            TensorBoard
samples/ figures/   what a person looks at          result.json         written last
error.txt           only where the run failed
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from quartet.interruption import Interrupted

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "omegaconf", "numpy")


class Run:
    """One run directory. `Run.create` makes it, `Run.open` finds it; every command works from it alone."""

    def __init__(self, directory: Path):
        self.directory = directory

    @classmethod
    def create(cls, config: DictConfig) -> Run:
        """A new directory with `config.yaml` and `environment.json`; its name never collides with another run's.

        Raises FileExistsError where `run.dir` names a directory that is not empty.
        """
        run = cls(_new_directory(config))
        (run.directory / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
        run.write("environment.json", {**environment(), "signature": signature(config)})
        return run

    @classmethod
    def open(cls, where: str, root: str | Path = "outputs") -> Run:
        """The run at a path, or the newest one with a checkpoint where `where` is "latest".

        Raises FileNotFoundError where there is none.
        """
        if where == "latest":
            return cls(_latest(outputs(root)))
        return cls._at(where, "run")

    @classmethod
    def reopen(cls, where: str, root: str | Path = "outputs") -> Run:
        """The run at a path, or the newest one that is not completed; ValueError where the run is completed."""
        if where == "latest":
            return cls(_latest_unfinished(outputs(root)))
        run = cls._at(where, "resume")
        if run.status == "completed":
            raise ValueError(
                f"{run} is completed; to train on with its weights, start a new run with model.init_from={run}"
            )
        return run

    @classmethod
    def _at(cls, where: str, key: str) -> Run:
        for directory in (Path(where).expanduser().resolve(), PROJECT / where):
            if (directory / "config.yaml").is_file():
                return cls(directory)
        raise FileNotFoundError(f"{key}={where} is not a run directory (no config.yaml in it); try {key}=latest")

    @property
    def config(self) -> DictConfig:
        config = OmegaConf.load(self.directory / "config.yaml")
        assert isinstance(config, DictConfig)
        return config

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def best_checkpoint(self) -> Path:
        """`best.ckpt`, or `last.ckpt` where the run kept no best one; FileNotFoundError where it has neither."""
        for name in ("best.ckpt", "last.ckpt"):
            if (self.checkpoints / name).is_file():
                return self.checkpoints / name
        raise FileNotFoundError(f"{self} has no checkpoint; it did not reach its first validation, train it again")

    @property
    def last_checkpoint(self) -> Path | None:
        """What training goes on from, if there is something."""
        path = self.checkpoints / "last.ckpt"
        return path if path.is_file() else None

    @property
    def status(self) -> str:
        """completed, interrupted, failed, pruned, or unfinished: still running, or killed."""
        try:
            return str(self.read("result.json")["status"])
        except FileNotFoundError:
            return "unfinished"

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Only one process (the first worker of one run) trains here; a killed one leaves nothing behind.

        Raises BlockingIOError where another one does.
        """
        if os.environ.get("RANK", "0") != "0" or fcntl is None:
            yield
            return
        with (self.directory / "config.yaml").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(f"{self} is being trained by another process; stop that one first") from error
            yield

    def ended_badly(self, error: BaseException, **facts: Any) -> None:
        """Say so in `result.json`, with the facts that are known, and why in `error.txt`; nothing on a full disk."""
        interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
        nothing = {"metrics": {}, "objective": {"name": None, "value": None}}
        with suppress(OSError):
            self.write("result.json", {"status": "interrupted" if interrupted else "failed", **nothing, **facts})
            if not interrupted:
                text = "".join(traceback.format_exception(error))
                (self.directory / "error.txt").write_text(text, encoding="utf-8")

    def write(self, name: str, values: dict[str, Any]) -> None:
        """Plain data as JSON, whole or not at all."""
        path = self.directory / name
        temporary = path.with_name(f".{name}.{secrets.token_hex(4)}")
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
        os.replace(temporary, path)

    def read(self, name: str) -> dict[str, Any]:
        path = self.directory / name
        if not path.is_file():
            raise FileNotFoundError(f"{self} has no {name}; the run did not get that far, train it again")
        return json.loads(path.read_text(encoding="utf-8"))

    def __str__(self) -> str:
        """The path as a person would type it from here."""
        here = Path.cwd()
        return str(self.directory.relative_to(here) if self.directory.is_relative_to(here) else self.directory)


def outputs(root: str | Path) -> Path:
    """Where runs live: `QUARTET_OUTPUTS`, or `root` relative to the project, whatever the working directory."""
    return Path(os.environ.get("QUARTET_OUTPUTS") or PROJECT / Path(root).expanduser())


def signature(config: DictConfig) -> str:
    """What makes two runs repetitions of one experiment: the hash of the config without paths, seed and fold."""
    values: Any = OmegaConf.to_container(config, resolve=True)
    for group, key in (("run", None), ("seed", None), ("data", "path"), ("data", "fold"), ("data", "seed")):
        if key is None:
            values.pop(group, None)
        elif isinstance(values.get(group), dict):
            values[group].pop(key, None)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def environment() -> dict[str, Any]:
    """When, where, from what code and with which versions; without importing the packages."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "working_directory": os.getcwd(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "git": _git_state(),
    }


def _new_directory(config: DictConfig) -> Path:
    if config.run.dir is not None:
        directory = Path(config.run.dir).expanduser().absolute()
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            what = "not empty" if directory.is_dir() else "a file"
            raise FileExistsError(f"run.dir={config.run.dir} is {what}; name another directory, or leave run.dir out")
        directory.mkdir(parents=True, exist_ok=True)
        return directory
    parent = outputs(config.run.root) / config.run.name
    while True:
        directory = parent / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{secrets.token_hex(3)}"
        try:
            directory.mkdir(parents=True)
            return directory
        except FileExistsError:  # somebody else drew the same name in the same second: draw again
            continue


def _latest(root: Path) -> Path:
    """The newest run below `root` that has a checkpoint."""
    trained = [run for run in _runs(root) if any((run / "checkpoints").glob("*.ckpt"))]
    if not trained:
        raise FileNotFoundError(f"no trained run below {root}; train one with: python scripts/train.py")
    return max(trained, key=_age)


def _latest_unfinished(root: Path) -> Path:
    unfinished = [run for run in _runs(root) if Run(run).status != "completed"]
    if not unfinished:
        raise FileNotFoundError(f"every run below {root} is completed; there is none to go on with")
    return max(unfinished, key=_age)


def _runs(root: Path) -> list[Path]:
    """The run directories below `root`; they lie at most three folders deep (sweeps/<time>/<job>)."""
    return [path.parent for depth in ("*", "*/*", "*/*/*") for path in root.glob(f"{depth}/config.yaml")]


def _age(run: Path) -> int:
    return (run / "config.yaml").stat().st_mtime_ns


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git_state() -> dict[str, Any] | None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(PROJECT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
