"""Text to token ids and back: characters, bytes, words or byte pairs behind one small interface.

Ids start with the special tokens, <pad> <eos> and, where a text can hold what the vocabulary lacks, <unk>; the pieces
of the vocabulary follow. Special tokens have no text: a literal "<eos>" typed by a user is five ordinary characters.

Every id stands for fixed bytes, so decoding is concatenation, and a stream of ids can be decoded as it comes with an
incremental UTF-8 decoder over `token_bytes`. Byte and byte-pair tokenizers give back any Unicode text exactly; lone
surrogates, which no UTF-8 text can hold, become "?" everywhere.

Sources: Sennrich et al. 2016, byte pairs (arXiv:1508.07909); Radford et al. 2019, byte pairs over bytes (GPT-2).
"""

from __future__ import annotations

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from itertools import chain
from typing import Any

from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HuggingFace

KINDS = ("char", "byte", "word", "bpe")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()  # how <unk> is shown
GROUP = 256  # texts encoded at a time: bounds the memory that the encodings of a batch take


class Tokenizer(ABC):
    """Ids 0 … vocab_size - 1; `token_bytes[id]` are the bytes an id stands for (none for <pad> and <eos>)."""

    pad_id, eos_id = 0, 1
    unknown_id: int | None

    def __init__(self, values: dict[str, Any], pieces: list[bytes], *, unknown: bool):
        self.kind, self.values = values["kind"], values
        self.unknown_id = 2 if unknown else None
        self.token_bytes = [b"", b""] + [REPLACEMENT] * unknown + pieces
        self.vocab_size = len(self.token_bytes)
        # bytes of text per id, the denominator of bits per byte. What an <unk> replaces has at least one byte, so the
        # denominator is never too large. An <unk> is still cheap to predict: compare tokenizers only where it is rare
        self.byte_counts = tuple(1 if i == self.unknown_id else len(piece) for i, piece in enumerate(self.token_bytes))
        # no text is made of these, none is written with them; <eos> ends a text
        self.textless_ids = (self.pad_id, self.unknown_id) if self.unknown_id is not None else (self.pad_id,)

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` makes the same tokenizer."""
        return self.values

    def encode(self, text: str) -> list[int]:
        return self.encode_many([text])[0]

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text; for byte pairs much faster than one text at a time, on all cores."""
        rows: list[list[int]] = []
        for start in range(0, len(texts), GROUP):
            # a lone surrogate, at which the library would fail, becomes "?"
            clean = [text.encode("utf-8", errors="replace").decode("utf-8") for text in texts[start : start + GROUP]]
            rows += self._encode(clean)
        return rows

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(self.token_bytes[i] for i in ids).decode("utf-8", errors="replace")

    @abstractmethod
    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Texts without lone surrogates to ids."""


class PieceTokenizer(Tokenizer):
    """A text split into pieces, each looked up in a table: `char`, `byte` and `word`."""

    def __init__(self, kind: str, pieces: list[Any]):
        encoded = [piece.encode() if isinstance(piece, str) else bytes([piece]) for piece in pieces]
        super().__init__({"kind": kind, "pieces": pieces}, encoded, unknown=kind != "byte")
        self.split = SPLITTERS[kind]
        self.ids = {piece: i for i, piece in enumerate(pieces, self.vocab_size - len(pieces))}

    def _encode(self, texts: list[str]) -> list[list[int]]:
        ids, unknown = self.ids, self.unknown_id or 0
        return [[ids.get(piece, unknown) for piece in self.split(text)] for text in texts]


class BytePairTokenizer(Tokenizer):
    """Byte-level byte pairs: the bytes of UTF-8 and then one piece per merge, in the order in which they were learned.

    The merges alone define it. They are written in the characters by which Hugging Face's `tokenizers` shows bytes.
    That library never learns of the special tokens, so no text can be mistaken for one.
    """

    def __init__(self, merges: list[list[str]]):
        alphabet = byte_alphabet()
        pieces = list(dict.fromkeys(chain(alphabet, ("".join(pair) for pair in merges))))
        encoded = [bytes(alphabet[character] for character in piece) for piece in pieces]
        super().__init__({"kind": "bpe", "merges": merges}, encoded, unknown=False)
        vocabulary = {piece: i for i, piece in enumerate(pieces, self.vocab_size - len(pieces))}
        self.model = byte_level(models.BPE(vocab=vocabulary, merges=[(left, right) for left, right in merges]))

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.model.encode_batch_fast(texts, add_special_tokens=False)]


def fit(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of one of the four `KINDS` with at most `vocab_size` ids, special tokens included.

    `char` and `word` keep the most frequent pieces, `byte` needs no fitting, `bpe` merges until the size is reached or
    nothing is left to merge. The same texts give the same tokenizer. Raises ValueError if the size is too small.
    """
    # 1. the settings
    if kind not in KINDS:
        raise ValueError(f"data.tokenizer must be one of {', '.join(KINDS)}, not {kind!r}")
    least = {"char": 4, "word": 4, "byte": 258, "bpe": 2 + len(byte_alphabet())}[kind]
    if vocab_size < least:
        raise ValueError(
            f"data.vocab_size={vocab_size} is too small: data.tokenizer={kind} needs at least {least} ids; "
            f"use data.vocab_size={least} or more"
        )
    if kind == "byte":
        return PieceTokenizer(kind, list(range(256)))
    # 2. byte pairs are learned by the library, from texts without lone surrogates
    texts = (text.encode("utf-8", errors="replace").decode("utf-8") for text in texts)
    if kind == "bpe":
        model, alphabet = byte_level(models.BPE()), list(byte_alphabet())
        trainer = trainers.BpeTrainer(vocab_size=vocab_size - 2, initial_alphabet=alphabet, show_progress=False)  # type: ignore[call-arg]
        model.train_from_iterator(texts, trainer)
        return BytePairTokenizer(json.loads(model.to_str())["model"]["merges"])  # the library's only access to them
    # 3. of characters and words the most frequent ones
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(SPLITTERS[kind](text))
    ordered = sorted(counts, key=lambda piece: (-counts[piece], piece))
    return PieceTokenizer(kind, ordered[: vocab_size - 3])


def from_json(values: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `to_json` wrote."""
    if values["kind"] == "bpe":
        return BytePairTokenizer(values["merges"])
    return PieceTokenizer(values["kind"], values["pieces"])


@cache
def word_pattern() -> re.Pattern[str]:
    """A word with the space before it, one ideograph or kana, one symbol, or white space up to the space before a word.

    (The scripts of ideographs and kana have no spaces.) Each has the marks that combine with it, as vowels do in Hindi,
    points in Arabic and Hebrew, accents in decomposed text, and what is joined to an emoji. Every character is in exactly
    one piece.
    """
    # 1. combining marks and joiners as ranges of a character class: Python's \w has none of them
    joiners, ranges = (0x200C, 0x200D), []
    for point in range(0x300, 0xE01F0):  # no marks are before or behind
        if point in joiners or unicodedata.category(chr(point))[0] == "M":
            if ranges and ranges[-1][1] == point - 1:
                ranges[-1][1] = point
            else:
                ranges.append([point, point])
    mark = "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
    # 2. the four kinds of pieces
    unspaced = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    letter = rf"[^\W{unspaced}]"
    after_symbol = rf"[{mark}\U0001f3fb-\U0001f3ff]|(?<=\u200d)[^\w\s]"  # marks, shades of skin, what a joiner joins
    return re.compile(
        rf"[{unspaced}][{mark}]*| ?{letter}(?:{letter}|[{mark}])*|[^\w\s](?:{after_symbol})*|\s+(?!\S)|\s+"
    )


SPLITTERS: dict[str, Callable[[str], Iterable[Any]]] = {
    "char": iter,
    "byte": str.encode,
    "word": lambda text: word_pattern().findall(text),  # made at first use: it takes 0.1 s
}


def byte_level(model: models.BPE) -> HuggingFace:
    """Byte pairs within words: GPT-2's expression, with combining marks in the words. ASCII is split as there."""
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}[\p{L}\p{M}\u200c\u200d]*| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    tokenizer = HuggingFace(model)
    split = pre_tokenizers.Split(Regex(words), behavior="isolated")
    to_alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_alphabet])  # type: ignore[assignment]
    return tokenizer


@cache
def byte_alphabet() -> dict[str, int]:
    """The character by which `tokenizers` shows each byte that occurs in UTF-8 (243 of the 256), in the order of bytes.

    Found by asking: texts whose encodings hold all these bytes are shown, and their bytes read beside it.
    """
    points = [*range(0x800), *(point for point in range(0x800, 0x110000, 0x800) if not 0xD800 <= point < 0xE000)]
    text = "".join(map(chr, points))
    ((shown, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return dict(sorted(zip(shown, text.encode(), strict=True), key=lambda pair: pair[1]))
