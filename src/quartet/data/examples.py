"""New examples for a trained network: what `scripts/predict.py input=…` names, in chunks that fit into memory."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from quartet.data.csv_text import Format
from quartet.data.opening import expand_glob, list_files, open_file
from quartet.data.records import SUFFIXES, Records
from quartet.data.splits import listed
from quartet.data.streaming import stream_records
from quartet.typed import user_path

STDIN = "-"


@dataclass(frozen=True)
class Examples:
    """`ids` are the numbers of rows or lines, or the names of files, as `key` says ("row", "line", "file", "text").

    `values` are what `DataModule.encode` reads, `labels` their targets as text: None if the input has none, and a single
    one None if it is unknown.
    """

    key: str
    ids: Any
    values: Any
    labels: Sequence[str | None] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, place: int) -> str:
        """Of one example, in words."""
        return str(self.ids[place]) if self.key == "file" else f"{self.key} {self.ids[place]}"

    def span(self, start: int, stop: int) -> Examples:
        values: Any = self.values
        values = values.take(range(start, stop)) if isinstance(values, Records) else values[start:stop]
        return Examples(
            self.key, self.ids[start:stop], values, None if self.labels is None else self.labels[start:stop]
        )


def read_records_in_blocks(source: str, how: Format) -> Iterator[Records]:
    """The records of a file, or of standard input if the source is "-"."""
    if source == STDIN:
        yield from _named("standard input", stream_records(sys.stdin.buffer, "", how))
        return
    with open_file(source, "a CSV, JSON Lines or Parquet file", "input") as file:
        yield from _named(source, stream_records(file, source, how))


def _named(name: str, blocks: Iterator[Records]) -> Iterator[Records]:
    try:
        yield from blocks
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(name) else f"{name}: {text}") from None


def has_records(source: str) -> bool:
    """Whether a file holds records by its ending; other files of text hold a text a line."""
    return source.lower().endswith(SUFFIXES)


def find_files(source: str, suffixes: Sequence[str]) -> dict[str, str] | None:
    """The files that a folder (at any depth, with one of these endings), a glob or a path names, by their names, sorted.

    None if there is nothing of that name. Raises FileNotFoundError for a folder without such files.
    """
    place = user_path(source)
    if os.path.isdir(place):
        names = [name for name in list_files(place, source) if name.lower().endswith(tuple(suffixes))]
        if not names:
            raise FileNotFoundError(f"no file below {source} ends in {listed(suffixes, 12)}; name files with a glob")
        return {name: os.path.join(place, name) for name in names}
    if os.path.lexists(place):
        return {os.path.basename(place): place}
    matches = expand_glob(os.path.expanduser(source)) if glob.has_magic(source) else []
    return {match: match for match in matches} or None
