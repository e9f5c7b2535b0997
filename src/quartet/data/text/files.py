"""The user's text files: found, decoded, cleaned; where they are large read in pieces, and what is made of them cached.

A file is never held as a whole unless it is small: it is decoded in blocks of about 1 MB, each cleaned for itself. What
takes minutes to make (the length of every document, the tokenizer, the tokens) is kept in the cache.
"""

from __future__ import annotations

import codecs
import difflib
import fnmatch
import glob
import hashlib
import io
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from quartet.data import encodings
from quartet.data.base import is_left_behind, user_path
from quartet.data.cache import Cache
from quartet.data.text.sources import PIECE, AnyDocument, Document, border, cut
from quartet.say import say

BLOCK = 2**20  # bytes decoded at a time
TOKENS = Cache("text", version=2, room="about half the size of the text")  # version: of reading, cleaning, encoding
AUTO = "auto"  # encoding: found for each file
FORMS = (None, "NFC", "NFKC", "NFD", "NFKD")  # Unicode normalisations
LEGACY = "latin-1 or cp1252 (Western), cp1251 (Cyrillic), gb18030 (Chinese), shift_jis (Japanese), utf-16"

_LINE_END = re.compile("[\x0b\x0c\x85\u2028\u2029]")  # besides \r\n and \r
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")  # all but \n and \t, and byte order marks inside a text


@dataclass(frozen=True)
class Reading:
    """How bytes become text: the encoding, never with a replacement, and the Unicode normalisation.

    The encoding "auto" is that of each file: UTF-8, else the one that `encodings` finds, which is reported. Every line end
    becomes \\n; other control characters but \\t are removed. ValueError where a setting is unknown.
    """

    encoding: str
    normalize: str | None

    def __post_init__(self):
        if self.encoding != AUTO and not _is_text_encoding(self.encoding):
            raise ValueError(f"data.encoding={self.encoding} is not a text encoding; examples: utf-8, {LEGACY}")
        if self.normalize not in FORMS:
            raise ValueError(f"data.normalize must be null, NFC, NFKC, NFD or NFKD, not {self.normalize!r}")

    def blocks(self, path: str) -> Iterator[str]:
        """The clean text of a file in blocks of about 1 MB, cut where no tokenizer joins anything."""
        rest = ""
        for block in self.decoded(path):
            rest += block
            if len(rest) > BLOCK // 8:
                end = border(rest, 0, len(rest) - 1)
                yield self.clean(rest[:end])
                rest = rest[end:]
        yield self.clean(rest)

    def read(self, path: str) -> str:
        return "".join(self.blocks(path))

    def clean(self, text: str) -> str:
        text = _CONTROL.sub("", _LINE_END.sub("\n", text))
        return unicodedata.normalize(self.normalize, text) if self.normalize else text  # type: ignore[arg-type]

    def decoded(self, path: str) -> Iterator[str]:
        """Blocks of text with \\n for \\r\\n and \\r; errors name the file and the byte."""
        encoding = self._found(path) if self.encoding == AUTO else self.encoding
        with opened(path) as file:
            position = _start(file, path, encoding)
            decoder = codecs.getincrementaldecoder(encoding)()
            lines = io.IncrementalNewlineDecoder(decoder, translate=True)
            while True:
                pending, block = len(decoder.getstate()[0]), file.read(BLOCK)
                try:
                    yield lines.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise ValueError(_wrong(path, encoding, position - pending, error)) from None
                if not block:
                    return
                position += len(block)

    def _found(self, path: str) -> str:
        """UTF-8, or what a file that is not is likely in; said once for each file."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        with opened(path) as file:
            while block := file.read(BLOCK):
                try:
                    decoder.decode(block)
                except UnicodeDecodeError:
                    found = None if b"\0" in block else _likely(path)
                    if found is None:
                        break
                    if path not in _TOLD:
                        _TOLD.add(path)
                        say(f"note: {path} is not utf-8 and read as {found}; data.encoding=… names another encoding")
                    return found
        return "utf-8"


_TOLD: set[str] = set()  # files whose encoding was said: each is read several times


def _start(file: BinaryIO, path: str, encoding: str) -> int:
    """Skip the byte order mark of UTF-8; refuse what is not text."""
    head = file.read(BLOCK)
    utf8 = codecs.lookup(encoding).name == "utf-8"
    if utf8 and head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path} begins like UTF-16; read it so: data.encoding=utf-16")
    if b"\0" in head and "\0".encode(encoding) == b"\0":
        place = head.index(b"\0")
        raise ValueError(f"{path} is not text: a NUL byte at position {place}; name a text file, or its data.encoding")
    start = 3 if utf8 and head.startswith(codecs.BOM_UTF8) else 0
    file.seek(start)
    return start


def _wrong(path: str, encoding: str, offset: int, error: UnicodeDecodeError) -> str:
    byte, utf8 = error.object[error.start], codecs.lookup(encoding).name == "utf-8"
    found, other = _likely(path) if utf8 else None, LEGACY if utf8 else f"utf-8, {LEGACY}"
    remedy = (
        f"it decodes cleanly as {found}: data.encoding={found}, or data.encoding=auto for the encoding of each file"
        if found
        else f"say how it is encoded with data.encoding=…: {other}"
    )
    return f"{path} is not {encoding}: byte 0x{byte:02x} at position {offset + error.start}; {remedy}"


def _likely(path: str) -> str | None:
    with opened(path) as file:
        return encodings.likely(file.read())


def _is_text_encoding(name: str) -> bool:
    try:
        return "a".encode(name).decode(name) == "a"
    except (LookupError, UnicodeError):
        return False


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A user's file; what is wrong with it is reported in one line."""
    try:
        mode = os.stat(user_path(path)).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe or a device may never end
            raise ValueError(f"{path} is not a regular file; name a text file, or remove it")
        file = open(user_path(path), "rb")  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist{_near(path)}") from None
    except PermissionError:
        raise PermissionError(f"no permission to read {path}; ask its owner, or allow it: chmod +r '{path}'") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder; name a file") from None
    with file:
        yield file


def _near(path: str) -> str:
    """A file beside it with a name like it, or where it was looked for."""
    folder, name = os.path.split(user_path(path))
    with suppress(OSError):
        found = difflib.get_close_matches(name, os.listdir(folder), n=1)
        if found:
            return f", did you mean {os.path.join(os.path.dirname(path), found[0])}?"
    return "; data.path is relative to where you are"


# which files


def find_texts(path: str | None, suffixes: list[str]) -> dict[str, str]:
    """The files at a path (a file, a folder, a glob) as the user would type them, by their name below it; sorted.

    Of a folder those count that end in one of the suffixes, at any depth; hidden files and folders do not.
    """
    if path is None:
        raise ValueError("data.path is missing: where is your text? data.path=<file, folder or glob>")
    place = user_path(path)
    if os.path.isdir(place):
        found = {
            name: os.path.join(path, name) for name in _below(place, path) if name.lower().endswith(tuple(suffixes))
        }
        if not found:
            raise FileNotFoundError(
                f"no text files below {path} (names that end in {' '.join(suffixes)}); name others with a glob: "
                f"data.path='{os.path.join(path, '**/*.py')}'"
            )
        return found
    if glob.has_magic(path) and not os.path.lexists(place):
        matches = _matches(os.path.expanduser(path))
        if not matches:
            raise FileNotFoundError(f"data.path={path} matches no file; ** stands for folders of any depth")
        return {match: match for match in matches}
    with opened(path):
        return {os.path.basename(place): path}


def _below(folder: str, shown: str) -> list[str]:
    """Names of all files below a folder, with forward slashes."""

    def refuse(error: OSError) -> None:
        raise PermissionError(f"no permission to read {error.filename} below {shown}; ask its owner") from None

    names, seen = [], {os.path.realpath(folder)}
    for here, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        names += [Path(here, name).relative_to(folder).as_posix() for name in files if not is_left_behind(name)]
        visible = sorted(name for name in folders if not is_left_behind(name))
        real = {name: os.path.realpath(os.path.join(here, name)) for name in visible}
        folders[:] = [name for name in visible if real[name] not in seen and not seen.add(real[name])]
    return sorted(names)


def _matches(pattern: str) -> list[str]:
    """The files that a glob names. ** follows links into each folder once, where `glob` would go round in circles."""
    if "**" not in pattern:
        return sorted(path for path in glob.glob(pattern) if os.path.isfile(path))
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root, rest = str(Path(*parts[:first])), parts[first:]
    wanted = re.compile("".join(map(_segment, rest)))
    names = [name for name in _below(root, root) if wanted.fullmatch(f"{name}/")]
    return [os.path.join(root, name) if first else name for name in names]


def _segment(part: str) -> str:
    """A part of a glob, between two slashes, as a regular expression."""
    if part == "**":
        return "(?:[^/]+/)*"
    pattern = fnmatch.translate(part).removeprefix("(?s:").removesuffix(r")\Z")
    return re.sub(r"(?<!\\)\.(\*?)", r"[^/]\1", pattern) + "/"


# the texts


@dataclass(frozen=True)
class FileDocument:
    """The characters `first` to `last` of a clean file, read when asked, a piece at a time."""

    name: str
    path: str
    reading: Reading
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def span(self, first: int, last: int) -> FileDocument:
        return replace(
            self, name=f"{self.name}[{first}:{last}]", first=self.first + first, last=min(self.first + last, self.last)
        )

    def pieces(self) -> Iterator[str]:
        start = 0
        for block in self.reading.blocks(self.path):
            yield from cut(block[max(self.first - start, 0) : max(self.last - start, 0)], PIECE)
            start += len(block)
            if start >= self.last:
                return


@dataclass(frozen=True)
class Corpus:
    """The documents of a source, without empty and repeated ones; `fingerprint` is the SHA-256 of bytes and reading."""

    documents: list[AnyDocument]
    fingerprint: str
    n_bytes: int
    in_memory: bool
    n_repeated: int
    n_empty: int


@dataclass(frozen=True)
class TextFiles:
    """The user's texts: held in memory up to `in_memory_mb` megabytes, else read from disk whenever they are needed."""

    path: str | None
    reading: Reading
    suffixes: list[str]
    in_memory_mb: float

    def load(self) -> Corpus:
        files = find_texts(self.path, self.suffixes)
        n_bytes, fingerprint = _content(files.values(), self.reading)
        in_memory = n_bytes <= self.in_memory_mb * 1e6
        if in_memory:
            documents: list[Any] = [Document(name, self.reading.read(path)) for name, path in files.items()]
            digests = [_digest([document.text]) for document in documents]
        else:
            measures = self._measures(list(files.values()), fingerprint)
            documents = [
                FileDocument(*file, self.reading, 0, n) for file, (n, _) in zip(files.items(), measures, strict=True)
            ]
            digests = [digest for _, digest in measures]
        first: dict[str, AnyDocument] = {}
        for digest, document in zip(digests, documents, strict=True):
            if len(document):
                first.setdefault(digest, document)
        if not first:
            raise ValueError(f"{self.path} is empty: there is no text in it; name another data.path")
        n_empty = sum(not len(document) for document in documents)
        n_repeated = len(documents) - n_empty - len(first)
        return Corpus(list(first.values()), fingerprint, n_bytes, in_memory, n_repeated, n_empty)

    def documents(self) -> list[Any]:
        return self.load().documents

    def _measures(self, paths: list[str], fingerprint: str) -> list[tuple[int, str]]:
        """Characters and SHA-256 of each clean text."""

        def measure(file: BinaryIO) -> None:
            lengths = [_measure(self.reading.blocks(path)) for path in paths]
            file.write(json.dumps(lengths).encode())

        return json.loads(TOKENS.made(TOKENS.key("lengths", fingerprint), measure).read_bytes())

    def __str__(self) -> str:
        return str(self.path)


def _content(paths: Iterable[str], reading: Reading) -> tuple[int, str]:
    """Bytes of all files, and the SHA-256 over their contents and how they are read."""
    n_bytes, total = 0, hashlib.sha256(repr(reading).encode())
    for path in paths:
        with opened(path) as file:
            total.update(hashlib.file_digest(file, "sha256").digest())  # type: ignore[arg-type]
            n_bytes += file.tell()
    return n_bytes, total.hexdigest()


def _measure(blocks: Iterable[str]) -> tuple[int, str]:
    n, digest = 0, hashlib.sha256()
    for block in blocks:
        n += len(block)
        digest.update(block.encode("utf-8", errors="surrogatepass"))
    return n, digest.hexdigest()


def _digest(texts: Iterable[str]) -> str:
    return _measure(texts)[1]
