"""A file that is read a block at a time gives the records that it gives as a whole, however it is written."""

from __future__ import annotations

import csv
import io
import json
import random

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from quartet.data import streaming
from quartet.data.csv_text import Format
from quartet.data.records import read_file
from quartet.data.streaming import stream_records

DRAW = random.Random(0)
ROWS = [
    {
        "a": DRAW.random(),
        "b": DRAW.choice(["x", "y, z", 'q"q', "line\nbreak", "é"]),
        "c": DRAW.randint(0, 9),
        "d": DRAW.choice(["", "1,5"]),
    }
    for _ in range(400)
]
NUMBERS = [(i, 2 * i, i % 7) for i in range(1, 400)]


def written(separator: str, line_end: str, above: str = "", bom: bool = False) -> bytes:
    file = io.StringIO(newline="")
    file.write(above)
    table = csv.DictWriter(file, ["a", "b", "c", "d"], delimiter=separator, lineterminator=line_end)
    table.writeheader()
    table.writerows(ROWS)
    return ("\ufeff" * bom + file.getvalue()).encode()


def joined(separator: str, before: str = "", behind: str = "", header: str = "") -> bytes:
    rows = [before + separator.join(map(str, row)) + behind for row in NUMBERS]
    return "\n".join([header] * bool(header) + rows).encode() + b"\n"


def parquet() -> bytes:
    file = io.BytesIO()
    pd.DataFrame(ROWS).to_parquet(file, row_group_size=100)
    return file.getvalue()


CASES = {
    **{f"{s!r} {e!r}": ("x.csv", written(s, e), Format()) for s in ",;\t|" for e in ("\n", "\r\n")},
    "byte order mark": ("x.csv", written(",", "\n", bom=True), Format()),
    "comments": ("x.csv", written(";", "\n", "# made by a program\n\n"), Format()),
    "sep=": ("x.csv", written("|", "\r\n", "sep=|\r\n"), Format()),
    "json lines": ("x.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode(), Format()),
    "parquet": ("x.parquet", parquet(), Format()),
    "cp1252": ("x.csv", written(";", "\n").decode().encode("cp1252"), Format()),
    "utf-16": ("x.csv", written(";", "\n").decode().encode("utf-16"), Format(encoding="utf-16")),
    "no header": ("x.csv", joined(","), Format()),
    "blanks": ("x.dat", joined("   ", header="a b c"), Format()),
    "quoted lines": ("x.csv", joined(",", '"', '"', '"a,b,c"'), Format()),
    "blank rows": ("x.csv", joined(",", behind="\n,,", header="a,b,c"), Format()),
}


@pytest.mark.parametrize("block", [300, 5000, 10_000_000])
@pytest.mark.parametrize("name", CASES)
def test_blocks_give_what_the_whole_file_gives(name, block, monkeypatch):
    monkeypatch.setattr(streaming, "STREAMED", block)
    monkeypatch.setattr(streaming, "PARQUET_ROWS", 64)
    path, content, how = CASES[name]
    whole = read_file(path, content, how)
    parts = list(stream_records(io.BytesIO(content), path, how))
    assert len(parts) > 1 or block > 300 or len(content) < 600
    assert pa.concat_tables([part.cells for part in parts]).to_pydict() == whole.cells.to_pydict()
    np.testing.assert_array_equal(np.concatenate([part.numbers for part in parts]), whole.numbers)


def test_a_mistake_far_down_is_found_where_it_is(monkeypatch):
    monkeypatch.setattr(streaming, "STREAMED", 200)
    lines = [json.dumps({"a": i}) for i in range(100)]
    lines[70] = "{broken"
    with pytest.raises(ValueError, match="line 71 is broken JSON"):
        list(stream_records(io.BytesIO("\n".join(lines).encode()), "x.jsonl", Format()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"  \n", "the file is empty"),
        (b"a,b\n\0\0\n", "is binary"),
        (b"a,b\n" + b"1,2\n" * 200 + "ä,1\n".encode("latin-1"), "is not utf-8"),
    ],
)
def test_what_is_no_table_is_told(content, message, monkeypatch):
    monkeypatch.setattr(streaming, "STREAMED", 100)
    with pytest.raises(ValueError, match=message):
        list(stream_records(io.BytesIO(content), "x.csv", Format()))
