"""CSV of any kind: separator, header, comments and what spreadsheets add are found out; cells stay text."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv

from quartet.data.splits import listed

SEPARATORS = ("\t", ",", ";", "|")  # no text has as many tabs in every line by chance
HEAD = 1 << 20  # characters in which separator and header are looked for
BLOCK = 1 << 24  # bytes that the CSV parser reads at once; a row must fit
N_FIRST = 1000  # rows that tell whether the first one is a header


@dataclass(frozen=True)
class Format:
    """How CSV is read; None: found out. `named` columns are the user's; a header also has one of the `usual` names.

    `plain_tabs`: between tabs, quotes are ordinary characters, as in files of texts.
    """

    separator: str | None = None
    encoding: str | None = None
    header: bool | None = None
    named: frozenset[str] = frozenset()
    usual: frozenset[str] = frozenset()
    plain_tabs: bool = False


def read_csv(path: str, text: str, how: Format, notes: list[str]) -> tuple[pa.Table, bool, str]:
    """The table, whether it has a header, and the separator."""
    separator = {"tab": "\t", "\\t": "\t"}.get(how.separator or "", how.separator)
    # 1. above the header: `sep=;`, as spreadsheets write it, blank lines and comments
    start, n_comments, said = preamble(text)
    text, separator = text[start:], separator or said
    if n_comments:
        notes.append(f"{n_comments} lines of comment (#) at the beginning are skipped")
    # 2. lines wrapped in quotes as a whole, as some exports write them; columns separated by blanks
    some = [line for line in text[:HEAD].splitlines()[:20] if line]
    if len(some) > 1 and all(re.fullmatch(r'"([^"]|"")*"', line) and re.search(r"[,;\t|]", line) for line in some):
        notes.append("every line is wrapped in quotes, which are removed")
        text = "\n".join(re.sub(r'^"(.*)"$', r"\1", line).replace('""', '"') for line in text.splitlines()) + "\n"
    widths = {len(line.split()) for line in some}
    even_blanks = separator is None and len(some) > 1 and len(widths) == 1 and widths != {1}
    if even_blanks and not re.search(r"[,;\t|\"]", "".join(some)):
        notes.append("its columns are separated by blanks")
        text, separator = "\n".join("\t".join(line.split()) for line in text.splitlines()) + "\n", "\t"
    # 3. the separator that gives the first rows equally many cells, else the one that gives the first row most
    if separator is None and path.lower().endswith(".tsv"):
        separator = "\t"
    if separator is None:
        counts = {s: [len(row) for row in _first_rows(text, s, how, 50)] for s in SEPARATORS}
        even = [s for s, n_cells in counts.items() if len({*n_cells}) == 1 and n_cells[0] > 1]
        separator = even[0] if even else max((",", ";", "\t", "|"), key=lambda s: max(counts[s][:1], default=0))
    # 4. the header
    rows = _first_rows(text, separator, how, N_FIRST if how.header is None else 1) or [[""]]
    header = how.header
    if header is None:
        header = is_header(rows, how)
        if not header:
            notes.append(
                f"no names of columns in the first line ({listed(cell[:40] for cell in rows[0])}), so they are called 0 "
                f"to {len(rows[0]) - 1}; data.header=true if it has them"
            )
    names = rows[0] if header else [str(i) for i in range(len(rows[0]))]
    # 5. the rows; Arrow wants names that differ, so repeated ones are looked at later
    reader = csv.reader(io.StringIO(text[:HEAD], newline=""), **_dialect(separator, how))
    next(filter(None, reader), None)
    numbered = [str(i) for i in range(len(names))]
    quote: Any = False if how.plain_tabs and separator == "\t" else '"'
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(text.encode()),
            read_options=arrow_csv.ReadOptions(
                block_size=BLOCK, column_names=numbered, skip_rows=reader.line_num if header else 0
            ),
            parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values='"' in text, quote_char=quote),
            convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(numbered, pa.string())),
        )
    except pa.ArrowMemoryError:
        raise ValueError("does not fit into memory; use fewer rows or columns") from None
    except pa.ArrowInvalid as error:
        raise ValueError(find_wrong_line(text, separator, how) or f"not CSV: {str(error).splitlines()[0]}") from None
    return table.rename_columns(names), header, separator


def preamble(text: str) -> tuple[int, int, str | None]:
    """Where the rows begin, how many lines of comment stand before, and the separator that `sep=;` names."""
    start, n_comments, separator = 0, 0, None
    pattern = re.compile(r"[ \t]*(#[^\r\n]*|)(\r\n|\r|\n)|sep=(.)(\r\n|\r|\n)")
    while match := pattern.match(text, start):
        if match[1]:
            following = text[match.end() : match.end() + HEAD].lstrip().partition("\n")[0]
            if not following or any(s in match[1] and match[1].count(s) == following.count(s) for s in SEPARATORS):
                break  # `#id,a,b` above rows of three values is a header
            n_comments += 1
        separator, start = separator or match[3], match.end()
    return start, n_comments, separator


def _dialect(separator: str, how: Format) -> dict[str, Any]:
    plain = how.plain_tabs and separator == "\t"
    return {"delimiter": separator, "quoting": csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL}


def _first_rows(text: str, separator: str, how: Format, most: int = N_FIRST) -> list[list[str]]:
    """The first rows that are not empty, without spaces around the cells."""
    rows = []
    with suppress(csv.Error):  # reported when the whole file is read
        for row in csv.reader(io.StringIO(text[:HEAD], newline=""), **_dialect(separator, how)):
            if row:
                rows.append([cell.strip() for cell in row])
            if len(rows) == most:
                break
    return rows


def is_header(rows: list[list[str]], how: Format) -> bool:
    """Whether the first row holds names: one that the user typed, a usual one, or none that stands below it again.

    A number above numbers is a value, except if all are names such as 0, 1, 2 or years.
    """
    # rows of another width are mistakes, which are reported later
    first, below = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    numbers = {name: float(name) for name in first if _is_number(name)}
    years = all(number.is_integer() and 1900 <= number <= 2100 for number in numbers.values())
    counted = any(first == [str(i + start) for i in range(len(first))] for start in (0, 1))
    counted = counted or (years and 0 < len(numbers) == sum(map(_is_number, first)))
    # 1. a name that the user typed; but data.target=3 is a number of a column if there are no names
    named = how.named & {*first}
    if named and (counted or not all(name.isdigit() for name in named)):
        return True
    # 2. numbers above numbers, usual names, repeated cells
    columns = [{*column} for column in zip(*below, strict=True)] or [set() for _ in first]
    if any(
        _is_number(cell) and all(map(_is_number, column - {""})) for cell, column in zip(first, columns, strict=True)
    ):
        return counted
    if how.usual & {name.lower() for name in first}:
        return True
    return not any(cell and cell in column for cell, column in zip(first, columns, strict=True))


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", cell, re.IGNORECASE | re.ASCII) is not None


def find_wrong_line(text: str, separator: str, how: Format) -> str | None:
    """Which line has too many or too few values, if any."""
    reader = csv.reader(io.StringIO(text, newline=""), **_dialect(separator, how), strict=True)
    try:
        widths = [(reader.line_num, len(row)) for row in reader if row]
    except csv.Error as error:
        return (
            f'line {reader.line_num} is not CSV ({error}); a quote inside a quoted text is written twice (""), and each '
            "quoted text must end"
        )
    # a single odd line at the top is a title; else the lines that differ from the header are wrong
    (first, n_columns), rest = widths[0], Counter(n for _, n in widths[1:])
    if len(rest) == 1 and n_columns not in rest:
        return (
            f"line {first} has {n_columns} values, and every line below it has {next(iter(rest))}; remove it, or set "
            "data.separator"
        )
    wrong = [(line, n) for line, n in widths if n != n_columns]
    if not wrong:
        return None
    more = f" and {len(wrong) - 1} more lines" if len(wrong) > 1 else ""
    return (
        f"line {wrong[0][0]}{more}: {wrong[0][1]} values, but there are {n_columns} columns (separator {separator!r}); "
        "correct the line (a text with the separator in it needs quotes), or set data.separator"
    )
