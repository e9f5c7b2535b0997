"""Labelled texts for classification: padded rows of tokens and a class each.

Letters: B batch, T time (tokens), N samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quartet.data.labelled_files import LabelledFiles, number, shares_part
from quartet.data.memory import Batch, Order, Samples, generator
from quartet.data.report import class_table, histogram
from quartet.data.sources import LabelledSource, LabelledText, fingerprint
from quartet.data.spec import Spec
from quartet.data.splits import SPLITS
from quartet.data.text import TextData, padded
from quartet.say import say

EXAMPLE = 100  # characters of a text shown in the report
BUCKET = 20  # batches whose texts are sorted by length together


class TextClassificationData(TextData):
    """Labelled texts as padded tokens; of a long text the first `context_length` tokens are kept.

    The texts of one group stay together, and the shares of the split hold in every class. A text that differs from an
    earlier one in nothing but white space is dropped. Parts that the source gives are kept, and no text of the given test
    (or validation) part also trains: see `unique_texts`.
    """

    classes: tuple[str, ...]

    def __init__(self, *, source: LabelledSource, **settings: Any):
        super().__init__(**settings)
        self.source = source
        self._notes: list[str] = []
        self._examples: dict[str, str] = {}

    def read(self) -> tuple[dict[str, list[LabelledText]], str]:
        rows = self.source.rows()
        kept, self._notes = unique_texts(rows)
        for note in self._notes:
            say(f"note: {note}")
        parts = self._split(kept)
        _check_classes(parts)
        self._examples = {row.label: row.text[:EXAMPLE] for row in reversed(parts["train"])}
        values = ((row.text, row.label, row.group or "", row.part or "") for row in rows)
        return parts, fingerprint(value for row in values for value in row)

    def _split(self, rows: list[LabelledText]) -> dict[str, list[LabelledText]]:
        grouped, given = any(row.group is not None for row in rows), any(row.part for row in rows)
        if problem := shares_part(rows):
            raise ValueError(f"a group must stay in one part, but {problem}; leave out data.group or mend the parts")
        places = self.split.assign(
            len(rows),
            labels=[row.label for row in rows],
            groups=[row.group for row in rows] if grouped else None,
            given=[row.part for row in rows] if given else None,
        )
        parts = {part: [rows[i] for i in places[part]] for part in SPLITS}
        self.ids = {part: sorted({row.group if grouped else row.where for row in parts[part]}) for part in SPLITS}  # type: ignore[type-var]
        return parts

    def fit(self, train: list[LabelledText]) -> dict[str, Any]:
        tokenizer = self.fit_tokenizer(row.text for row in train)
        counts = Counter(row.label for row in train)
        classes = tuple(sorted(counts, key=lambda label: (float(label) if number(label) else float("inf"), label)))
        if len(classes) < 2:
            raise ValueError(f"the training texts have {len(classes)} classes ({', '.join(classes)}); bring at least 2")
        sizes = {
            "vocab_size": tokenizer.vocab_size,
            "context_length": self.context_length,
            "n_classes": len(classes),
            "pad_id": tokenizer.pad_id,
        }
        spec = Spec(
            sizes=sizes,
            classes=classes,
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
        place = {label: i for i, label in enumerate(self.classes)}
        target = torch.tensor([place[row.label] for row in examples], dtype=torch.int64)
        return PaddedTexts(self._padded(rows), lengths, target)

    def encode(self, examples: list[str]) -> dict[str, Tensor]:
        """The first T tokens of each text, (N, ≤ T), padded at the end."""
        return {"tokens": self._padded(self.tokenizer.encode_many(examples)).long()}

    def _padded(self, rows: list[list[int]]) -> Tensor:
        return padded([ids[: self.context_length] for ids in rows], self.tokenizer.pad_id)

    def train_order(self) -> Order:
        texts: Any = self.datasets["train"]
        return bucketed(texts.lengths, self.batch_size * self.world, self.seed)

    def report(self) -> dict[str, Any]:
        """In the shape of `quartet.data.report`."""
        datasets: dict[str, Any] = self.datasets
        n = len(self.classes)
        counts: dict[str, Sequence[int]] = {
            part: torch.bincount(x.target.cpu(), minlength=n).tolist() for part, x in datasets.items()
        }
        return {
            "parts": {part: self._report_part(part) for part in SPLITS},
            "classes": class_table(self.classes, counts),
            "histograms": {"tokens of a text": histogram({part: x.lengths for part, x in datasets.items()})},
            "notes": [f"of a text longer than {self.context_length} tokens, its first are kept", *self._notes],
            "examples": [{"label": label, "text": self._examples[label]} for label in self.classes],
        }

    def _report_part(self, part: str) -> dict[str, Any]:
        texts: Any = self.datasets[part]
        groups = {"groups": len(self.ids[part])} if len(self.ids[part]) < len(texts) else {}
        return {
            "samples": len(texts),
            **groups,
            "median_tokens": int(texts.lengths.median()),
            "truncated": int((texts.lengths > self.context_length).sum()),
        }


class OwnLabelledText(TextClassificationData):
    """The user's CSV, TSV or JSON Lines: see `LabelledFiles` for the settings that say what is where."""

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
        self.files = files

    def report(self) -> dict[str, Any]:
        report = super().report()
        columns = ", ".join(f"{key} = {name}" for key, name in self.files.found.items())
        return {**report, "notes": [f"columns: {columns}", *report["notes"]]}


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
        ids = torch.randperm(len(lengths), generator=random)
        n_whole = len(ids) // batch_size * batch_size
        chunks = ids[:n_whole].split(BUCKET * batch_size)
        batches = torch.cat([chunk[lengths[chunk].argsort(stable=True)] for chunk in chunks]).view(-1, batch_size)
        shuffled = batches[torch.randperm(len(batches), generator=random)]
        return torch.cat((shuffled.flatten(), ids[n_whole:]))

    return order


def unique_texts(rows: list[LabelledText]) -> tuple[list[LabelledText], list[str]]:
    """The rows without those whose words were there before, and what was dropped, in words.

    A given test part stays whole, a given validation part too but for texts of test; what stands there is dropped from
    train. Of texts that repeat, the first gives the label.
    """
    words = [" ".join(row.text.split()) for row in rows]
    held_out: dict[str, str] = {}
    for part in ("test", "val"):
        held_out = {key: part for key, row in zip(words, rows, strict=True) if row.part == part} | held_out
    kept, seen, n_overlaps = [], set(), 0
    for key, row in zip(words, rows, strict=True):
        official = held_out.get(key)
        if key not in seen if official is None else official == row.part:
            kept.append(row)
        n_overlaps += official is not None and official != row.part
        seen.add(key)
    n_repeated, n_conflicts = len(rows) - len(kept) - n_overlaps, _conflicts(words, rows)
    notes = {
        f"{n_repeated} repeated texts dropped": n_repeated,
        f"{n_overlaps} texts dropped from train or val that the given test or val holds too": n_overlaps,
        f"{n_conflicts} texts stand with more than one label; the first that is kept counts": n_conflicts,
    }
    return kept, [note for note, n in notes.items() if n]


def _conflicts(words: list[str], rows: list[LabelledText]) -> int:
    """Texts with more than one label."""
    pairs = {(key, row.label) for key, row in zip(words, rows, strict=True)}
    return sum(n > 1 for n in Counter(key for key, _ in pairs).values())


def _check_classes(parts: dict[str, list[LabelledText]]) -> None:
    """ValueError where nothing trains, or validation or test has a label that never does."""
    if not parts["train"]:
        raise ValueError("no text is left to train on: val and test hold all of them; take them out of val and test")
    known = {row.label for row in parts["train"]}
    for part in SPLITS[1:]:
        unseen = next((row for row in parts[part] if row.label not in known), None)
        if unseen is not None:
            place = f" ({unseen.where})" if unseen.where else ""
            raise ValueError(
                f"no training text has the label {unseen.label}, but {part} has{place}; bring more texts of it, "
                "leave it out or change data.split_seed"
            )
