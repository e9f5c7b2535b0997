"""Records of the user's files, for tables and labelled texts: CSV, TSV, JSON Lines or Parquet, recognised by content.

Every cell is read as text (a label "NA" is a class like any other) and is missing only if it is blank, so the same
records give the same data in every format. Rows are counted from 1 in messages, a header not counted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from quartet.data import encodings
from quartet.data.base import user_path
from quartet.data.csv_text import HEAD, Format, read_csv
from quartet.data.opening import open_file
from quartet.data.splits import PART_NAMES, SPLITS, listed
from quartet.say import say

pc: Any = compute  # its functions are made at import, where no type checker sees them
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")  # of the files of a folder
PARQUET = b"PAR1"  # how such a file begins
EMPTY = "the file is empty; it needs a line of column names and a row for each example"


@dataclass(frozen=True)
class Records:
    """Cells as text by column, null if blank; `numbers` (M,) of the rows in their files, `files` (M,) and `parts` (M,).

    The parts are None unless each file is one.
    """

    path: str
    cells: pa.Table
    numbers: np.ndarray
    files: np.ndarray
    parts: list[str] | None = None
    header: bool = True
    separator: str = ","
    fingerprint: str = ""
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def columns(self) -> list[str]:
        return self.cells.column_names

    def take(self, places: Sequence[int] | np.ndarray) -> Records:
        places = np.asarray(places, dtype=np.int64)
        parts = None if self.parts is None else [self.parts[i] for i in places]
        return replace(
            self, cells=self.cells.take(places), numbers=self.numbers[places], files=self.files[places], parts=parts
        )

    def where(self, places: Sequence[int] | np.ndarray) -> str:
        """Some rows, in words; the file of the first one if there are several files."""
        name = f"{self.files[places[0]]}, " if self.parts is not None else ""
        return f"{name}row {listed(self.numbers[np.asarray(places)])}"

    def column(self, wanted: str | int, key: str) -> str:
        """The column of this name; a number may also be a place from 0. ValueError with the names there are."""
        names = self.columns
        if str(wanted) in names:
            return str(wanted)
        if isinstance(wanted, int) and 0 <= wanted < len(names):
            return names[wanted]
        near = get_close_matches(str(wanted), names, n=1, cutoff=0.5)
        guess = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"{self.path}: {key} names a column {str(wanted)!r} that is not there; {guess}the columns are "
            f"{listed((name[:40] for name in names), 30)}"
        )


@dataclass
class Block:
    """What stands before a block of a file that is streamed: rows, and lines of JSON."""

    n_rows: int = 0
    n_lines: int = 0


def read_records(path: str | None, how: Format) -> Records:
    """All records at a path, a file or a folder of train, val and test files; train first.

    Raises ValueError or OSError, one line that begins with the file, for what cannot be read.
    """
    if path is None:
        raise ValueError("data.path is missing: the file to learn from, as in data.path=table.csv")
    if how.separator is not None and how.separator not in ("tab", "\\t") and len(how.separator) != 1:
        raise ValueError(f"{path}: data.separator must be one character, or tab, not {how.separator!r}")
    # 1. read each file
    files = find_files(path)
    found, digest = [], hashlib.sha256()
    for part, place in files.items():
        with open_file(place, "a CSV, JSON Lines or Parquet file") as file:
            content = file.read()
        digest.update(content)
        try:
            records = read_file(place, content, how)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        how = replace(how, header=records.header)  # a header of train is that of all files
        found.append(replace(records, parts=None if part is None else [part] * len(records)))
    # 2. tell what the user should know, and join the files by the columns of the first
    first = found[0]
    for records in found:
        absent = {*first.columns} - {*records.columns}
        notes = [f"it has no column {listed(sorted(absent))}: no values"] if absent else []
        for note in (*records.notes, *notes):
            say(f"note: {records.path}: {note}")
    if len(found) == 1:
        return replace(first, fingerprint=digest.hexdigest())
    return replace(
        first,
        path=path,
        cells=pa.concat_tables([records.cells for records in found], promote_options="default"),
        numbers=np.concatenate([records.numbers for records in found]),
        files=np.concatenate([records.files for records in found]),
        parts=[part for records in found for part in records.parts or []],
        fingerprint=digest.hexdigest(),
    )


# files


def find_files(path: str) -> dict[str | None, str]:
    """The files at a path by their part, train first; a single file has the part None."""
    folder = user_path(path)
    if not os.path.isdir(folder):
        return {None: path}
    try:
        every = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except PermissionError:
        raise PermissionError(f"no permission to read the folder {path}; ask its owner") from None
    # files named after a part, whatever their ending
    found: dict[str, list[str]] = {}
    for name in every:
        part = PART_NAMES.get(Path(name).stem.lower())
        if part and os.path.isfile(os.path.join(folder, name)):
            found.setdefault(part, []).append(name)
    for files in found.values():
        if len(files) > 1:
            raise ValueError(f"{path} has {' and '.join(files)}; keep one of them")
    if "train" in found:
        return {part: os.path.join(path, found[part][0]) for part in SPLITS if part in found}
    # or the only table of the folder
    tables = [name for name in every if name.lower().endswith(SUFFIXES)]
    if len(tables) == 1:
        return {None: os.path.join(path, tables[0])}
    raise ValueError(
        f"{path} has no train.csv, train.tsv, train.jsonl or train.parquet ({listed(tables) or 'no such files at all'}); "
        "name the training file so, beside it val (or dev, valid, validation) and test, or give one file as data.path"
    )


def read_file(path: str, content: bytes, how: Format) -> Records:
    """The records of one file, without blank rows and without blank columns that have no name."""
    if not content.strip():
        raise ValueError(EMPTY)
    notes: list[str] = []
    if content[:4] == PARQUET:
        return as_records(path, read_parquet(content), notes=notes)
    return read_text(path, decode(content, how.encoding, notes), how, notes)


def read_text(path: str, text: str, how: Format, notes: list[str], block: Block | None = None) -> Records:
    """CSV or JSON Lines, by the name of the file or the first line."""
    if is_json_lines(path, text):
        return as_records(path, read_json_lines(text, block.n_lines if block else 0), notes=notes, block=block)
    table, header, separator = read_csv(path, text, how, notes)
    return as_records(path, table, header, separator, notes, block)


def is_json_lines(path: str, text: str) -> bool:
    first = text.lstrip().partition("\n")[0]
    return path.lower().endswith((".jsonl", ".ndjson")) or re.match(r"\{.*\}\s*$", first) is not None


def as_records(
    path: str,
    table: pa.Table,
    header: bool = True,
    separator: str = ",",
    notes: list[str] | None = None,
    block: Block | None = None,
) -> Records:
    """Records of a table as it was parsed. Of a `block` of a larger file all columns stay: the others may need them."""
    notes = [] if notes is None else notes
    # 1. text; blank cells are missing
    texts = [column.cast(pa.string()) for column in table.columns]
    blank = [pc.equal(pc.utf8_trim_whitespace(text), "") for text in texts]
    columns = [pc.if_else(b, None, text) if pc.any(b).as_py() else text for b, text in zip(blank, texts, strict=True)]
    # 2. without what spreadsheets leave: blank columns without a name, blank rows
    names = [name.strip() for name in table.column_names]
    n_rows = table.num_rows
    kept = [i for i, name in enumerate(names) if (name and header) or columns[i].null_count < n_rows]
    if 0 < len(kept) < len(names) and block is None:
        notes.append(f"{len(names) - len(kept)} columns without a name are empty and are left out")
        columns, names = [columns[i] for i in kept], [names[i] for i in kept]
    names = [name or f"Unnamed: {i}" for i, name in enumerate(names)]
    repeated = sorted(name for name, n in Counter(names).items() if n > 1)
    if repeated:
        raise ValueError(f"several columns are called {listed(map(repr, repeated))}; give each a name of its own")
    filled = np.zeros(n_rows, dtype=bool)
    for column in columns:
        filled |= np.asarray(column.is_valid())
    if not filled.any() and not (block and block.n_rows):
        raise ValueError("there are column names but no rows; add a row for each example, or set data.header=false")
    cells = pa.table(dict(zip(names, columns, strict=True)))
    numbers = np.flatnonzero(filled)
    cells = cells if filled.all() else cells.take(numbers)
    first = 1 + (block.n_rows if block else 0)
    if block:
        block.n_rows += n_rows
    files = np.broadcast_to(np.array(os.path.basename(path), dtype=object), len(numbers))  # takes no memory
    return Records(path, cells, numbers + first, files, None, header, separator, notes=notes)


def read_parquet(content: bytes) -> pa.Table:
    try:
        table = parquet.read_table(pa.BufferReader(content))
    except (pa.ArrowMemoryError, MemoryError):
        raise ValueError("does not fit into memory; use fewer rows or columns") from None
    except (pa.ArrowException, OSError):
        raise ValueError("begins like Parquet but is not, or it is damaged; write it again") from None
    check_parquet(table.schema)
    return table


def check_parquet(schema: pa.Schema) -> None:
    for column in schema:
        kind = column.type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise ValueError(f"column {column.name!r} holds {kind}, not one value a row; write the file without it")


def read_json_lines(text: str, n_before: int = 0) -> pa.Table:
    """One JSON object a line; a key that a line lacks, null and NaN are missing. `n_before` lines stand before these."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1 + n_before):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is broken JSON ({error.msg}, column {error.colno}); correct it") from None
        if not isinstance(row, dict):
            raise ValueError(f'line {number} must be an object such as {{"text": …, "label": …}}, not {line[:40]}')
        rows.append(row)

    def plain(value: Any) -> str | None:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table([pa.array([plain(row.get(name)) for row in rows], pa.string()) for name in names], names=names)


def decode(content: bytes, encoding: str | None, notes: list[str]) -> str:
    encoding = None if encoding == "auto" else encoding
    if b"\0" in content[:HEAD] and not is_wide(encoding):
        raise ValueError(
            "is binary, not text; use CSV, JSON Lines or Parquet, or name its encoding: data.encoding=utf-16"
        )
    try:
        return content.decode(encoding or "utf-8").removeprefix("\ufeff")
    except LookupError:
        raise ValueError(f"data.encoding={encoding} is unknown; utf-8, latin-1, cp1252 and utf-16 are usual") from None
    except UnicodeDecodeError as error:
        likely, line = encodings.likely(content), content[: error.start].count(b"\n") + 1
        if encoding is None and likely is not None:
            notes.append(f"it is not utf-8 (line {line}) and read as {likely}; data.encoding=… names another encoding")
            return content.decode(likely)
        raise ValueError(
            f"is not {encoding or 'utf-8'} (line {line}, byte {content[error.start]:#04x}); name its encoding, as in "
            f"data.encoding={likely or 'latin-1'}"
        ) from None


def is_wide(encoding: str | None) -> bool:
    """Whether every character of an encoding takes several bytes."""
    return re.sub(r"[^a-z0-9]", "", (encoding or "").lower()).startswith(("utf16", "utf32"))
