"""What each job of this machine gets: from the launcher's settings to a pool. Imports no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from quartet.sweeps.pool import Pool
from quartet.system.cores import n_cores

MOST_ON_CPU = 4  # workers by default: beyond, memory and its bandwidth run out before cores do


def make_pool(settings: Mapping[str, Any], config: DictConfig) -> Pool:
    """ValueError with a line for each mistake in `settings` (those of conf/hydra/launcher/local.yaml)."""
    problems = [text for name, value in settings.items() if (text := _problem(name, value))]
    if problems:
        raise ValueError("\n".join(problems))
    trainer = config.get("trainer") or {}
    slots = make_slots(settings["workers"], trainer)
    threads = int(settings["threads"] or os.environ.get("OMP_NUM_THREADS") or max(1, n_cores() // len(slots)))
    threads = max(1, threads // devices(trainer))  # those of a job are for all of its workers
    minutes = settings["timeout_minutes"]
    return Pool(
        slots=slots,
        environment={"OMP_NUM_THREADS": str(threads), "RAYON_NUM_THREADS": str(threads)},  # the latter: tokenizers
        preload=("quartet.sweeps.preload",),
        logs=Path(config.hydra.sweep.dir).absolute() / "logs",
        timeout_seconds=None if minutes is None else 60 * minutes,
        retries=settings["retries"],
    )


def _problem(name: str, value: Any) -> str:
    """What is wrong with a setting, if something is."""
    key = f"hydra.launcher.{name}={value}"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "timeout_minutes":
        return "" if value is None or (number and value > 0) else f"{key}: minutes above 0, or null for no limit"
    if name == "retries":
        return "" if type(value) is int and value >= 0 else f"{key}: a whole number, 0 for none"
    return "" if value is None or (type(value) is int and value > 0) else f"{key}: a whole number from 1 on, or null"


def make_slots(workers: int | None, trainer: Mapping[str, Any]) -> list[dict[str, str]]:
    """What each worker's jobs find in their environment: their GPUs, if there are any and `trainer` wants them.

    More workers than groups of GPUs share them in turn. ValueError where a job needs more devices than there are.
    """
    n, accelerator = devices(trainer), trainer.get("accelerator", "auto")
    gpus = visible_gpus() if accelerator in ("auto", "gpu", "cuda") else []
    if not gpus:
        return [{} for _ in range(workers or min(MOST_ON_CPU, max(1, n_cores() // n)))]
    if n > len(gpus):
        raise ValueError(f"trainer.devices={n} for each job, and there are {len(gpus)} GPUs; ask for fewer")
    groups = [",".join(gpus[i : i + n]) for i in range(0, len(gpus) - n + 1, n)]
    return [{"CUDA_VISIBLE_DEVICES": groups[i % len(groups)]} for i in range(workers or len(groups))]


def devices(trainer: Mapping[str, Any]) -> int:
    """Devices of each job; where it would take all that there are, one."""
    n = trainer.get("devices", 1)
    if isinstance(n, list | ListConfig):
        raise ValueError(f"trainer.devices={list(n)}: in a sweep with hydra/launcher=local say how many, not which")
    return 1 if n in (-1, "-1", "auto", None) else int(n)


def visible_gpus() -> list[str]:
    """Names that CUDA_VISIBLE_DEVICES knows, without importing torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):  # installed without a driver
        return []
    return [str(i) for i, _ in enumerate(line for line in listed.stdout.splitlines() if line.startswith("GPU "))]
