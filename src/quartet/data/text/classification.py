"""Labelled texts for classification: padded rows of tokens and a class each, from a source or from the user's files.

Letters: B batch, T time (tokens), N samples.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quartet.data.csv_text import Format
from quartet.data.examples import Examples
from quartet.data.memory import Batch, Order, Samples, generator
from quartet.data.records import Records, pc, read_records
from quartet.data.report import class_table, histogram
from quartet.data.spec import Spec
from quartet.data.splits import (
    PART_NAMES,
    SPLITS,
    check_classes,
    check_duplicates,
    check_groups,
    listed,
    parts_from_column,
)
from quartet.data.text.examples import TEXT_SUFFIXES, USUAL_TEXT, stream_texts
from quartet.data.text.files import TextEncoding
from quartet.data.text.language_modeling import TextData, padded
from quartet.data.text.sources import LabelledSource, LabelledText, fingerprint
from quartet.say import say

EXAMPLE = 100  # characters of a text shown in the report
BUCKET = 20  # batches whose texts are sorted by length together
USUAL = {  # names that settle which column is which
    "text": USUAL_TEXT,
    "label": ("label", "labels", "class", "category", "target", "sentiment", "topic", "y"),
}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class TextClassificationData(TextData):
    """Labelled texts as padded tokens; of a long text the first `context_length` tokens are kept.

    The texts of one group stay together, and the shares of the split hold in every class. A text that differs from an
    earlier one in nothing but white space is dropped. Parts that the source gives are kept, and no text of the given test
    (or validation) part also trains: see `unique_texts`.
    """

    classes: tuple[str, ...]
    described = "the labelled texts"  # in messages

    def __init__(self, *, source: LabelledSource, **settings: Any):
        super().__init__(**settings)
        self.source = source
        # how new rows are read: as the training data were if those were files, else by what their content says
        self.files = source if isinstance(source, LabelledFiles) else LabelledFiles(None, "auto", "auto")
        self._notes: list[str] = []
        self._examples: dict[str, str] = {}
        self._rows: dict[str, list[LabelledText]] = {}
        self.new_files_read: LabelledFiles | None = None

    def read(self) -> tuple[dict[str, list[LabelledText]], str]:
        # 1. the texts, each once
        every = self.source.rows()
        check_classes(
            [row.label for row in every], self.described, where=lambda places: listed(every[i].where for i in places)
        )
        rows, self._notes = unique_texts(every)
        for note in self._notes:
            say(f"note: {note}")
        # 2. the parts
        labels, groups, given = ([getattr(row, name) for row in rows] for name in ("label", "group", "part"))
        grouped = any(group is not None for group in groups)
        places = self.split.assign(
            len(rows), labels=labels, groups=groups if grouped else None, given=given if any(given) else None
        )

        def where(places: Sequence[int]) -> str:
            return listed(rows[i].where for i in places)

        check_groups(groups, places, self.described, where=where)
        check_classes(labels, self.described, parts=places, where=where)
        self._rows = parts = {part: [rows[i] for i in places[part]] for part in SPLITS}
        self.ids = {
            part: sorted({(row.group if grouped else row.where) or "" for row in parts[part]}) for part in SPLITS
        }
        self._examples = {row.label: row.text[:EXAMPLE] for row in reversed(parts["train"])}
        values = ((row.text, row.label, row.group or "", row.part or "") for row in every)
        return parts, fingerprint(value for row in values for value in row)

    def fit(self, train: list[LabelledText]) -> dict[str, Any]:
        tokenizer = self.fit_tokenizer(row.text for row in train)
        counts = Counter(row.label for row in train)
        # numbers in their order, then names in that of the alphabet
        classes = sorted(counts, key=lambda label: (float(label) if NUMBER.fullmatch(label) else float("inf"), label))
        sizes = {"vocab_size": tokenizer.vocab_size, "context_length": self.context_length}
        spec = Spec(
            sizes={**sizes, "n_classes": len(classes), "pad_id": tokenizer.pad_id},
            classes=tuple(classes),
            class_counts=tuple(counts[label] for label in classes),
            token_bytes=tokenizer.byte_counts,
        )
        return {"tokenizer": tokenizer.to_json(), "spec": spec.to_json()}

    def use(self, preprocessing: dict[str, Any]) -> None:
        super().use(preprocessing)
        self.classes = self.spec.classes

    def encode_split(self, examples: list[LabelledText]) -> PaddedTexts:
        rows = self.tokenizer.encode_many([row.text for row in examples])
        lengths = torch.tensor([len(ids) for ids in rows], dtype=torch.int64)
        tokens = padded([ids[: self.context_length] for ids in rows], self.tokenizer.pad_id)
        place = {label: i for i, label in enumerate(self.classes)}
        target = torch.tensor([place[row.label] for row in examples], dtype=torch.int64)
        return PaddedTexts(tokens, lengths, target)

    def encode(self, examples: Sequence[str]) -> dict[str, Tensor]:
        """The first T tokens of each text, (N, ≤ T), padded at the end. ValueError for a text that is None."""
        if any(text is None for text in examples):
            raise ValueError("the text is missing")
        rows = [ids[: self.context_length] for ids in self.tokenizer.encode_many(list(examples))]
        return {"tokens": padded(rows, self.tokenizer.pad_id).long()}

    def examples(self, source: str) -> Iterator[Examples]:
        files = self.new_files(source)
        how = files.format({"text": files.text})
        yield from stream_texts(source, TextEncoding("auto", None), list(TEXT_SUFFIXES), how, files.text_and_label)

    def targets(self, labels: Sequence[str | None]) -> np.ndarray:
        """As in training, where equal numbers are one class: 1.0 is 1."""
        known = {*self.classes}
        return super().targets([x if x is None or x in known else number_name(x) for x in labels])

    def read_new(self, path: str) -> list[LabelledText]:
        self.new_files_read = files = self.new_files(path)
        rows = files.rows()
        places = self.targets([row.label for row in rows])
        unknown = [i for i in range(len(rows)) if places[i] < 0]
        if unknown:
            names = listed(dict.fromkeys(repr(rows[i].label) for i in unknown))
            raise ValueError(
                f"{path}: the label must be one of {listed(self.classes, 8)}, but {rows[unknown[0]].where} has {names}; "
                "correct or remove these rows"
            )
        self.ids["test"] = [row.where for row in rows]
        self._rows["test"] = [replace(row, label=self.classes[i]) for row, i in zip(rows, places, strict=True)]
        return self._rows["test"]

    def new_files(self, path: str) -> LabelledFiles:
        """New rows have the columns of the training data, but no parts and groups."""
        # older runs, and sources without files, have noted no columns
        noted = self.preprocessing().get("columns")
        columns = {key: str(name) for key, name in noted.items()} if isinstance(noted, dict) else {}
        text, label = (columns.get(key, getattr(self.files, key)) for key in ("text", "label"))
        return replace(self.files, path=path, text=text, label=label, split_column=None, group=None)

    def slice_columns(self, part: str, names: list[str]) -> dict[str, np.ndarray]:
        """Columns of the user's file; without names, the length of the texts."""
        texts: Any = self.datasets[part]
        if not names:
            return {"tokens of the text": texts.lengths.numpy().astype(object)}
        files = self.new_files_read or self.files
        if files.records is None:
            raise ValueError(f"slices={names}: these texts have no columns besides text and label; leave it out")
        rows = [row.row for row in self._rows[part]]
        return {
            name: np.array(files.records.cells[files.records.column(name, "slices")].to_pylist(), dtype=object)[rows]
            for name in names
        }

    def describe_samples(self, part: str, places: Sequence[int]) -> list[str]:
        return [self._rows[part][i].text[:EXAMPLE] for i in places]

    def train_order(self) -> Order:
        texts: Any = self.datasets["train"]
        lengths = texts.lengths[self.bootstrap_rows()] if self.bootstrap else texts.lengths
        return bucketed(lengths, self.batch_size * self.world, self.seed)

    def report(self) -> dict[str, Any]:
        """In the shape of `quartet.data.report`."""
        datasets: dict[str, Any] = self.datasets
        n, parts = len(self.classes), {}
        for part, texts in datasets.items():
            groups = {"groups": len(self.ids[part])} if len(self.ids[part]) < len(texts) else {}
            truncated = int((texts.lengths > self.context_length).sum())
            median = int(texts.lengths.median())
            parts[part] = {"samples": len(texts), **groups, "median_tokens": median, "truncated": truncated}
        counts: Any = {part: torch.bincount(x.target.cpu(), minlength=n).tolist() for part, x in datasets.items()}
        return {
            "parts": parts,
            "classes": class_table(self.classes, counts),
            "histograms": {"tokens of a text": histogram({part: x.lengths for part, x in datasets.items()})},
            "notes": [f"of a text longer than {self.context_length} tokens, its first are kept", *self._notes],
            "examples": [{"label": label, "text": self._examples[label]} for label in self.classes],
        }


class OwnLabelledText(TextClassificationData):
    """The user's CSV, TSV, JSON Lines or Parquet: see `LabelledFiles` for the settings that say what is where."""

    def __init__(
        self,
        *,
        path: str | None,
        encoding: str,
        header: str | bool,
        separator: str | None,
        text: str | int | None,
        label: str | int | None,
        split_column: str | int | None,
        group: str | int | None,
        drop_empty: bool = False,
        **settings: Any,
    ):
        files = LabelledFiles(path, encoding, header, separator, text, label, split_column, group, drop_empty)
        super().__init__(source=files, **settings)
        self.described = str(path)

    def fit(self, train: list[LabelledText]) -> dict[str, Any]:
        return {**super().fit(train), "columns": self.files.found}

    def report(self) -> dict[str, Any]:
        report = super().report()
        columns = ", ".join(f"{key} = {name}" for key, name in self.files.found.items())
        return {**report, "notes": [f"columns: {columns}", *report["notes"]]}


@dataclass
class LabelledFiles:
    """Where labelled texts are and which columns hold what: names, or numbers from 0; None: found.

    The text is the column with a usual name (`USUAL`), else that with the longest texts on average; the label has a usual
    name, else it is the one of the rest with the fewest values. Raises ValueError if that leaves a choice.
    `found` says which columns were read.
    """

    path: str | None
    encoding: str
    header: str | bool
    separator: str | None = None
    text: str | int | None = None
    label: str | int | None = None
    split_column: str | int | None = None
    group: str | int | None = None
    drop_empty: bool = False
    found: dict[str, str] = field(init=False, default_factory=dict)
    records: Any = field(init=False, default=None)  # all columns, as they were read

    def __post_init__(self):
        if self.header not in ("auto", True, False):
            raise ValueError(f"data.header must be auto, true or false, not {self.header!r}")

    def rows(self) -> list[LabelledText]:
        """The labelled texts of all files, train first; prints which columns they come from."""
        wanted = {"text": self.text, "label": self.label, "split_column": self.split_column, "group": self.group}
        records = read_records(self.path, self.format(wanted))
        if records.parts is not None and self.split_column is not None:
            raise ValueError(f"{self.path} has a file for each part; leave out data.split_column={self.split_column}")
        # 1. which column is which
        self.found = self._find_columns(records, wanted)
        how = "named by a header" if records.header else "no header, numbered from 0"
        say(f"columns of {self.path}: {', '.join(f'{key} = {name}' for key, name in self.found.items())} ({how})")
        # 2. no cell of them is empty
        for key, name in self.found.items():
            empty = np.flatnonzero(~np.asarray(records.cells[name].is_valid()))
            if len(empty) and not self.drop_empty:
                raise ValueError(
                    f"{self.path}: no {key} (column {name}) in {records.where(empty)}; fill it or remove these rows, or "
                    "leave them out with data.drop_empty=true"
                )
        full = np.all([np.asarray(records.cells[name].is_valid()) for name in self.found.values()], axis=0)
        if not full.all():
            say(f"note: {self.path}: {int((~full).sum())} rows with an empty text or label are left out")
            records = records.take(np.flatnonzero(full))
        self.records = records
        # 3. clean texts, labels, parts and groups
        clean = TextEncoding("utf-8", None).clean
        cells: dict[str, list[Any]] = {key: records.cells[name].to_pylist() for key, name in self.found.items()}
        parts: list[Any] = records.parts or [None] * len(records)
        if "split_column" in cells:
            parts = parts_from_column(cells["split_column"], str(self.path), where=records.where)
        folder = [] if records.parts is None else [str(self.path)]
        places = [os.path.join(*folder, records.path if not folder else name) for name in records.files]
        rows = [
            LabelledText(clean(text), clean(label).strip(), group, part, f"{place}, row {number}", row)
            for row, text, label, group, part, place, number in zip(
                range(len(records)),
                cells["text"],
                cells["label"],
                cells.get("group", [None] * len(records)),
                parts,
                places,
                records.numbers,
                strict=True,
            )
        ]
        return join_equal_numbers(rows)

    def format(self, wanted: dict[str, str | int | None]) -> Format:
        """A column with a name has a header; one that is called 0 has none."""
        named = any(isinstance(column, str) and not column.isdigit() for column in wanted.values())
        header = (True if named else None) if self.header == "auto" else bool(self.header)
        usual = frozenset(name for names in USUAL.values() for name in names)
        return Format(self.separator, self.encoding, header, usual=usual, plain_tabs=True)

    def text_and_label(self, records: Records) -> tuple[str, str | None]:
        """The columns of new records, in which the label may be absent."""
        if len(records.columns) == 1:
            return records.columns[0], None
        known = [name for name in (self.label, *USUAL["label"]) if name is not None]
        found = {name.lower(): name for name in records.columns}
        label = next((found[str(name).lower()] for name in known if str(name).lower() in found), None)
        if self.text is not None and str(self.text) in records.columns:
            return str(self.text), label
        return self._text_among([name for name in records.columns if name != label], records), label

    def _text_among(self, names: list[str], records: Records) -> str:
        choice = [name for name in names if name.lower() in USUAL["text"]]
        if len(choice) != 1:
            means = {name: pc.sum(pc.utf8_length(records.cells[name])).as_py() or 0 for name in names}
            choice = [name for name, mean in means.items() if mean >= 0.8 * max(means.values())]
        return self._only(choice, "text")

    def _only(self, choice: list[str], key: str) -> str:
        """The one column that is left; ValueError asks the user if there are several, or none."""
        if len(choice) != 1:
            which = " or ".join(choice) or "none is left"
            raise ValueError(f"{self.path}: which column is the {key}, {which}? say data.{key}=…")
        return choice[0]

    def _find_columns(self, records: Records, wanted: dict[str, str | int | None]) -> dict[str, str]:
        if len(records.columns) < 2:
            raise ValueError(
                f"{self.path} has one column (separator {records.separator!r}), a text and a label take two; say "
                "data.separator"
            )
        # named by the user, else by a usual name, else recognised by the cells
        found = {key: records.column(name, f"data.{key}") for key, name in wanted.items() if name is not None}
        if "text" not in found:
            found["text"] = self._text_among([name for name in records.columns if name not in found.values()], records)
        if "label" not in found:
            names = [name for name in records.columns if name not in found.values()]
            choice = [name for name in names if name.lower() in USUAL["label"]]
            if len(choice) != 1:
                values = {name: {*records.cells[name].drop_null().to_pylist()} for name in names}
                # a constant, or names of parts, are labels only if nothing else is left
                telling = {
                    name: cells
                    for name, cells in values.items()
                    if len(cells) > 1 and not {cell.lower() for cell in cells} <= PART_NAMES.keys()
                }
                counts = {name: len(cells) for name, cells in (telling or values).items()}
                choice = [name for name, n in counts.items() if n == min(counts.values())]
            found["label"] = self._only(choice, "label")
        if len(set(found.values())) < len(found):
            raise ValueError(f"{self.path}: one column cannot be two things: {found}; change data.text, data.label, …")
        return {key: found[key] for key in wanted if key in found}


def join_equal_numbers(rows: list[LabelledText]) -> list[LabelledText]:
    """If every label is a number, equal numbers get the same name: 1, 1.0 and 01 are "1"."""
    labels = sorted({row.label for row in rows})
    if not all(NUMBER.fullmatch(label) for label in labels):
        return rows
    names = {label: number_name(label) for label in labels}
    joined = [label for label in labels if list(names.values()).count(names[label]) > 1]
    if joined:
        say(f"note: the labels {', '.join(joined[:4])} are equal numbers and count as {names[joined[0]]}")
    return [replace(row, label=names[row.label]) for row in rows]


def number_name(label: str) -> str:
    """The name of a label that is a number: 1, 1.0 and 01 are "1"; any other label is its own name."""
    if not NUMBER.fullmatch(label):
        return label
    value = int(label) if re.fullmatch(r"[+-]?\d+", label) else float(label)
    return str(int(value)) if value == int(value) and abs(value) < 2**63 else repr(value)


def unique_texts(rows: list[LabelledText]) -> tuple[list[LabelledText], list[str]]:
    """The rows without those whose words were there before, and what was dropped, in words.

    A given test part stays whole, a given validation part too but for texts of test; what stands there is dropped from
    train. Of texts that repeat, the first gives the label.
    """
    # texts are equal if their words are; white space does not count
    words = [" ".join(row.text.split()) for row in rows]
    duplicates = check_duplicates(words, [row.part for row in rows])
    labels_of = Counter(text for text, _ in {(text, row.label) for text, row in zip(words, rows, strict=True)})
    n_conflicts = sum(n > 1 for n in labels_of.values())
    counts = {
        "repeated texts dropped": len(duplicates.repeated),
        "texts dropped from train or val that the given test or val holds too": len(duplicates.overlapping),
        "texts stand with more than one label; the first that is kept counts": n_conflicts,
    }
    left_out = duplicates.left_out
    return [row for i, row in enumerate(rows) if i not in left_out], [f"{n} {note}" for note, n in counts.items() if n]


class PaddedTexts(Samples):
    """Tokens (N, T) int32 padded at the end, and targets (N,); a batch is as wide as its longest text.

    `lengths` (N,) are those of the whole texts, of which at most T tokens are kept.
    """

    def __init__(self, tokens: Tensor, lengths: Tensor, target: Tensor):
        super().__init__({"tokens": tokens}, target)
        self.lengths = lengths  # stay on the CPU, where the ids come from: no waiting for the device

    def gather(self, ids: Tensor) -> Batch:
        longest = max(1, int(self.lengths[ids].max())) if len(ids) else 1
        batch = super().gather(ids)
        return {**batch, "inputs": {"tokens": batch["inputs"]["tokens"][:, :longest].long()}}


def bucketed(lengths: Tensor, batch_size: int, seed: int) -> Order:
    """A random order in which the texts of a batch are of like length: less padding, the same texts an epoch.

    Of each `BUCKET` batches drawn at random the texts are sorted by length (N,), cut into batches, and these shuffled.
    """

    def order(epoch: int) -> Tensor:
        random = generator(seed, epoch)
        # the last texts, fewer than a batch, stay at the end
        ids = torch.randperm(len(lengths), generator=random)
        n_whole = len(ids) // batch_size * batch_size
        chunks = ids[:n_whole].split(BUCKET * batch_size)
        batches = torch.cat([chunk[lengths[chunk].argsort(stable=True)] for chunk in chunks]).view(-1, batch_size)
        shuffled = batches[torch.randperm(len(batches), generator=random)]
        return torch.cat((shuffled.flatten(), ids[n_whole:]))

    return order
