"""Text for language modelling: documents become a stream of tokens, which is cut into windows.

Letters: B batch, T time (tokens), N samples, L tokens of a stream.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from quartet.data.base import DataModule
from quartet.data.cache import Mapped
from quartet.data.memory import Batch, Order, generator, sequential
from quartet.data.report import histogram
from quartet.data.spec import Spec
from quartet.data.splits import SPLITS, Split
from quartet.data.text import tokenizers
from quartet.data.text.files import TOKENS, Reading, TextFiles
from quartet.data.text.sources import AnyDocument, DocumentSource, Shakespeare, fingerprint
from quartet.data.text.tokenizers import Tokenizer
from quartet.say import say

FIT_CHARACTERS = 2**25  # a tokenizer is fitted on about this many; more take longer and hardly change it
BATCH = 32  # pieces encoded at a time: some 2 MB of text
CHUNK = 2**20  # tokens counted at a time
FORGET_AFTER = 64  # batches read from a mapped file before its pages are given back
EXAMPLE, N_EXAMPLES = 300, 3  # characters of each of the first training documents shown in the report


class TextData(DataModule):
    """What all text shares: a tokenizer, fitted on the training part or taken from another run, and a context length."""

    tokenizer: Tokenizer

    def __init__(self, *, tokenizer: str, vocab_size: int, context_length: int, **common: Any):
        super().__init__(**common)
        self.tokenizer_kind, self.vocab_size, self.context_length = tokenizer, vocab_size, context_length
        self._taken: dict[str, Any] | None = None

    def reuse(self, preprocessing: dict[str, Any]) -> str | None:
        """The embedding of a network means nothing without its tokenizer."""
        self._taken = preprocessing.get("tokenizer")
        return "tokenizer" if self._taken else None

    def fit_tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        if self._taken:
            return tokenizers.from_json(self._taken)
        return tokenizers.fit(self.tokenizer_kind, texts, self.vocab_size)

    def use(self, preprocessing: dict[str, Any]) -> None:
        self.tokenizer = tokenizers.from_json(preprocessing["tokenizer"])


class LanguageModelingData(TextData):
    """Windows of `context_length` tokens from a stream of documents; the target is the token that follows each token.

    Documents are split as wholes; where they are too few for that, each is split by position: its beginning trains. The
    stream of a part is its documents, each followed by <eos>. The order of the training windows is
    - "shuffled": each epoch starts at another offset and visits the windows in another order;
    - "contiguous": the windows of row b of successive batches follow each other, so that a recurrent network can carry
      its state from batch to batch. Row b of the next global batch continues row b of this one.
    Validation and test visit every window once, in order (contiguous: in as many streams as a batch has rows; the last
    batch holds the first of them). What remains at the end of a part, less than one window, is left out.
    """

    def __init__(self, *, source: DocumentSource, order: str, **settings: Any):
        super().__init__(**settings)
        if self.bootstrap:
            raise ValueError("data.bootstrap draws rows, and running text has none; leave it out")
        if order not in ("shuffled", "contiguous"):
            raise ValueError(f"data.order must be shuffled or contiguous, not {order!r}")
        self.source, self.order = source, order
        self._lengths: dict[str, list[int]] = {}
        self._examples: list[dict[str, str]] = []

    def read(self) -> tuple[dict[str, list[Any]], str]:
        documents = self.source.documents()
        parts = self._split(documents, self.split)
        return parts, fingerprint(value for document in documents for value in (document.name, document.text))

    def _split(self, documents: Sequence[AnyDocument], split: Split) -> dict[str, list[Any]]:
        parts = split_documents(documents, split)
        self.ids = {part: [document.name for document in parts[part]] for part in SPLITS}
        self._lengths = {part: [len(document) for document in parts[part]] for part in SPLITS}
        self._examples = [
            {"document": document.name, "text": next(document.pieces(), "")[:EXAMPLE]}
            for document in parts["train"][:N_EXAMPLES]
        ]
        return parts

    def fit(self, train: list[AnyDocument]) -> dict[str, Any]:
        tokenizer = self.fit_documents(train)
        sizes = {"vocab_size": tokenizer.vocab_size, "context_length": self.context_length}
        spec = Spec(sizes=sizes, token_bytes=tokenizer.byte_counts)
        return {"tokenizer": tokenizer.to_json(), "spec": spec.to_json()}

    def fit_documents(self, train: list[AnyDocument]) -> Tokenizer:
        return self.fit_tokenizer(sample(train, FIT_CHARACTERS))

    def encode_split(self, examples: list[AnyDocument]) -> Windows:
        stream = torch.from_numpy(np.concatenate([np.empty(0, np.int32), *token_blocks(self.tokenizer, examples)]))
        return Windows(stream, self.context_length, self.name_of(examples))

    def name_of(self, documents: Sequence[AnyDocument]) -> str:
        """The documents of a part, for messages."""
        names = [document.name for document in documents]
        return ", ".join(names) if 0 < len(names) < 4 else f"a part of the text ({len(names)} documents)"

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
        """In the shape of `quartet.data.report`."""
        several = len(self._lengths["train"]) > 1
        return {
            "parts": {part: self._report_part(part) for part in SPLITS},
            "histograms": {"characters of a document": histogram(self._lengths)} if several else {},
            "notes": [],
            "examples": self._examples,
        }

    def _report_part(self, part: str) -> dict[str, Any]:
        windows: Any = self.datasets[part]
        counts = windows.token_counts(self.tokenizer.vocab_size)
        n_bytes = int(counts @ torch.tensor(self.tokenizer.byte_counts))
        unknown = self.tokenizer.unknown_id
        return {
            "samples": len(windows),
            "documents": len(self.ids[part]),
            "tokens": len(windows.stream),
            "bytes_per_token": round(n_bytes / len(windows.stream), 3),
            "unknown_tokens": 0 if unknown is None else int(counts[unknown]),
        }


class OwnText(LanguageModelingData):
    """The user's own text: a file, a folder or a glob.

    Up to `in_memory_mb` megabytes are held in memory. A larger text is tokenised once, into the cache, and mapped
    from there; its tokenizer is fitted on a sample. Of a text of many megabytes the shares of val and test are cut to
    `eval_mb` megabytes each (None: never), and the rest trains.
    """

    def __init__(
        self,
        *,
        path: str | None,
        encoding: str,
        normalize: str | None,
        suffixes: list[str],
        in_memory_mb: float,
        eval_mb: float | None,
        **settings: Any,
    ):
        self.files = TextFiles(path, Reading(encoding, normalize), list(suffixes), in_memory_mb)
        super().__init__(source=self.files, **settings)
        self.eval_mb = eval_mb

    def read(self) -> tuple[dict[str, list[Any]], str]:
        self.corpus = self.files.load()
        parts = self._split(self.corpus.documents, limited(self.split, self.corpus.n_bytes, self.eval_mb))
        return parts, self.corpus.fingerprint

    def fit_documents(self, train: list[AnyDocument]) -> Tokenizer:
        if self.corpus.in_memory:
            return super().fit_documents(train)

        def write(file: BinaryIO) -> None:
            say(f"first use of {self.files}: tokenising it into {TOKENS.path}; minutes, once")
            file.write(json.dumps(super(OwnText, self).fit_documents(train).to_json()).encode())

        facts = (self.tokenizer_kind, self.vocab_size, FIT_CHARACTERS, self._taken)
        return tokenizers.from_json(json.loads(TOKENS.made(self._key("tokenizer", train, *facts), write).read_bytes()))

    def encode_split(self, examples: list[AnyDocument]) -> Windows:
        if self.corpus.in_memory:
            return super().encode_split(examples)
        dtype = torch.uint16 if self.tokenizer.vocab_size <= 2**16 else torch.int32

        def write(file: BinaryIO) -> None:
            for tokens in token_blocks(self.tokenizer, examples):
                file.write(torch.from_numpy(tokens).to(dtype).numpy().tobytes())

        path = TOKENS.made(self._key("tokens", examples, self.tokenizer.to_json()), write)
        return MappedWindows(path, dtype, self.context_length, self.name_of(examples))

    def name_of(self, documents: Sequence[AnyDocument]) -> str:
        return f"{self.files}: {super().name_of(documents)}"

    def _key(self, kind: str, documents: list[AnyDocument], *facts: Any) -> str:
        """Of a file in the cache: which characters of which content, the settings, the library that merges byte pairs."""
        spans = [document.name for document in documents]
        return TOKENS.key(kind, self.corpus.fingerprint, spans, importlib.metadata.version("tokenizers"), *facts)

    def report(self) -> dict[str, Any]:
        corpus, report = self.corpus, super().report()
        notes = [
            f"{corpus.n_bytes:,} bytes of text, {'held in memory' if corpus.in_memory else 'mapped from the cache'}"
        ]
        notes += [f"{corpus.n_repeated} repeated documents dropped"] * (corpus.n_repeated > 0)
        notes += [f"{corpus.n_empty} empty documents dropped"] * (corpus.n_empty > 0)
        return {**report, "notes": [*notes, *report["notes"]]}


class Windows:
    """Windows of T tokens of a stream (L,) and the tokens that follow; the id of a window is the position of its start.

    The stream is a ring: a window that starts near the end continues at the beginning, so that an epoch may start
    anywhere and still see (L - 1) // T windows, each target at most once. `name` is for the error of a stream too short.
    """

    def __init__(self, stream: Tensor, context_length: int, name: str = "a part of the text"):
        check_length(len(stream), context_length, name)
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

    def token_counts(self, vocab_size: int) -> Tensor:
        """How often each id occurs in the stream, (vocab_size,)."""
        counts = torch.zeros(vocab_size, dtype=torch.int64)
        for chunk in self.stream.split(CHUNK):
            counts += torch.bincount(chunk.long().cpu(), minlength=vocab_size)
            self.forget()
        return counts

    def forget(self) -> None:
        """Give memory back that can be had again; there is none here."""


class MappedWindows(Windows):
    """Windows of a stream that stays in its file: only the windows of a batch are read, and sent to the device."""

    def __init__(self, path: Path, dtype: torch.dtype, context_length: int, name: str):
        check_length(path.stat().st_size // dtype.itemsize, context_length, name)
        self.file, self.device = Mapped(path, FORGET_AFTER), torch.device("cpu")
        super().__init__(self.file.tensor(dtype), context_length, name)

    def gather(self, ids: Tensor) -> Batch:
        batch = super().gather(ids)
        self.file.count(1)
        tokens = {name: x.to(self.device) for name, x in batch["inputs"].items()}
        return {"inputs": tokens, "target": batch["target"].to(self.device), "index": ids.to(self.device)}

    def to(self, device: torch.device) -> MappedWindows:
        self.device = device
        return self

    def forget(self) -> None:
        self.file.forget()


def check_length(n: int, context_length: int, name: str) -> None:
    """Raise ValueError where a stream of n tokens has no room for one window."""
    if n <= context_length:
        raise ValueError(
            f"{name} has {n} tokens, and one window takes data.context_length + 1 = {context_length + 1}; "
            "bring more text, take a smaller data.context_length or change data.split"
        )


def shakespeare(*, path: str | None, download: bool, **settings: Any) -> LanguageModelingData:
    """Tiny Shakespeare; the settings are those of `LanguageModelingData`, without `source`."""
    return LanguageModelingData(source=Shakespeare(path=path, download=download), **settings)


def token_blocks(tokenizer: Tokenizer, documents: Iterable[AnyDocument]) -> Iterator[np.ndarray]:
    """Blocks of int32: the tokens of each document, followed by <eos>."""
    marked = ((piece, end) for document in documents for piece, end in _pieces_and_end(document))
    while batch := list(islice(marked, BATCH)):
        rows = tokenizer.encode_many([piece for piece, _ in batch])
        ends = ([tokenizer.eos_id] * end for _, end in batch)
        yield np.fromiter(chain.from_iterable(chain.from_iterable(zip(rows, ends, strict=True))), dtype=np.int32)


def _pieces_and_end(document: AnyDocument) -> Iterator[tuple[str, bool]]:
    yield from ((piece, False) for piece in document.pieces())
    yield "", True


def sample(documents: Sequence[AnyDocument], n_characters: int) -> Iterator[str]:
    """Pieces of about `n_characters` in all, evenly spaced over the documents; all pieces if there are fewer."""
    step = -(-sum(map(len, documents)) // n_characters)
    return islice(chain.from_iterable(document.pieces() for document in documents), 0, None, max(1, step))


def shuffled_windows(n: int, context_length: int, seed: int) -> Order:
    """Starts of n windows in a random order, from a random offset below T; both drawn anew each epoch."""

    def order(epoch: int) -> Tensor:
        random = generator(seed, epoch)
        offset = torch.randint(context_length, (1,), generator=random)
        return torch.randperm(n, generator=random).mul_(context_length).add_(offset)

    return order


def contiguous(n: int, n_streams: int) -> Order:
    """0 … n - 1 cut into streams of n // n_streams, the first n % n_streams one longer; step t takes item t of each."""
    step, stream = torch.arange(n) // n_streams, torch.arange(n) % n_streams
    first = stream * (n // n_streams) + stream.clamp(max=n % n_streams)
    return lambda epoch: first + step


def limited(split: Split, n_bytes: int, eval_mb: float | None) -> Split:
    """The split with val and test no larger than `eval_mb` megabytes each."""
    if eval_mb is None or n_bytes == 0:
        return split
    val, test = (min(share, eval_mb * 1e6 / n_bytes) for share in split.shares[1:])
    return split if [val, test] == split.shares[1:] else replace(split, shares=[1 - val - test, val, test])


def split_documents(documents: Sequence[AnyDocument], split: Split) -> dict[str, list[Any]]:
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


def _span(document: AnyDocument, start: float, end: float) -> AnyDocument:
    """The text between two shares of its length."""
    return document.span(round(start * len(document)), round(end * len(document)))


def padded(rows: list[list[int]], pad_id: int) -> Tensor:
    """Rows of ids -> (N, longest row, at least 1) int32, filled up with `pad_id` at the end."""
    tokens = torch.full((len(rows), max([1, *map(len, rows)])), pad_id, dtype=torch.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int32)
    return tokens
