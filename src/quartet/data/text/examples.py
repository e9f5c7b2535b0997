"""New texts for a trained network: typed, a line each, a file each, or a column of records."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice

from quartet.data.csv_text import Format
from quartet.data.examples import STDIN, Examples, find_files, has_records, read_records_in_blocks
from quartet.data.records import Records
from quartet.data.text.files import TextEncoding

TEXT_SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".org", ".tex", ".py")  # of texts in a folder
# names of columns that hold texts
USUAL_TEXT = ("text", "sentence", "review", "content", "comment", "document", "message", "tweet", "body")
N_STREAMED = 512  # texts that are predicted together
Columns = Callable[[Records], tuple[str, str | None]]  # the columns of text and label, if there is one


def stream_texts(
    source: str, encoding: TextEncoding, suffixes: list[str], how: Format, columns: Columns
) -> Iterator[Examples]:
    """Texts of a file (records by its ending, else one a line), of a folder or glob (one a file), or the source itself.

    Raises ValueError for what is not text, FileNotFoundError for what looks like a file and is not there.
    """
    if source == STDIN:
        yield from _lines(sys.stdin, encoding)
        return
    files = find_files(source, suffixes)
    if files is None:
        if has_records(source) or source.lower().endswith(tuple(suffixes)) or (os.sep in source and " " not in source):
            raise FileNotFoundError(f"input={source}: no such file, folder or glob")
        yield Examples("text", [1], [encoding.clean(source)])
    elif len(files) > 1 or os.path.isdir(source):
        names = iter(files)
        while some := list(islice(names, N_STREAMED)):
            yield Examples("file", some, ["".join(encoding.blocks(files[name])) for name in some])
    elif has_records(source):
        for records in read_records_in_blocks(source, how):
            text, label = columns(records)
            texts = [x and encoding.clean(x) for x in records.cells[text].to_pylist()]
            labels = (
                None if label is None else [x and encoding.clean(x).strip() for x in records.cells[label].to_pylist()]
            )
            every = Examples("row", records.numbers, texts, labels)
            for start in range(0, len(every), N_STREAMED):
                yield every.span(start, start + N_STREAMED)
    else:
        (path,) = files.values()
        yield from _lines(chain.from_iterable(block.splitlines(True) for block in encoding.blocks(path)), encoding)


def _lines(lines: Iterator[str] | object, encoding: TextEncoding) -> Iterator[Examples]:
    """A text for each line that is not blank, numbered as an editor does."""
    rest, number = "", 0
    ids: list[int] = []
    texts: list[str] = []
    for line in lines:  # type: ignore[attr-defined]
        rest += line  # a block may end within a line
        if not rest.endswith("\n"):
            continue
        number += 1
        if rest.strip():
            ids.append(number)
            texts.append(encoding.clean(rest.rstrip("\r\n")))
        rest = ""
        if len(texts) == N_STREAMED:
            yield Examples("line", ids, texts)
            ids, texts = [], []
    if rest.strip():
        ids.append(number + 1)
        texts.append(encoding.clean(rest))
    if texts:
        yield Examples("line", ids, texts)
