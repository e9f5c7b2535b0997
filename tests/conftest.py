"""What tests share: runs go to a temporary directory, configs are composed as the command line composes them."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

PROJECT = Path(__file__).parents[1]

# what Quartet ships; tests of every file look at these alone, so that they stay green beside what a user adds
OURS = (PROJECT / "tests" / "ours.txt").read_text(encoding="utf-8").split()

PACKAGES = ("asyncio", "email", "encodings", "idlelib", "multiprocessing", "xml/dom")


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


@pytest.fixture(scope="session")
def forker():
    """A process that starts scripts quickly; see forker.py."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT / "src")}
    command = [sys.executable, str(PROJECT / "tests" / "forker.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.stdin.close()  # type: ignore[union-attr]


@pytest.fixture
def script(tmp_path, outputs, forker):
    """script("train", "model=mlp", …) -> the finished process of scripts/train.py, as a user would start it."""

    def run_script(name: str, *arguments: str, cwd: Path | None = None, environment: dict[str, str] | None = None):
        command = [str(PROJECT / "scripts" / f"{name}.py"), *arguments]
        files = {stream: str(tmp_path / f".script.{stream}") for stream in ("stdout", "stderr")}
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
        order = {"command": command, "cwd": str(cwd or tmp_path), "environment": variables, "timeout": 120, **files}
        print(json.dumps(order), file=forker.stdin, flush=True)
        code = int(forker.stdout.readline())
        output, errors = (Path(file).read_text(encoding="utf-8") for file in files.values())
        return subprocess.CompletedProcess(command, code, output, errors)

    return run_script


@pytest.fixture
def small_text(monkeypatch, tmp_path):
    """Text sources cut to a few small documents, so that a run reads and tokenises in milliseconds."""
    from quartet.data.text import sources

    def documents(self):
        root = Path(sysconfig.get_path("stdlib"))
        files = [path for package in PACKAGES for path in sorted((root / package).glob("*.py"))[:4]]
        return [sources.Document(p.relative_to(root).as_posix(), p.read_text("utf-8")[:2000]) for p in files]

    monkeypatch.setattr(sources.StandardLibrary, "documents", documents)
    text = "\n".join(document.text for document in documents(None))
    (tmp_path / "tiny_shakespeare.txt").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sources, "cache_directory", lambda: tmp_path)
