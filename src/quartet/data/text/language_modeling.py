"""Text for language modelling: documents become a stream of tokens, which is cut into windows.

Letters: B batch, T time (tokens), N samples, L tokens of a stream.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from quartet.data.base import DataModule
from quartet.data.cache import Mapped
from quartet.data.csv_text import Format
from quartet.data.examples import Examples
from quartet.data.memory import Batch, Order, generator, sequential
from quartet.data.records import Records
from quartet.data.report import histogram
from quartet.data.spec import Spec
from quartet.data.splits import SPLITS, Split, listed
from quartet.data.text import tokenizers
from quartet.data.text.examples import TEXT_SUFFIXES, USUAL_TEXT, stream_texts
from quartet.data.text.files import TOKENS, AnyDocument, FileDocument, TextEncoding, TextFiles
from quartet.data.text.sources import DocumentSource, Shakespeare, fingerprint
from quartet.data.text.tokenizers import Tokenizer
from quartet.say import say

FIT_CHARACTERS = 2**25  # a tokenizer is fitted on about this many; more take longer and hardly change it
LONG = 2**24  # characters that take more than some ten seconds, which is said beforehand
BATCH = 32  # chunks encoded at a time: some 2 MB of text
CHUNK = 2**20  # tokens counted at a time
FORGET_AFTER = 64  # batches read from a mapped file before its pages are given back
ON_DEVICE = 2**28  # bytes of a stream that are copied to an accelerator, a small share of its memory; 64 M tokens
EXAMPLE, N_EXAMPLES = 300, 3  # characters of each of the first training documents shown in the report


class TextData(DataModule):
    """What all text shares: a tokenizer, fitted on the training part or taken from another run, and a context length."""

    tokenizer: Tokenizer

    def __init__(self, *, tokenizer: str, vocab_size: int, context_length: int, **common: Any):
        super().__init__(**common)
        self.tokenizer_kind, self.vocab_size, self.context_length = tokenizer, vocab_size, context_length
        self._reused: dict[str, Any] | None = None

    def reuse(self, preprocessing: dict[str, Any]) -> str | None:
        """The embedding of a network means nothing without its tokenizer."""
        self._reused = preprocessing.get("tokenizer")
        return "tokenizer" if self._reused else None

    def fit_tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        """A tokenizer for these texts, or the one of the run whose weights are reused."""
        if self._reused:
            return tokenizers.from_json(self._reused)
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

    The tokenizer and the streams are made once: they are files of the cache, named after the documents and the settings
    (`cached`). The streams are mapped into memory.
    """

    described = "the text"  # in messages

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
        """The documents of each part; notes what the report says of them."""
        parts = split_documents(documents, split)
        self.ids = {part: [document.name for document in parts[part]] for part in SPLITS}
        self._lengths = {part: [len(document) for document in parts[part]] for part in SPLITS}
        self._examples = [
            {"document": document.name, "text": next(document.chunks(), "")[:EXAMPLE]}
            for document in parts["train"][:N_EXAMPLES]
        ]
        return parts

    def fit(self, train: list[AnyDocument]) -> dict[str, Any]:
        # 1. the tokenizer, fitted on a sample of the text
        facts = (self.tokenizer_kind, self.vocab_size, FIT_CHARACTERS, self._reused)
        chunks = sample_chunks(train, FIT_CHARACTERS)
        path = self.cached(
            "tokenizer", train, facts, lambda: [json.dumps(self.fit_tokenizer(chunks).to_json()).encode()]
        )
        tokenizer = tokenizers.from_json(json.loads(path.read_bytes()))
        # 2. what the network must know of it
        sizes = {"vocab_size": tokenizer.vocab_size, "context_length": self.context_length}
        spec = Spec(sizes=sizes, token_bytes=tokenizer.byte_counts)
        return {"tokenizer": tokenizer.to_json(), "spec": spec.to_json()}

    def encode_split(self, examples: list[AnyDocument]) -> Windows:
        """The windows of the documents of a part. Raises ValueError if they have too few tokens for one."""
        tokenizer, dtype = self.tokenizer, np.dtype(np.uint16 if self.tokenizer.vocab_size <= 2**16 else np.int32)
        path = self.cached("tokens", examples, (tokenizer.to_json(),), lambda: token_blocks(tokenizer, examples, dtype))
        n_tokens = path.stat().st_size // dtype.itemsize
        if n_tokens <= self.context_length:  # an empty file cannot be mapped
            raise ValueError(
                f"{self.part_name(examples)} has {n_tokens} tokens, and one window takes data.context_length + 1 = "
                f"{self.context_length + 1}; bring more text, use a smaller data.context_length or change data.split"
            )
        file = Mapped(path, FORGET_AFTER)
        return Windows(file.tensor(getattr(torch, dtype.name)), self.context_length, file)

    def cached(
        self, kind: str, documents: list[AnyDocument], facts: Sequence[Any], make: Callable[[], Iterable[Any]]
    ) -> Path:
        """The file of the cache for these documents and settings (plain values), with the bytes that `make` returns.

        A subclass that makes something else of the same settings adds a fact of its own.
        """

        def write(file: BinaryIO) -> None:
            if sum(map(len, documents)) > LONG:
                name = self.part_name(documents)
                say(f"first use of {name}: its {kind} will be kept in {TOKENS.path}; minutes, once")
            file.writelines(make())

        # byte pairs depend on the version of the library that merges them
        version = importlib.metadata.version("tokenizers")
        return TOKENS.made(TOKENS.key(kind, [document.digest for document in documents], version, *facts), write)

    def part_name(self, documents: Sequence[AnyDocument]) -> str:
        """The documents of a part, for messages."""
        return f"{self.described}: {listed((document.name for document in documents), 3) or 'no documents'}"

    def encode(self, examples: list[str]) -> dict[str, Tensor]:
        """The last T tokens of each text, (N, ≤ T), shorter ones padded at the end; an empty text is a lone <eos>."""
        rows = [ids[-self.context_length :] or [self.tokenizer.eos_id] for ids in self.tokenizer.encode_many(examples)]
        return {"tokens": padded(rows, self.tokenizer.pad_id).long()}

    def examples(self, source: str) -> Iterator[Examples]:
        encoding = self.new_files(source).encoding

        def columns(records: Records) -> tuple[str, None]:
            return next((name for name in records.columns if name.lower() in USUAL_TEXT), records.columns[0]), None

        yield from stream_texts(source, encoding, list(TEXT_SUFFIXES), Format(usual=frozenset(USUAL_TEXT)), columns)

    def read_new(self, path: str) -> list[FileDocument]:
        """Every document at the path, in one stream."""
        files = self.new_files(path)
        documents = files.documents()
        self.ids["test"], self.described = [document.name for document in documents], path
        return documents

    def new_files(self, path: str) -> TextFiles:
        """How new texts are read."""
        return TextFiles(path, TextEncoding("utf-8", None), list(TEXT_SUFFIXES))

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
        parts, unknown = {}, self.tokenizer.unknown_id
        for part in SPLITS:
            windows: Any = self.datasets[part]
            counts = windows.token_counts(self.tokenizer.vocab_size)
            n_bytes = int(counts @ torch.tensor(self.tokenizer.byte_counts))
            parts[part] = {
                "samples": len(windows),
                "documents": len(self.ids[part]),
                "tokens": len(windows.stream),
                "bytes_per_token": round(n_bytes / len(windows.stream), 3),
                "unknown_tokens": 0 if unknown is None else int(counts[unknown]),
            }
        several = len(self._lengths["train"]) > 1  # the length of one says nothing
        return {
            "parts": parts,
            "histograms": {"characters of a document": histogram(self._lengths)} if several else {},
            "notes": [],
            "examples": self._examples,
        }


class OwnText(LanguageModelingData):
    """The user's own text: a file, a folder or a glob.

    Of a text of many megabytes the shares of val and test are limited to `eval_mb` megabytes each (None: never), and the
    rest trains: more to evaluate on takes long and says little.
    """

    def __init__(
        self,
        *,
        path: str | None,
        encoding: str,
        normalize: str | None,
        suffixes: list[str],
        eval_mb: float | None,
        **settings: Any,
    ):
        self.files = TextFiles(path, TextEncoding(encoding, normalize), list(suffixes))
        super().__init__(source=self.files, **settings)
        self.eval_mb, self.described = eval_mb, str(path)

    def read(self) -> tuple[dict[str, list[Any]], str]:
        documents, split = self.files.documents(), self.split
        most = 1.0 if self.eval_mb is None else self.eval_mb * 1e6 / self.files.n_bytes  # share of val or test
        if max(split.shares[1:]) > most:
            val, test = (min(share, most) for share in split.shares[1:])
            split = replace(split, shares=[1 - val - test, val, test])
        return self._split(documents, split), self.files.fingerprint

    def new_files(self, path: str) -> TextFiles:
        return replace(self.files, path=path)

    def report(self) -> dict[str, Any]:
        report = super().report()
        counts = {"repeated": self.files.n_repeated, "empty": self.files.n_empty}
        dropped = [f"{n} {which} documents dropped" for which, n in counts.items() if n > 0]
        return {**report, "notes": [f"{self.files.n_bytes:,} bytes of text", *dropped, *report["notes"]]}


class Windows:
    """Windows of T tokens of a stream (L,) and the tokens that follow; the id of a window is the position of its start.

    The stream is a ring: a window that starts near the end continues at the beginning, so that an epoch may start
    anywhere and still see (L - 1) // T windows, each target at most once. `file`: what the stream is mapped from.
    """

    def __init__(self, stream: Tensor, context_length: int, file: Mapped | None = None):
        self.stream, self.context_length, self.file, self.device = stream, context_length, file, stream.device

    def __len__(self) -> int:
        return (len(self.stream) - 1) // self.context_length

    def gather(self, ids: Tensor) -> Batch:
        ids = ids.to(self.stream.device)
        span = torch.arange(self.context_length + 1, device=ids.device)
        tokens = self.stream[(ids[:, None] + span) % len(self.stream)].long()  # (B, T + 1)
        if self.file is not None:
            self.file.count(1)
        tokens, ids = tokens.to(self.device), ids.to(self.device)
        return {"inputs": {"tokens": tokens[:, :-1]}, "target": tokens[:, 1:], "index": ids}

    def to(self, device: torch.device) -> Windows:
        """Batches are made on `device`, or sent there if the stream is too large to be copied."""
        self.device = device
        if device.type != "cpu" and len(self.stream) * torch.int32.itemsize <= ON_DEVICE:
            # int32, because not every device can index uint16
            self.stream, self.file = self.stream.to(device, torch.int32), None
        return self

    def token_counts(self, vocab_size: int) -> Tensor:
        """How often each id occurs in the stream, (vocab_size,)."""
        counts = torch.zeros(vocab_size, dtype=torch.int64)
        for chunk in self.stream.split(CHUNK):
            counts += torch.bincount(chunk.long().cpu(), minlength=vocab_size)
            if self.file is not None:
                self.file.forget()
        return counts


def shakespeare(*, path: str | None, download: bool, **settings: Any) -> LanguageModelingData:
    """Tiny Shakespeare; the settings are those of `LanguageModelingData`, without `source`."""
    return LanguageModelingData(source=Shakespeare(path=path, download=download), **settings)


def token_blocks(tokenizer: Tokenizer, documents: Iterable[AnyDocument], dtype: Any) -> Iterator[np.ndarray]:
    """The tokens of each document, followed by <eos>, in blocks."""
    # an empty chunk marks the end of a document
    chunks = (chunk for document in documents for chunk in chain(document.chunks(), [""]))
    while batch := list(islice(chunks, BATCH)):
        rows = tokenizer.encode_many(batch)
        ids = (ids if chunk else [tokenizer.eos_id] for chunk, ids in zip(batch, rows, strict=True))
        yield np.fromiter(chain.from_iterable(ids), dtype)


def sample_chunks(documents: Sequence[AnyDocument], n_characters: int) -> Iterator[str]:
    """Chunks of about `n_characters` in all, evenly spaced over the documents; all chunks if there are fewer."""
    step = -(-sum(map(len, documents)) // n_characters)
    return islice(chain.from_iterable(document.chunks() for document in documents), 0, None, max(1, step))


def shuffled_windows(n: int, context_length: int, seed: int) -> Order:
    """Starts of n windows in a random order, from a random offset below T; both drawn anew each epoch."""

    def order(epoch: int) -> Tensor:
        random = generator(seed, epoch)
        offset = torch.randint(context_length, (1,), generator=random)
        return torch.randperm(n, generator=random).mul_(context_length).add_(offset)

    return order


def contiguous(n: int, n_streams: int) -> Order:
    """0 … n - 1 cut into streams of n // n_streams, the first n % n_streams one longer; step t has item t of each."""
    step, stream = torch.arange(n) // n_streams, torch.arange(n) % n_streams
    first = stream * (n // n_streams) + stream.clamp(max=n % n_streams)
    return lambda epoch: first + step


def split_documents(documents: Sequence[AnyDocument], split: Split) -> dict[str, list[Any]]:
    """Whole documents to train, val and test; where a part would stay empty, each document is split by position.

    Split by position, fold k of a cross-validation is the k-th piece of what stands before the test part.
    """
    # 1. whole documents
    if len(documents) >= (split.folds or 0):
        ids = split.assign(len(documents))
        if all(ids.values()):
            return {part: [documents[i] for i in ids[part]] for part in SPLITS}
    # 2. from which share of its length to which a document belongs to each part
    train, val, test = split.shares
    spans = {"train": [(0.0, train)], "val": [(train, train + val)], "test": [(train + val, 1.0)]}
    if split.folds is not None and split.fold is not None:
        start, end = ((1 - test) * k / split.folds for k in (split.fold, split.fold + 1))
        around = [(a, b) for a, b in ((0.0, start), (end, 1 - test)) if a < b]
        spans = {"train": around, "val": [(start, end)], "test": [(1 - test, 1.0)]}
    return {
        part: [text.span(*(round(share * len(text)) for share in span)) for text in documents for span in spans[part]]
        for part in SPLITS
    }


def padded(rows: list[list[int]], pad_id: int) -> Tensor:
    """Rows of ids -> (N, longest row, at least 1) int32, filled up with `pad_id` at the end."""
    tokens = torch.full((len(rows), max([1, *map(len, rows)])), pad_id, dtype=torch.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int32)
    return tokens
