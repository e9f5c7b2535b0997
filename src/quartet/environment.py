"""What `environment.json` of a run says: when, where, from what code and with which versions. Imports no torch."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quartet.files import MAX_CONFIG_BYTES
from quartet.typed import PROJECT

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "hydra-core", "omegaconf", "numpy")


def environment() -> dict[str, Any]:
    """Plain data; the packages are not imported."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "working_directory": os.getcwd(),
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "processor": processor,
        "cores": os.cpu_count(),
        "git": None if commit is None else {"commit": commit.decode().strip(), "dirty": bool(changes)},
    }


def uncommitted_changes() -> bytes:
    """What differs from the last commit, as `git apply` takes it; empty if that is large or cannot be known."""
    found = _git("diff", "--binary", "HEAD") or b""
    return found if len(found) < MAX_CONFIG_BYTES else b""


def _git(*words: str) -> bytes | None:
    try:
        return subprocess.run(["git", "-C", str(PROJECT), *words], capture_output=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
