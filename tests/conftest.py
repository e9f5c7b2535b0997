"""What tests share: runs go to a temporary directory, configs are composed as the command line composes them."""

from __future__ import annotations

import copy
import functools
import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

PROJECT = Path(__file__).parents[1]

# what Quartet ships; tests of every file look at these alone, so that they stay green beside what a user adds
OURS = (PROJECT / "tests" / "ours.txt").read_text(encoding="utf-8").split()

PACKAGES = ("asyncio", "email", "encodings", "idlelib", "multiprocessing", "xml/dom")


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """The user's cache is neither read nor filled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUARTET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    """Every test has its own outputs folder, and none is taken for a job of a sweep that another one began."""
    monkeypatch.setenv("QUARTET_OUTPUTS", str(tmp_path / "outputs"))
    yield tmp_path / "outputs"
    HydraConfig.instance().cfg = None


@pytest.fixture
def compose():
    """compose("model=mlp", …) -> the config of scripts/train.py with these overrides."""

    def compose_train(*overrides: str):
        return copy.deepcopy(composed(overrides))

    @functools.cache  # tests compose the same config many times, 0.1 s each
    def composed(overrides: tuple[str, ...]):
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(PROJECT / "conf")):
            config = hydra.compose("train", overrides=list(overrides), return_hydra_config=True)
        choices = OmegaConf.to_container(config.hydra.runtime.choices)
        assert isinstance(choices, dict)
        with open_dict(config):
            del config["hydra"]
            config.run.name = config.run.name or f"{choices['model']}-{choices['data']}"
        return config

    return compose_train


@contextmanager
def fork_server(project: Path):
    """A process that starts the scripts of a project quickly; see forker.py."""
    paths = os.pathsep.join(map(str, (project / "src", project)))
    command = [sys.executable, str(PROJECT / "tests" / "forker.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.stdin.close()  # type: ignore[union-attr]


@pytest.fixture(scope="session")
def forker():
    with fork_server(PROJECT) as process:
        yield process


class Started:
    """A script in a process of its own that a fork server has started, the leader of its group."""

    def __init__(self, server: Any, command: list[str], cwd: Path, environment: dict[str, str], streams: Path):
        self.server, self.command, self.returncode = server, command, None
        files = {name: streams / f".{time.monotonic_ns()}.{name}" for name in ("stdout", "stderr")}
        self.files, variables = files, {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        places = {"cwd": str(cwd), **{name: str(path) for name, path in files.items()}}
        self.pid: int = self._ask(command=command, environment=variables, **places)

    def _ask(self, **order: Any) -> Any:
        print(json.dumps(order), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._ask(pid=self.pid, timeout=0)
        return self.returncode

    def wait(self, timeout: int = 120) -> subprocess.CompletedProcess[str]:
        """How it ended; it is killed after so many seconds."""
        if self.returncode is None:
            self.returncode = self._ask(pid=self.pid, timeout=timeout)
        output, errors = (path.read_text(encoding="utf-8") for path in self.files.values())
        return subprocess.CompletedProcess(self.command, self.returncode or 0, output, errors)

    def kill(self) -> None:
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()


@pytest.fixture
def start(tmp_path, tmp_path_factory, forker):
    """start("train", "model=mlp", …) -> the running process of scripts/train.py, as a user would start it."""
    running, streams = [], tmp_path_factory.mktemp("streams")

    def start_script(
        name: str, *arguments: str, cwd: Path | None = None, environment: dict[str, str] | None = None
    ) -> Started:
        command = [str(PROJECT / "scripts" / f"{name}.py"), *arguments]
        running.append(Started(forker, command, cwd or tmp_path, environment or {}, streams))
        return running[-1]

    yield start_script
    for process in running:
        process.kill()


@pytest.fixture
def script(start, outputs):
    """script("train", "model=mlp", …) -> the finished process of scripts/train.py."""
    return lambda *words, **settings: start(*words, **settings).wait()


@pytest.fixture
def small_text(monkeypatch):
    """Text sources reduced to a few small documents, so that a run reads and tokenises in milliseconds."""
    from quartet.data.text import sources

    def documents(self):
        root = Path(sysconfig.get_path("stdlib"))
        files = [path for package in PACKAGES for path in sorted((root / package).glob("*.py"))[:4]]
        return [sources.Document(p.relative_to(root).as_posix(), p.read_text("utf-8")[:2000]) for p in files]

    monkeypatch.setattr(sources.StandardLibrary, "documents", documents)
    text = "\n".join(document.text for document in documents(None))
    monkeypatch.setattr(sources.Shakespeare, "documents", lambda self: [sources.Document("shakespeare", text)])
