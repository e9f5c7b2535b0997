"""Text: a stream of tokens cut into windows for language modelling, labelled texts for classification.

Letters: B batch, T time (tokens), N samples, L tokens of a stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quartet.data import tokenizers
from quartet.data.base import DataModule
from quartet.data.memory import Batch, Order, Samples, generator, sequential
from quartet.data.sources import Document, DocumentSource, LabelledSource, LabelledText, Shakespeare, fingerprint
from quartet.data.spec import Spec
from quartet.data.splits import SPLITS, Split
from quartet.data.tokenizers import Tokenizer


class LanguageModelingData(DataModule):
    """Windows of `context_length` tokens from a stream of documents; the target is the token that follows each token.

    Documents are split as wholes; where they are too few for that, each is split by position: its beginning trains. The
    stream of a part is its documents, each followed by <eos>. The order of the training windows is
    - "shuffled": each epoch starts at another offset and visits the windows in another order;
    - "contiguous": the windows of row b of successive batches follow each other, so that a recurrent network can carry
      its state from batch to batch. Row b of the next global batch continues row b of this one.
    Validation and test visit every window once, in order (contiguous: in as many streams as a batch has rows; the last
    batch holds the first of them). What remains at the end of a part, less than one window, is left out.
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        *,
        source: DocumentSource,
        tokenizer: str,
        vocab_size: int,
        context_length: int,
        order: str,
        **common: Any,
    ):
        super().__init__(**common)
        if order not in ("shuffled", "contiguous"):
            raise ValueError(f"data.order must be shuffled or contiguous, not {order!r}")
        self.source, self.tokenizer_kind, self.vocab_size = source, tokenizer, vocab_size
        self.context_length, self.order = context_length, order

    def read(self) -> tuple[dict[str, list[Document]], str]:
        documents = self.source.documents()
        parts = split_documents(documents, self.split)
        self.ids = {part: [document.name for document in parts[part]] for part in SPLITS}
        return parts, fingerprint(value for document in documents for value in (document.name, document.text))

    def fit(self, train: list[Document]) -> dict[str, Any]:
        tokenizer = tokenizers.fit(self.tokenizer_kind, [document.text for document in train], self.vocab_size)
        sizes = {"vocab_size": tokenizer.vocab_size, "context_length": self.context_length}
        spec = Spec(sizes=sizes, token_bytes=tokenizer.byte_counts)
        return {"tokenizer": tokenizer.to_json(), "spec": spec.to_json()}

    def use(self, preprocessing: dict[str, Any]) -> None:
        self.tokenizer = tokenizers.from_json(preprocessing["tokenizer"])

    def encode_split(self, examples: list[Document]) -> Windows:
        return Windows(token_stream(self.tokenizer, examples), self.context_length)

    def encode(self, examples: list[str]) -> dict[str, Tensor]:
        """The last T tokens of each text, (N, ≤ T), shorter ones padded at the end; an empty text is a lone <eos>."""
        rows = [ids[-self.context_length :] or [self.tokenizer.eos_id] for ids in self.tokenizer.encode_many(examples)]
        return {"tokens": padded(rows, self.tokenizer.pad_id).long()}

    def train_order(self) -> Order:
        if self.order == "contiguous":
            return self.eval_order("train")
        return shuffled_windows(len(self.datasets["train"]), self.context_length, self.seed)

    def eval_order(self, part: str) -> Order:
        n = len(self.datasets[part])
        order = contiguous(n, self.batch_size * self.world) if self.order == "contiguous" else sequential(n)
        return lambda epoch: order(epoch) * self.context_length

    def report(self) -> dict[str, Any]:
        return {part: self._report_part(part) for part in SPLITS}

    def _report_part(self, part: str) -> dict[str, Any]:
        windows: Any = self.datasets[part]
        n_bytes = int(torch.tensor(self.tokenizer.byte_counts)[windows.stream.cpu()].sum())
        return {
            "documents": len(self.ids[part]),
            "tokens": len(windows.stream),
            "windows": len(windows),
            "bytes_per_token": round(n_bytes / len(windows.stream), 3),
            "unknown_tokens": int((windows.stream == (self.tokenizer.unknown_id or -1)).sum()),
        }


class Windows:
    """Windows of T tokens of a stream (L,) and the tokens that follow; the id of a window is the position of its start.

    The stream is a ring: a window that starts near the end goes on at the beginning, so that an epoch may start
    anywhere and still see (L - 1) // T windows, each target at most once.
    """

    def __init__(self, stream: Tensor, context_length: int):
        if len(stream) <= context_length:
            raise ValueError(
                f"a part of the text has {len(stream)} tokens, and one window takes data.context_length + 1 = "
                f"{context_length + 1}; bring more text, take a smaller data.context_length or change data.split"
            )
        self.stream, self.context_length = stream, context_length

    def __len__(self) -> int:
        return (len(self.stream) - 1) // self.context_length

    def gather(self, ids: Tensor) -> Batch:
        ids = ids.to(self.stream.device)
        span = torch.arange(self.context_length + 1, device=ids.device)
        tokens = self.stream[(ids[:, None] + span) % len(self.stream)].long()  # (B, T + 1)
        return {"inputs": {"tokens": tokens[:, :-1]}, "target": tokens[:, 1:], "index": ids}

    def to(self, device: torch.device) -> Windows:
        self.stream = self.stream.to(device)
        return self


def shakespeare(*, path: str | None, download: bool, **settings: Any) -> LanguageModelingData:
    """Tiny Shakespeare; the settings are those of `LanguageModelingData`, without `source`."""
    return LanguageModelingData(source=Shakespeare(path=path, download=download), **settings)


def token_stream(tokenizer: Tokenizer, documents: list[Document]) -> Tensor:
    """(L,) int32: the tokens of each document, followed by <eos>."""
    rows = tokenizer.encode_many([document.text for document in documents])
    arrays = [np.array([*ids, tokenizer.eos_id], dtype=np.int32) for ids in rows]
    return torch.from_numpy(np.concatenate([np.empty(0, np.int32), *arrays]))


def shuffled_windows(n: int, context_length: int, seed: int) -> Order:
    """Starts of n windows in a random order, from a random offset below T; both drawn anew each epoch."""

    def order(epoch: int) -> Tensor:
        random = generator(seed, epoch)
        offset = torch.randint(context_length, (1,), generator=random)
        return torch.randperm(n, generator=random) * context_length + offset

    return order


def contiguous(n: int, n_streams: int) -> Order:
    """0 … n - 1 cut into streams of n // n_streams, the first n % n_streams one longer; step t takes item t of each."""
    step, stream = torch.arange(n) // n_streams, torch.arange(n) % n_streams
    first = stream * (n // n_streams) + stream.clamp(max=n % n_streams)
    return lambda epoch: first + step


def split_documents(documents: list[Document], split: Split) -> dict[str, list[Document]]:
    """Whole documents to train, val and test; where a part would stay empty, each document is cut by position.

    Cut by position, fold k of a cross-validation is the k-th piece of what stands before the test part.
    """
    if len(documents) >= (split.folds or 0):
        ids = split.assign(len(documents))
        if all(ids.values()):
            return {part: [documents[i] for i in ids[part]] for part in SPLITS}
    return {
        part: [_span(document, start, end) for document in documents for start, end in spans]
        for part, spans in _positions(split).items()
    }


def _positions(split: Split) -> dict[str, list[tuple[float, float]]]:
    """From which share of its length to which a document belongs to each part."""
    train, val, test = split.shares
    if split.folds is None or split.fold is None:
        return {"train": [(0.0, train)], "val": [(train, train + val)], "test": [(train + val, 1.0)]}
    start, end = ((1 - test) * k / split.folds for k in (split.fold, split.fold + 1))
    around = [(0.0, start), (end, 1 - test)]
    return {"train": [(a, b) for a, b in around if a < b], "val": [(start, end)], "test": [(1 - test, 1.0)]}


def _span(document: Document, start: float, end: float) -> Document:
    """The text between two shares of its length; its name says which characters."""
    first, last = (round(share * len(document.text)) for share in (start, end))
    return Document(f"{document.name}[{first}:{last}]", document.text[first:last])


class TextClassificationData(DataModule):
    """Labelled texts as padded tokens; of a long text the first `context_length` tokens are kept.

    The texts of one group stay together, and the shares of the split hold in every class. A text that differs from an
    earlier one in nothing but white space is dropped.
    """

    tokenizer: Tokenizer
    classes: tuple[str, ...]

    def __init__(
        self,
        *,
        source: LabelledSource,
        tokenizer: str,
        vocab_size: int,
        context_length: int,
        **common: Any,
    ):
        super().__init__(**common)
        self.source, self.tokenizer_kind, self.vocab_size = source, tokenizer, vocab_size
        self.context_length = context_length
        self.n_duplicates = 0

    def read(self) -> tuple[dict[str, list[LabelledText]], str]:
        rows = self.source.rows()
        kept = unique_texts(rows)
        self.n_duplicates = len(rows) - len(kept)
        places = self.split.assign(len(kept), labels=[row.label for row in kept], groups=[row.group for row in kept])
        parts = {part: [kept[i] for i in places[part]] for part in SPLITS}
        self.ids = {part: sorted({row.group for row in parts[part]}) for part in SPLITS}
        return parts, fingerprint(value for row in rows for value in (row.text, row.label, row.group))

    def fit(self, train: list[LabelledText]) -> dict[str, Any]:
        tokenizer = tokenizers.fit(self.tokenizer_kind, [row.text for row in train], self.vocab_size)
        counts = Counter(row.label for row in train)
        classes = tuple(sorted(counts))
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
        self.tokenizer = tokenizers.from_json(preprocessing["tokenizer"])
        self.classes = self.spec.classes

    def encode_split(self, examples: list[LabelledText]) -> PaddedTexts:
        unseen = sorted({row.label for row in examples} - set(self.classes))
        if unseen:
            raise ValueError(
                f"no training text has the label {', '.join(unseen)}, but validation or test has; "
                "bring more texts of it, leave it out or change data.split_seed"
            )
        rows = self._token_rows([row.text for row in examples])
        target = torch.tensor([self.classes.index(row.label) for row in examples], dtype=torch.int64)
        return PaddedTexts(padded(rows, self.tokenizer.pad_id), torch.tensor([len(ids) for ids in rows]), target)

    def encode(self, examples: list[str]) -> dict[str, Tensor]:
        """The first T tokens of each text, (N, ≤ T), padded at the end."""
        return {"tokens": padded(self._token_rows(examples), self.tokenizer.pad_id).long()}

    def _token_rows(self, texts: list[str]) -> list[list[int]]:
        return [ids[: self.context_length] for ids in self.tokenizer.encode_many(texts)]

    def report(self) -> dict[str, Any]:
        return {"duplicates_removed": self.n_duplicates, **{part: self._report_part(part) for part in SPLITS}}

    def _report_part(self, part: str) -> dict[str, Any]:
        texts: Any = self.datasets[part]
        counts = torch.bincount(texts.target.cpu(), minlength=len(self.classes)).tolist()
        return {
            "groups": len(self.ids[part]),
            "texts": len(texts),
            "class_counts": dict(zip(self.classes, counts, strict=True)),
            "median_tokens": int(texts.lengths.median()),
            "share_at_full_length": round(float((texts.lengths == self.context_length).float().mean()), 3),
        }


class PaddedTexts(Samples):
    """Tokens (N, T) int32 padded at the end, their lengths and targets (N,); a batch is as wide as its longest text."""

    def __init__(self, tokens: Tensor, lengths: Tensor, target: Tensor):
        super().__init__({"tokens": tokens}, target)
        self.lengths = lengths  # stay on the CPU, where the ids come from: no waiting for the device

    def gather(self, ids: Tensor) -> Batch:
        longest = max(1, int(self.lengths[ids].max())) if len(ids) else 1
        batch = super().gather(ids)
        return {**batch, "inputs": {"tokens": batch["inputs"]["tokens"][:, :longest].long()}}


def padded(rows: list[list[int]], pad_id: int) -> Tensor:
    """Rows of ids -> (N, longest row, at least 1) int32, filled up with `pad_id` at the end."""
    tokens = torch.full((len(rows), max([1, *map(len, rows)])), pad_id, dtype=torch.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int32)
    return tokens


def unique_texts(rows: Iterable[LabelledText]) -> list[LabelledText]:
    """The rows without those whose words were there before."""
    first: dict[str, LabelledText] = {}
    for row in rows:
        first.setdefault(" ".join(row.text.split()), row)
    return list(first.values())
