"""Where predictions go: CSV, JSON Lines or Parquet by the name of the file, a table on a terminal, CSV in a pipe."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from quartet.files import written
from quartet.say import printable
from quartet.typed import user_path

SUFFIXES = (".csv", ".jsonl", ".parquet")
SHOWN = 50  # rows of a table on a terminal
Write = Callable[[pa.Table], None]


def check_output(output: str | None, source: str) -> None:
    """Before any work: ValueError for an unknown ending or the file that is read, OSError for a folder that is absent."""
    if output is None:
        return
    if not output.lower().endswith(SUFFIXES):
        raise ValueError(f"output={output} must end in {', '.join(SUFFIXES)}, which says how it is written")
    folder = Path(user_path(output)).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"output={output}: there is no folder {folder}; make it, or name another one")
    place = Path(user_path(output))
    if place.exists() and Path(user_path(source)).exists() and place.samefile(user_path(source)):
        raise ValueError(f"output={output} would replace what is read; name another file")


@contextmanager
def writer(output: str | None) -> Iterator[Write]:
    """A function that writes tables one after the other; a file takes its place at the end, or not at all."""
    if output is None:
        yield _Terminal().write if sys.stdout.isatty() else _piped()
        return
    with written(Path(user_path(output))) as file:
        opened: list[Any] = []
        kind = Path(output).suffix.lower()

        def write(table: pa.Table) -> None:
            if kind == ".jsonl":
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()).encode())
                return
            if not opened:
                make: Any = csv.CSVWriter if kind == ".csv" else parquet.ParquetWriter
                opened.append(make(file, table.schema))
            opened[0].write_table(table)

        yield write
        for one in opened:
            one.close()


def _piped() -> Write:
    """CSV; the names of the columns stand above the first rows."""
    above, pipe = [True], sys.stdout

    def write(table: pa.Table) -> None:
        buffer = io.BytesIO()
        csv.write_csv(table, buffer, csv.WriteOptions(include_header=above[0]))
        above[0] = False
        pipe.write(buffer.getvalue().decode())
        pipe.flush()

    return write


class _Terminal:
    """The first rows as a table, and how many more there are."""

    def __init__(self) -> None:
        self.n, self.terminal = 0, sys.stdout

    def write(self, table: pa.Table) -> None:
        from rich.console import Console
        from rich.table import Table

        shown = table.slice(0, max(0, SHOWN - self.n))
        if len(shown):
            drawn = Table(*(printable(name) for name in table.column_names), box=None, show_header=self.n == 0)
            for row in shown.to_pylist():
                cells = (f"{x:.4g}" if isinstance(x, float) else "" if x is None else str(x) for x in row.values())
                drawn.add_row(*map(printable, cells))
            Console(file=self.terminal).print(drawn)
        if self.n <= SHOWN < self.n + len(table):
            print(f"… more than {SHOWN} rows; output=predictions.csv keeps all of them", file=self.terminal)
        self.n += len(table)
