"""Where text comes from: documents for language modelling, labelled texts for classification.

A source is a few plain values; it reads when asked, not before. What it gives is in a fixed order and depends on
nothing but the files it reads, so that the fingerprint of the data is the same wherever the files are.
"""

from __future__ import annotations

import hashlib
import sysconfig
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

from quartet.data.cache import cache_directory, write_cached

CHUNK = 2**16  # characters of a text encoded at a time


@dataclass(frozen=True)
class Document:
    """A text that is split as a whole: a file. `name` is unique within its source; the length is in characters."""

    name: str
    text: str

    def __len__(self) -> int:
        return len(self.text)

    @property
    def digest(self) -> str:
        """SHA-256 of the text: what is made of it is cached under this."""
        return fingerprint([self.text])

    def span(self, first: int, last: int) -> Document:
        """The characters `first` to `last`; the name says which."""
        return Document(f"{self.name}[{first}:{last}]", self.text[first:last])

    def chunks(self) -> Iterator[str]:
        """The text in parts that can be encoded one by one."""
        return split_text(self.text, CHUNK)


@dataclass(frozen=True)
class LabelledText:
    """A text with its class; texts of one `group` (the file they come from) stay in one part of the split.

    `part` is train, val or test where the data say so; `where` is for people: a file and a line. `row` is its place among
    the records that were read.
    """

    text: str
    label: str
    group: str | None = None
    part: str | None = None
    where: str = ""
    row: int = -1


class DocumentSource(Protocol):
    def documents(self) -> list[Any]: ...  # of Document


class LabelledSource(Protocol):
    def rows(self) -> list[LabelledText]: ...


def fingerprint(values: Iterable[str]) -> str:
    """SHA-256 over the texts and their lengths, so that moving characters from one text to the next changes it."""
    digest = hashlib.sha256()
    for value in values:
        data = value.encode("utf-8", errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


@dataclass(frozen=True)
class StandardLibrary:
    """The Python files of the standard library that runs this program, sorted by name, the same content once.

    Left out: tests, installed packages, the two build reports that differ from machine to machine, and `pydoc_data`, a
    generated dump of the manual: 6 % of all characters in one file, English and not Python.
    """

    EXCLUDED = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"})

    def documents(self) -> list[Document]:
        root = Path(sysconfig.get_path("stdlib"))
        documents: dict[str, Document] = {}
        for name in sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py")):
            *folders, file = name.split("/")
            # build reports differ between machines
            differs = file.startswith("_sysconfigdata") or any(folder.startswith("config-") for folder in folders)
            if not differs and self.EXCLUDED.isdisjoint(folders):
                text = read_text(root / name)
                documents.setdefault(text, Document(name, text))
        if not documents:
            raise FileNotFoundError(
                f"no Python files below {root}: this Python hides its library; choose another data=…"
            )
        return list(documents.values())


@dataclass(frozen=True)
class StandardLibraryTopics:
    """Snippets of the standard library, each `lines` long, labelled by the package (top-level folder) they come from.

    The snippets of a file follow each other; those with less than half of their lines filled are dropped. Raises
    ValueError where this Python lacks one of the packages.
    """

    packages: list[str]
    lines: int

    def rows(self) -> list[LabelledText]:
        rows = []
        for document in StandardLibrary().documents():
            # 1. the files of these packages
            package = document.name.split("/")[0]
            if package not in self.packages:
                continue
            # 2. successive lines, unless more than half of them are empty
            lines = document.text.splitlines()
            for start in range(0, len(lines), self.lines):
                snippet = lines[start : start + self.lines]
                if 2 * sum(bool(line.strip()) for line in snippet) >= self.lines:
                    rows.append(LabelledText("\n".join(snippet), label=package, group=document.name))
        found = {row.label for row in rows}
        if not found.issuperset(self.packages):
            missing = ", ".join(package for package in self.packages if package not in found)
            present = ",".join(package for package in self.packages if package in found)
            raise ValueError(
                f"this Python's standard library lacks {missing} of data.source.packages (some Linux distributions "
                f"package them apart); use data.source.packages=[{present}]"
            )
        return rows


@dataclass(frozen=True)
class Shakespeare:
    """Tiny Shakespeare (Karpathy 2015, char-rnn; public domain text; 1.1 MB, one document).

    Read from `path` where it is given, else from the cache, else, only with `download`, from the network into the cache
    with its SHA-256 checked. Raises FileNotFoundError that says what to type.
    """

    path: str | None
    download: bool

    URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
    SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

    def documents(self) -> list[Document]:
        # 1. the user's copy, else the one in the cache
        if self.path is not None:
            path = Path(self.path).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"data.path={self.path} is not a file; give your copy of input.txt")
        else:
            path = cache_directory() / "tiny_shakespeare.txt"
            if not path.is_file() and not self.download:
                raise FileNotFoundError(
                    f"tiny Shakespeare is not at {path}; add data.download=true to fetch it (1.1 MB), "
                    "or data.path=<your copy of input.txt>"
                )
            # 2. else the one of the network, if the user allows it
            if not path.is_file():
                download(self.URL, self.SHA256, path)
        return [Document("shakespeare", read_text(path))]


def read_text(path: Path) -> str:
    """UTF-8 with or without byte order mark, line ends as \\n; what is not UTF-8 becomes the replacement character."""
    return path.read_text(encoding="utf-8-sig", errors="replace")


def split_text(text: str, size: int) -> Iterator[str]:
    """Chunks of at most `size` characters, split where no tokenizer joins anything; nothing for an empty text."""
    start = 0
    while len(text) - start > size:
        end = find_split_point(text, start, start + size)
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def find_split_point(text: str, start: int, stop: int) -> int:
    """The last place up to `stop` (< length) behind a line end, else before a space, with no other white space beside it.

    A text without such a place, as of 64,000 ideographs without a line end, is split at `stop`.
    """
    for character, n_before in (("\n", 1), (" ", 0)):
        place = stop
        while (place := text.rfind(character, start + 1, place)) > 0:
            if not text[place - 1].isspace() and not text[place + 1].isspace():
                return place + n_before
    return stop


def download(url: str, sha256: str, target: Path) -> None:
    """Fetch a small file of known content; it appears atomically.

    Raises ConnectionError where the network fails, ValueError where the content differs.
    """
    try:
        with urllib.request.urlopen(url, timeout=60) as response:  # seconds
            data = response.read()
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"{url} cannot be fetched ({reason}); try again, or give a copy of your own: data.path=<file>"
        ) from None
    actual = hashlib.sha256(data).hexdigest()
    if actual != sha256:
        raise ValueError(f"{url} has SHA-256 {actual}, not {sha256}: it was changed or damaged; try again")
    write_cached(target, lambda file: file.write(data))
