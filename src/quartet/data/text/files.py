"""The user's text files: found, decoded and cleaned, block by block.

A file is never held as a whole: it is decoded in blocks of about 1 MB, each cleaned by itself. The length of every text
takes a pass over all of them and is kept in the cache.
"""

from __future__ import annotations

import codecs
import glob
import hashlib
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from quartet.data import encodings
from quartet.data.cache import Cache
from quartet.data.opening import expand_glob, list_files, open_file
from quartet.data.text.sources import CHUNK, Document, find_split_point, split_text
from quartet.say import say
from quartet.typed import user_path

BLOCK = 2**20  # bytes decoded at a time
TOKENS = Cache("text", version=2, room="about half the size of the text")  # version: of reading, cleaning, encoding
AUTO = "auto"  # the encoding is detected for each file
FORMS = (None, "NFC", "NFKC", "NFD", "NFKD")  # Unicode normalisations
LEGACY = "latin-1 or cp1252 (Western), cp1251 (Cyrillic), gb18030 (Chinese), shift_jis (Japanese), utf-16"

_LINE_END = re.compile("[\r\x0b\x0c\x85\u2028\u2029]")  # \r\n is replaced before: here it would double the time
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")  # all but \n and \t, and byte order marks inside a text
_announced: set[str] = set()  # files whose detected encoding was printed: each is read several times


# decoding and cleaning


@dataclass(frozen=True)
class TextEncoding:
    """How bytes become text: strictly decoded, and normalised.

    The encoding "auto" is detected for each file: UTF-8, else the most likely one, which is printed. Every line end becomes
    \\n; other control characters but \\t are removed. ValueError for an unknown setting.
    """

    encoding: str
    normalize: str | None

    def __post_init__(self):
        try:
            is_known = self.encoding == AUTO or "a".encode(self.encoding).decode(self.encoding) == "a"
        except (LookupError, UnicodeError):
            is_known = False
        if not is_known:
            raise ValueError(f"data.encoding={self.encoding} is not a text encoding; examples: utf-8, {LEGACY}")
        if self.normalize not in FORMS:
            raise ValueError(f"data.normalize must be null, NFC, NFKC, NFD or NFKD, not {self.normalize!r}")

    def blocks(self, path: str) -> Iterator[str]:
        """The clean text of a file in blocks of about 1 MB, split where no tokenizer joins anything."""
        rest = ""
        for block in self.decode(path):
            rest += block
            if len(rest) > BLOCK // 8:
                end = find_split_point(rest, 0, len(rest) - 1)
                yield self.clean(rest[:end])
                rest = rest[end:]
        yield self.clean(rest)

    def clean(self, text: str) -> str:
        text = _CONTROL.sub("", _LINE_END.sub("\n", text.replace("\r\n", "\n")))
        return unicodedata.normalize(self.normalize, text) if self.normalize else text  # type: ignore[arg-type]

    def decode(self, path: str) -> Iterator[str]:
        """Blocks of text with \\n for \\r\\n and \\r. Raises ValueError with the file, the byte and a remedy."""
        encoding = detect_encoding(path) if self.encoding == AUTO else self.encoding
        is_utf8 = codecs.lookup(encoding).name == "utf-8"
        with open_file(path, "a text file") as file:
            # 1. refuse what is not text
            head = file.read(BLOCK)
            if is_utf8 and head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise ValueError(f"{path} begins like UTF-16; read it so: data.encoding=utf-16")
            if b"\0" in head and "\0".encode(encoding) == b"\0":
                raise ValueError(
                    f"{path} is not text: a NUL byte at position {head.index(0)}; name a text file, or its data.encoding"
                )
            # 2. decode; Python translates the line ends
            file.seek(0)
            text = io.TextIOWrapper(file, "utf-8-sig" if is_utf8 else encoding)
            try:
                while block := text.read(BLOCK):
                    yield block
            except UnicodeDecodeError:
                raise undecodable(path, encoding, is_utf8=is_utf8) from None


def undecodable(path: str, encoding: str, *, is_utf8: bool) -> ValueError:
    """Names the first byte of a file that is not in this encoding, and an encoding that reads the file."""
    content, place = Path(user_path(path)).read_bytes(), 0
    # an error in a block does not know where in the file it is
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        place = error.start
    likely = encodings.likely(content) if is_utf8 else None
    remedy = f"say how it is encoded with data.encoding=…: {'' if is_utf8 else 'utf-8, '}{LEGACY}"
    if likely is not None:
        remedy = f"it decodes cleanly as {likely}: data.encoding={likely}, or data.encoding=auto"
    return ValueError(f"{path} is not {encoding}: byte 0x{content[place]:02x} at position {place}; {remedy}")


def detect_encoding(path: str) -> str:
    """UTF-8, or the likely encoding of a file that is not, which is printed once."""
    with open_file(path, "a text file") as file:
        text = io.TextIOWrapper(file, "utf-8")
        try:
            while text.read(BLOCK):
                pass
        except UnicodeDecodeError:
            content = Path(user_path(path)).read_bytes()
            likely = None if b"\0" in content else encodings.likely(content)
            if likely is not None and path not in _announced:
                _announced.add(path)
                say(f"note: {path} is not utf-8 and read as {likely}; data.encoding=… names another encoding")
            return likely or "utf-8"  # decoding it says what is wrong
    return "utf-8"


# finding files


def find_texts(path: str | None, suffixes: list[str]) -> dict[str, str]:
    """The files at a path (a file, a folder, a glob) as the user would type them, by their name below it; sorted.

    Of a folder those count that end in one of the suffixes, at any depth; hidden files and folders do not.
    """
    if path is None:
        raise ValueError("data.path is missing: where is your text? data.path=<file, folder or glob>")
    place = user_path(path)
    # 1. a folder
    if os.path.isdir(place):
        names = [name for name in list_files(place, path) if name.lower().endswith(tuple(suffixes))]
        if not names:
            raise FileNotFoundError(
                f"no text files below {path} (names that end in {' '.join(suffixes)}); name others with a glob: "
                f"data.path='{os.path.join(path, '**/*.py')}'"
            )
        return {name: os.path.join(path, name) for name in names}
    # 2. a glob, unless a file has that very name
    if glob.has_magic(path) and not os.path.lexists(place):
        matches = expand_glob(os.path.expanduser(path))
        if not matches:
            raise FileNotFoundError(f"data.path={path} matches no file; ** stands for folders of any depth")
        return {match: match for match in matches}
    # 3. a file, which can be opened
    with open_file(path, "a text file"):
        return {os.path.basename(place): path}


# documents


@dataclass(frozen=True)
class FileDocument:
    """The characters `first` to `last` of a clean file, read when asked, a chunk at a time.

    What is made of them is cached under `digest`: the SHA-256 of the whole clean text, and which characters of it.
    """

    name: str
    path: str
    encoding: TextEncoding
    digest: str
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def span(self, first: int, last: int) -> FileDocument:
        """The characters `first` to `last` of this document; the name says which."""
        which, start, end = f"[{first}:{last}]", self.first + first, min(self.first + last, self.last)
        return replace(self, name=self.name + which, digest=self.digest + which, first=start, last=end)

    def chunks(self) -> Iterator[str]:
        """The text in parts that can be encoded one by one."""
        start = 0
        for block in self.encoding.blocks(self.path):
            yield from split_text(block[max(self.first - start, 0) : max(self.last - start, 0)], CHUNK)
            start += len(block)
            if start >= self.last:
                return


AnyDocument = Document | FileDocument


@dataclass
class TextFiles:
    """The user's texts, which are read whenever they are needed and never held as a whole.

    `documents` sets the other fields; the fingerprint is the SHA-256 of all bytes and of how they are read.
    """

    path: str | None
    encoding: TextEncoding
    suffixes: list[str]
    fingerprint: str = field(init=False, default="")
    n_bytes: int = field(init=False, default=0)
    n_empty: int = field(init=False, default=0)
    n_repeated: int = field(init=False, default=0)

    def documents(self) -> list[FileDocument]:
        """Each text once, without empty ones. Raises ValueError or OSError for a path without text, in one line."""
        files = find_texts(self.path, self.suffixes)
        # 1. the fingerprint. The encoding was called Reading when the first runs were made: another text here would refuse
        # them because "the data have changed"
        how = f"Reading(encoding={self.encoding.encoding!r}, normalize={self.encoding.normalize!r})"
        total, self.n_bytes = hashlib.sha256(how.encode()), 0
        for path in files.values():
            with open_file(path, "a text file") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())  # type: ignore[arg-type]
                self.n_bytes += file.tell()
        self.fingerprint = total.hexdigest()

        # 2. characters and SHA-256 of each clean text
        def measure(file: BinaryIO) -> None:
            measures = []
            for path in files.values():
                n_characters, digest = 0, hashlib.sha256()
                for block in self.encoding.blocks(path):
                    n_characters += len(block)
                    digest.update(block.encode("utf-8", errors="surrogatepass"))
                measures.append((n_characters, digest.hexdigest()))
            file.write(json.dumps(measures).encode())

        measures = json.loads(TOKENS.made(TOKENS.key("lengths", self.fingerprint), measure).read_bytes())
        # 3. every text that is not empty, once
        documents: dict[str, FileDocument] = {}
        for (name, path), (n_characters, digest) in zip(files.items(), measures, strict=True):
            if n_characters:
                documents.setdefault(digest, FileDocument(name, path, self.encoding, digest, 0, n_characters))
        if not documents:
            raise ValueError(f"{self.path} is empty: there is no text in it; name another data.path")
        self.n_empty = sum(n_characters == 0 for n_characters, _ in measures)
        self.n_repeated = len(files) - self.n_empty - len(documents)
        return list(documents.values())
