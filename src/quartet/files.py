"""Files that survive a crash, and files that may come from somebody else. Imports no torch."""

from __future__ import annotations

import csv
import io
import math
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from quartet.say import printable

MAX_CONFIG_BYTES = 1_000_000  # a config has about 6 KB; names of columns or classes may make it longer
RESULT_COUNTS = ("steps", "epochs", "seconds", "peak_memory_bytes", "parameters")  # numbers in result.json


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write that replaces `path`, or the link there, atomically at the end."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def read_metrics(path: Path) -> list[dict[str, str]]:
    """The rows of a `metrics.csv` as texts, empty if nothing was logged; no rows if there is no file.

    A power failure may leave a line that is cut, or zeros and other characters in place of lines: such rows are left out.
    """
    if not path.is_file():
        return []
    text = path.read_bytes().decode("utf-8", "replace").replace("\0", "")
    complete = text[: text.rfind("\n") + 1]
    rows: list[dict[str, str]] = []
    with suppress(csv.Error):  # a field that never ends: what stands before it counts
        for row in csv.DictReader(io.StringIO(complete, newline="")):
            values: Any = list(row.values())  # csv puts surplus fields under None, and None for missing ones
            if None in row or None in values or not re.fullmatch("[0-9]{1,18}", row.get("step", "")):
                continue
            with suppress(ValueError):
                if [float(value) for value in values if value]:
                    rows.append(row)
    return rows


def read_yaml(path: Path) -> str:
    """The text of a config; ValueError if it would cost much to load: a part that is named once can be used often."""
    with path.open("rb") as file:
        content = file.read(MAX_CONFIG_BYTES + 1)
    if len(content) > MAX_CONFIG_BYTES:
        raise ValueError(f"it has more than {MAX_CONFIG_BYTES:,} bytes")
    text = content.decode("utf-8-sig")
    if ("&" in text or "*" in text) and any(getattr(event, "anchor", None) for event in yaml.parse(text)):
        raise ValueError("it refers to parts of itself with & and *")
    return text


def check_plain(values: Any) -> None:
    """ValueError for more than YAML's own texts, numbers, true, false and null; YAML can make paths and bytes too."""
    if isinstance(values, dict):
        for key, value in values.items():
            if type(key) not in (str, int, float, bool) or not str(key).isprintable():
                raise ValueError(f"the key {key!r} is not plain text")
            check_plain(value)
    elif isinstance(values, list):
        for value in values:
            check_plain(value)
    elif values is not None and type(values) not in (str, int, float, bool):
        raise ValueError(f"a {type(values).__name__} is not a text or number")


def result_problem(result: dict[str, Any]) -> str | None:
    """What of a `result.json` is not as a run writes it; parts may be missing."""

    def is_number(value: Any) -> bool:
        return type(value) is float or (type(value) is int and abs(value) < 2**63)

    # 1. objects
    metrics, objective, speed = (result.get(name, {}) for name in ("metrics", "objective", "throughput"))
    speed = {} if speed is None else speed
    for name, part in (("metrics", metrics), ("objective", objective), ("throughput", speed)):
        if not isinstance(part, dict):
            return f"{name} is not an object"
    # 2. texts
    texts = {"status": result.get("status", ""), "objective.name": objective.get("name") or ""}
    texts["throughput.unit"] = speed.get("unit", "")
    for name, text in texts.items():
        if not isinstance(text, str):
            return f"{name} is not a text"
    # 3. numbers; a metric may be infinite, a count may not
    numbers = {f"metrics.{name}": value for name, value in metrics.items()}
    numbers |= {"objective.value": objective.get("value"), "throughput.per_second": speed.get("per_second")}
    counts = {name: result.get(name) for name in RESULT_COUNTS}
    for name, value in {**numbers, **counts}.items():
        finite = name not in counts or type(value) is not float or math.isfinite(value)
        if not (value is None or (is_number(value) and finite)):
            return f"{printable(name)} is not a number"
    return None
