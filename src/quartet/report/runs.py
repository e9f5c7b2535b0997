"""The runs of a report as one table: what is on disk of a sweep, or of any runs, read without a judgement."""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from quartet.files import RESULT_COUNTS, read_metrics
from quartet.run import DEBUG, PROJECT, Run, outputs
from quartet.typed import repeated

STATUSES = ("completed", "pruned", "interrupted", "failed", "unfinished", "missing", "damaged")
RUN_FILES = ("config.yaml", "trial.json", "result.json", "error.txt")  # one of them makes a directory a run
FACTS = (
    *("run", "directory", "status", "reason", "overrides", "command", "seed", "fold", "environment"),
    *(*RESULT_COUNTS, "throughput_per_second", "throughput_unit"),
)
Frame: TypeAlias = Any  # a pandas DataFrame or Series; their annotations are too wide to check anything
LONGEST_REASON = 300  # characters of an error message that are shown


def sweep_runs(directory: Path) -> list[Path]:
    """Every trial of a sweep, also those without a directory; folders with other numbers, such as a date, do not count."""
    started = {int(path.stem) for path in (directory / "logs").glob("*.log") if path.stem.isdecimal()}
    for path in directory.glob("*"):
        if path.name.isdecimal() and any((path / name).is_file() for name in RUN_FILES):
            started.add(int(path.name))
    # a trial has at least one line in Optuna's journal; other sweepers leave no journal
    journal = directory / "journal.log"
    proposed = (journal.read_bytes().count(b"\n") if journal.is_file() else 0) or 10 * len(started)
    trials = started | set(range(min(max(started, default=-1) + 1, proposed)))
    return [directory / str(number) for number in sorted(trials)]


def matching_runs(pattern: str) -> list[Path]:
    """The run directories that a glob names, without those of trainer=debug; FileNotFoundError if there is none."""
    debugged = outputs("outputs") / DEBUG
    for place in (os.path.expanduser(pattern), str(PROJECT / pattern)):
        paths = sorted(Path(path).absolute() for path in glob.glob(place, recursive=True))
        found = [path for path in paths if (path / "config.yaml").is_file() and debugged not in path.parents]
        if found:
            return found
    raise FileNotFoundError(
        f"runs={pattern} matches no run directory (one with a config.yaml in it); try runs='outputs/<name>/*', quoted"
    )


def frame(paths: Sequence[Path]) -> Frame:
    """One row a run, indexed by its name: the path below the folder that all runs share.

    Columns: FACTS, config.<key> for each leaf of a config (NaN if a run has no such key, None if it is null), and the
    metrics of result.json. `overrides` is None where the command of a run is not known. Never raises for files that are
    missing or damaged.
    """
    common = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    rows = [_read_run(path, path.relative_to(common).as_posix()) for path in paths]
    columns = dict.fromkeys([*FACTS, *(key for row in rows for key in row)])
    # dtype object: 32 stays an integer beside runs without a batch size, None stays None
    return pd.DataFrame(rows, columns=[*columns], index=[row["run"] for row in rows], dtype=object)


def _read_run(directory: Path, name: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    result, trial, environment = (read_json(directory / f"{n}.json") for n in ("result", "trial", "environment"))
    status = str(result.get("status") or ("unfinished" if (directory / "config.yaml").is_file() else "missing"))
    reason, config = "", {}
    try:
        config = dict(flatten(OmegaConf.to_container(Run(directory).config, resolve=False)))
    except FileNotFoundError:
        pass
    except (ValueError, OSError) as error:
        status, reason = "damaged", str(error)
    # 1. why it failed: the last line of the traceback, else of what the job of a sweep printed
    if status in ("failed", "missing"):
        for path in (directory / "error.txt", directory.parent / "logs" / f"{directory.name}.log"):
            with suppress(OSError):
                lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
                reason = reason or next((line.strip() for line in reversed(lines) if line.strip()), "")
    # 2. what was typed; the command of a sweep is that of all its runs, so it says nothing about one of them
    words, overrides = environment.get("command"), None
    if isinstance(trial.get("overrides"), list):
        overrides = [str(word) for word in trial["overrides"]]
    elif isinstance(words, list) and not {"-m", "--multirun"} & set(map(str, words)):
        overrides = [str(word) for word in words[1:] if not str(word).startswith("run.dir=")]
    throughput = mapping(result, "throughput")
    return {
        **mapping(result, "metrics"),
        **{f"config.{key}": value for key, value in config.items()},
        **{name: result.get(name) for name in RESULT_COUNTS},
        "run": name,
        "directory": directory,
        "status": status,
        "reason": reason[:LONGEST_REASON],
        "overrides": overrides,
        "command": None if overrides is None else repeated(overrides),
        "seed": config.get("seed"),
        "fold": config.get("data.fold"),
        "environment": environment
        and {**environment, **{key: mapping(environment, key) for key in ("packages", "git")}},
        "throughput_per_second": throughput.get("per_second"),
        "throughput_unit": throughput.get("unit"),
    }


def read_json(path: Path) -> dict[str, Any]:
    """An object in a file; empty if it is missing, damaged or anything else."""
    with suppress(OSError, ValueError, RecursionError):
        values = json.loads(path.read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else {}
    return {}


def mapping(values: dict[str, Any], key: str) -> dict[str, Any]:
    """An object within a file; empty if it is anything else."""
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and the values at their ends; a list is a value, written as JSON."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flatten(value, f"{name}.")
        else:
            yield name, json.dumps(value) if isinstance(value, list) else value


def finite(value: Any) -> float:
    """A number that a file holds; NaN for anything else, as it may hold anything."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def numbers(runs: Frame, column: str) -> Frame:
    return runs[column].map(finite).astype(float) if column in runs else pd.Series(math.nan, runs.index, dtype=float)


def curve(run: dict[str, Any], metric: str) -> Frame:
    """The finite values of a metric in a run's metrics.csv, indexed by optimizer steps (the first step is 1)."""
    with suppress(OSError):
        rows = [row for row in read_metrics(run["directory"] / "metrics.csv") if row.get(metric)]
        values = pd.Series([float(row[metric]) for row in rows], [int(row["step"]) + 1 for row in rows], dtype=float)
        return values[values.abs() < math.inf]
    return pd.Series(dtype=float)


def objectives(runs: Frame, plan: dict[str, Any]) -> dict[str, str]:
    """Metric -> min or max: as the sweep says, else as the runs monitor. ValueError if the runs do not agree."""
    if mapping(plan, "objectives"):
        return plan["objectives"]
    found: dict[tuple[str, str], str] = {}
    if "config.monitor.metric" in runs:
        for run in runs[runs["config.monitor.metric"].notna()].to_dict("records"):
            mode = run.get("config.monitor.mode")
            found.setdefault((run["config.monitor.metric"], "max" if mode == "max" else "min"), run["run"])
    if len(found) > 1:
        named = "; ".join(f"{name} monitors {metric} ({mode})" for (metric, mode), name in found.items())
        raise ValueError(f"one report compares runs by one metric, but {named}; name runs with the same monitor")
    return dict(found.keys()) or {"val/loss": "min"}
