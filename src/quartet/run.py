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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

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
        for directory in (Path(where).expanduser().resolve(), PROJECT / where):
            if (directory / "config.yaml").is_file():
                return cls(directory)
        raise FileNotFoundError(f"run={where} is not a run directory (no config.yaml in it); try run=latest")

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
    """The newest run below `root` that has a checkpoint; runs lie at most three folders deep (sweeps/<time>/<job>)."""
    found = [path for depth in ("*", "*/*", "*/*/*") for path in root.glob(f"{depth}/config.yaml")]
    trained = [path for path in found if any((path.parent / "checkpoints").glob("*.ckpt"))]
    if not trained:
        raise FileNotFoundError(f"no trained run below {root}; train one with: python scripts/train.py")
    return max(trained, key=lambda path: path.stat().st_mtime_ns).parent


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
