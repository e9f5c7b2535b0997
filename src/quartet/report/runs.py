"""The runs that a report is about: what is on disk of a sweep, or of any runs, read without a judgement."""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quartet.files import read_metrics
from quartet.run import DEBUG, PROJECT, Run, outputs
from quartet.typed import command, repeated

STATUSES = ("completed", "pruned", "interrupted", "failed", "unfinished", "missing", "damaged")
MARKS = ("config.yaml", "trial.json", "result.json", "error.txt")  # of a run
LONGEST_REASON = 300  # characters of an error message that are shown


@dataclass(frozen=True)
class Record:
    """One run. `config` maps dotted keys to plain leaves; `overrides` is None where they are not known."""

    name: str
    directory: Path
    status: str
    config: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] | None = None
    result: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    reason: str = ""  # why it failed or cannot be read

    @property
    def metrics(self) -> dict[str, Any]:
        return part(self.result, "metrics")

    def value(self, metric: str) -> float | None:
        """A finite number or nothing."""
        value = self.metrics.get(metric)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def number(self, key: str) -> float:
        """A count of `result.json`, 0 where there is none."""
        value = self.result.get(key)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def fold(self) -> Any:
        return self.config.get("data.fold")

    @property
    def batch(self) -> float:
        """Samples of an optimizer step."""
        keys = ("data.batch_size", "trainer.accumulate_grad_batches", "trainer.devices")
        return math.prod(value for key in keys if isinstance(value := self.config.get(key), int))

    def curve(self, metric: str, samples: bool = False) -> list[tuple[float, float]]:
        """Optimizer steps, or samples, and the finite values that were logged there."""
        with suppress(OSError):
            rows = [(row["step"], row.get(metric)) for row in read_metrics(self.directory / "metrics.csv")]
            points = [((float(step) + 1) * (self.batch if samples else 1), float(y)) for step, y in rows if y]
            return [point for point in points if math.isfinite(point[1])]
        return []

    @property
    def command(self) -> str | None:
        """What trains this run again, for a shell."""
        return None if self.overrides is None else repeated(self.overrides)


@dataclass(frozen=True)
class Collection:
    """The runs of one report; `plan` is `sweep.json`, empty where there is none."""

    name: str
    directory: Path
    records: list[Record]
    plan: dict[str, Any] = field(default_factory=dict)

    @property
    def objectives(self) -> dict[str, str]:
        """Metric -> min or max: what the sweep says, else what the runs monitor.

        Raises ValueError where the runs do not agree.
        """
        if part(self.plan, "objectives"):
            return part(self.plan, "objectives")
        found: dict[tuple[str, str], str] = {}
        for record in self.records:
            if "monitor.metric" in record.config:
                pair = (record.config["monitor.metric"], record.config.get("monitor.mode", "min"))
                found.setdefault(pair, record.name)
        if len(found) > 1:
            named = "; ".join(f"{name} monitors {metric} ({mode})" for (metric, mode), name in found.items())
            raise ValueError(f"one report compares runs by one metric, but {named}; name runs with the same monitor")
        return dict(found.keys()) or {"val/loss": "min"}


def part(values: dict[str, Any], key: str) -> dict[str, Any]:
    """A mapping in a file, empty where it is anything else."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def find_sweep(where: str) -> Path:
    """The directory of a sweep, or of the newest one where `where` is "latest"; FileNotFoundError where there is none."""
    root = outputs("outputs") / "sweeps"
    if where == "latest":
        found = [path for path in root.glob("*") if _is_sweep(path)]
        if not found:
            raise FileNotFoundError(
                f"no sweep below {root}; start one with: {command('train', '-m', 'optimizer.lr=1e-3,3e-3')}"
            )
        return max(found, key=_age)
    for directory in (Path(where).expanduser().absolute(), PROJECT / where):
        if _is_sweep(directory):
            return directory
    raise FileNotFoundError(f"sweep={where} is no sweep (neither sweep.json nor runs 0, 1, … in it); try sweep=latest")


def _is_sweep(directory: Path) -> bool:
    return (directory / "sweep.json").is_file() or any(_numbered(directory))


def _age(sweep: Path) -> int:
    marker = sweep / "sweep.json"
    return (marker if marker.is_file() else sweep).stat().st_mtime_ns


def _numbered(directory: Path) -> Iterator[Path]:
    return (path for path in directory.glob("*") if path.name.isdecimal() and path.is_dir())


def collect_sweep(directory: Path) -> Collection:
    """Every trial of a sweep, those without a directory too; folders with other numbers, such as a date, are none."""
    plan = _read(directory / "sweep.json")
    logs = {int(path.stem) for path in (directory / "logs").glob("*.log") if path.stem.isdecimal()}
    begun = {int(path.name) for path in _numbered(directory) if any((path / name).is_file() for name in MARKS)} | logs
    # a trial has a line in the journal, at least; other sweepers leave none
    proposed = _lines(directory / "journal.log") or 10 * len(begun)
    everyone = sorted(begun | set(range(min(max(begun, default=-1) + 1, proposed))))
    records = [read_run(directory / str(n), str(n), directory / "logs" / f"{n}.log") for n in everyone]
    return Collection(f"sweep {directory.name}", directory, records, plan)


def collect_runs(pattern: str, directory: Path) -> Collection:
    """The runs that a glob names; FileNotFoundError where there is none."""
    places = [os.path.expanduser(pattern), str(PROJECT / pattern)]
    found = next((paths for place in places if (paths := _runs_at(place))), [])
    if not found:
        raise FileNotFoundError(
            f"runs={pattern} matches no run directory (one with a config.yaml in it); try runs='outputs/<name>/*', quoted"
        )
    common = Path(os.path.commonpath([path.parent for path in found]))
    return Collection(f"runs {pattern}", directory, [read_run(path, str(path.relative_to(common))) for path in found])


def _runs_at(pattern: str) -> list[Path]:
    paths = sorted(Path(path).absolute() for path in glob.glob(pattern, recursive=True))
    debugged = outputs("outputs") / DEBUG
    return [path for path in paths if (path / "config.yaml").is_file() and debugged not in path.parents]


def read_run(directory: Path, name: str, log: Path | None = None) -> Record:
    """What is there of a run; never raises for what is missing or damaged."""
    result, trial, environment = (_read(directory / f"{n}.json") for n in ("result", "trial", "environment"))
    status = str(result.get("status") or ("unfinished" if (directory / "config.yaml").is_file() else "missing"))
    reason, config = "", {}
    try:
        config = dict(leaves(_plain(Run(directory).config)))
    except FileNotFoundError:
        pass
    except (ValueError, OSError) as error:
        status, reason = "damaged", str(error)
    if status in ("failed", "missing"):
        reason = _last_line(directory / "error.txt") or (_last_line(log) if log else "")
    words = trial.get("overrides")
    overrides = [str(word) for word in words] if isinstance(words, list) else _typed(environment)
    return Record(name, directory, status, config, overrides, result, environment, reason[:LONGEST_REASON])


def _typed(environment: dict[str, Any]) -> list[str] | None:
    """The arguments of a run that was started alone; those of a sweep are of all its runs."""
    words = environment.get("command")
    if not isinstance(words, list) or {"-m", "--multirun"} & set(words):
        return None
    return [str(word) for word in words[1:] if not str(word).startswith("run.dir=")]


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        values = json.loads(path.read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else {}
    return {}


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _plain(config: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(config, resolve=False)


def leaves(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and what is at their ends; a list is an end, written as JSON."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{name}.")
        else:
            yield name, json.dumps(value) if isinstance(value, list) else value


def _last_line(path: Path) -> str:
    with suppress(OSError):
        lines = [
            line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
        ]
        return lines[-1] if lines else ""
    return ""
