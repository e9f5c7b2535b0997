"""Folders of pictures: which files there are, which cannot be read, which are copies of each other.

Files are taken in the order of their relative names, and each is looked at: its header and the hash of its content. What
a person should know of raises an error with one line for each kind of problem.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from quartet.data.base import is_left_behind, user_path
from quartet.data.cache import FULL
from quartet.data.images import Examples, Span, class_counts, is_deep, opened, to_uint8
from quartet.data.splits import SPLITS, part_named
from quartet.say import say

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SHOWN = 5  # names in a message
RHYTHM = 5.0  # seconds between lines of progress
CHUNK = 64  # pictures that a thread takes at a time


class PictureFile(NamedTuple):
    """`name` is relative to data.path, `label` the class folder, `part` the official one or None."""

    name: str
    path: str
    label: str
    part: str | None


class Look(NamedTuple):
    """What is known of a picture before it is decoded: hash of the file, (width, height), whether it is grey.

    `span`: its least and largest value where it has 16 or 32 bits.
    """

    digest: bytes
    size: tuple[int, int]
    grey: bool
    span: Span | None = None


Problems = dict[PictureFile, str]  # why a file cannot be used


# finding files


def list_files(path: str) -> tuple[list[PictureFile], int]:
    """The pictures below `path`, sorted by name, and how many other files there are.

    Raises FileNotFoundError and ValueError for what is no folder of class folders.
    """
    root, words = user_path(path), "give the folder that holds one folder of pictures for each class"
    if not os.path.exists(root):
        raise FileNotFoundError(f"data.path={path} does not exist; {words}")
    if not os.path.isdir(root):
        raise ValueError(f"data.path={path} is a file; {words}")
    files, n_all = [], 0
    for folder, part in _official(root, path).items():
        found, n = _class_folders(root, folder, part, path)
        files, n_all = files + found, n_all + n
    return sorted(files), n_all - len(files)


def _official(root: str, path: str) -> dict[str, str | None]:
    """The folders that hold class folders, with the part that each is named for."""
    names, _ = _content(root)
    parts: dict[str, str | None] = {name: part for name in names if (part := part_named(name))}
    if not parts:
        _refuse_one_folder(root, names, path)
        return {"": None}
    others = [name for name in names if name not in parts]
    if others or "train" not in parts.values() or len({*parts.values()}) < len(parts):
        raise ValueError(
            f"data.path={path} has the folders {named(names)}; {', '.join(parts)} mean parts of the data, so there must be "
            "train, each part once, and nothing else; rename or move folders"
        )
    return parts


def _refuse_one_folder(root: str, names: list[str], path: str) -> None:
    """ValueError where the classes are a folder deeper, as in an archive that was unpacked."""
    if len(names) == 1:
        inner, loose = _content(os.path.join(root, names[0]))
        if len(inner) > 1 and not any(name.lower().endswith(SUFFIXES) for name in loose):
            raise ValueError(
                f"data.path={path} has one folder, {names[0]}, which holds {named(inner)}; "
                f"did you mean data.path={os.path.join(path, names[0])}?"
            )


def _class_folders(root: str, folder: str, part: str | None, path: str) -> tuple[list[PictureFile], int]:
    """The pictures in the class folders of a folder, and how many files there are below it in all."""
    where = os.path.join(path, folder) if folder else path
    labels, loose = _content(os.path.join(root, folder))
    if not labels:
        raise ValueError(f"{where} has no class folders; put the pictures of each class into a folder of their own")
    files, n_all = [], len(loose)
    for label in labels:
        names = sorted(_below(root, os.path.join(folder, label)))
        pictures = [name for name in names if name.lower().endswith(SUFFIXES)]
        if not pictures:
            raise ValueError(
                f"{os.path.join(where, label)} holds no pictures ({' '.join(SUFFIXES)}); add some or delete the folder"
            )
        files += [PictureFile(as_text(name), os.path.join(root, name), as_text(label), part) for name in pictures]
        n_all += len(names)
    return files, n_all


def as_text(name: str) -> str:
    """A file's name that is not UTF-8 with its bytes spelt out, as caf\\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _content(folder: str) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files in a folder, sorted."""
    with os.scandir(folder) as entries:
        visible = sorted((entry.name, entry.is_dir()) for entry in entries if not is_left_behind(entry.name))
    return [name for name, is_folder in visible if is_folder], [name for name, is_folder in visible if not is_folder]


def _below(root: str, folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """The files anywhere below a folder, relative to `root`, with / on every system; a link back to `above` ends there."""
    here = os.path.realpath(os.path.join(root, folder))
    if here in above:
        return
    folders, files = _content(here)
    yield from (f"{folder}/{name}".replace(os.sep, "/") for name in files)
    for name in folders:
        yield from _below(root, os.path.join(folder, name), (*above, here))


# looking at files


def look_at(files: list[PictureFile]) -> tuple[dict[PictureFile, Look], Problems]:
    looks: dict[PictureFile, Look] = {}

    def work(file: PictureFile) -> None:
        looks[file] = look(file.path)

    problems = in_threads(work, files, "looked at")
    return {file: looks[file] for file in files if file in looks}, problems


def look(path: str) -> Look:
    """Raises an exception for what is no picture, and ValueError for a single pixel: blown up, it teaches nothing."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe, which nobody may ever write into
        raise ValueError("no file")
    with open(path, "rb") as file:
        content = file.read()
    if not content:
        raise ValueError("0 bytes")
    with opened(io.BytesIO(content)) as picture:
        if picture.size == (1, 1):
            raise ValueError("1×1 pixel")
        digest, span = hashlib.sha256(content).digest(), _span(picture) if is_deep(picture) else None
        return Look(digest, picture.size, _is_grey(picture), span)


def _span(picture: Any) -> Span:
    values = np.asarray(picture)
    found = values[np.isfinite(values)]
    if not found.size:
        raise ValueError("none of its values is finite")
    return float(found.min()), float(found.max())


def _is_grey(picture: Any) -> bool:
    """By the format: grey values (1, 8, 16, 32 bits), or a palette of nothing but greys."""
    if picture.mode != "P":
        return picture.mode[0] in "1LIF" and picture.mode != "LAB"
    palette = np.array(picture.getpalette()).reshape(-1, 3)
    return bool((palette == palette[:, :1]).all())


def undecodable(files: list[PictureFile]) -> Problems:
    return in_threads(lambda file: to_uint8(file.path, 1, 8, (0, 1)), files, "checked")  # a small picture costs least


def in_threads(work: Callable[[PictureFile], Any], files: Sequence[PictureFile], done: str) -> Problems:
    """`work` on every file, in threads, with a line of progress now and then; the files that failed, and why.

    A missing permission, or a disk too full for what `work` writes, is no fault of the picture and is raised.
    """
    problems: Problems = {}

    def attempt(chunk: Sequence[PictureFile]) -> int:
        for file in chunk:
            try:
                work(file)
            except (PermissionError, MemoryError):
                raise
            except Exception as error:  # PIL raises a dozen kinds on damaged files
                if isinstance(error, OSError) and error.errno in FULL:
                    raise
                problems[file] = _reason(error)
        return len(chunk)

    chunks = [files[i : i + CHUNK] for i in range(0, len(files), CHUNK)]
    finished, told = 0, time.monotonic()
    with ThreadPoolExecutor(n_cores()) as pool:
        for n in pool.map(attempt, chunks):
            finished += n
            if time.monotonic() - told > RHYTHM:
                told = time.monotonic()
                say(f"{done} {finished:,} of {len(files):,} pictures")
    return {file: problems[file] for file in files if file in problems}


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, Image.DecompressionBombError):
        return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; make it smaller"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    text = error.strerror if isinstance(error, OSError) else None
    return " ".join((text or str(error) or type(error).__name__).split())


def n_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fingerprint(files: list[PictureFile], looks: dict[PictureFile, Look]) -> str:
    """SHA-256 over the names and contents of the pictures, wherever they are."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode("utf-8", errors="surrogateescape"))
        digest.update(looks[file].digest if file in looks else b"unreadable")
    return digest.hexdigest()


# what would spoil the experiment


@dataclass(frozen=True)
class Copies:
    """Pictures with the content of another one, as pairs (left out, the other): across parts, across classes, in train."""

    overlapping: list[tuple[PictureFile, PictureFile]]
    contradicting: list[tuple[PictureFile, PictureFile]]
    repeated: list[tuple[PictureFile, PictureFile]]

    @property
    def left_out(self) -> set[PictureFile]:
        return {file for pairs in vars(self).values() for file, _ in pairs}

    def refuse(self, path: str) -> None:
        """ValueError for copies that a person should know of, a line for each kind."""
        kinds = {"parts": self.overlapping, "classes": self.contradicting}
        problems = [
            f"{counted(len(pairs), 'picture')} in data.path={path} are in two {kind}: "
            f"{named([f'{file.name} = {other.name}' for file, other in pairs])}; "
            "delete one of each, or leave out with data.on_overlap=drop"
            for kind, pairs in kinds.items()
            if pairs
        ]
        if problems:
            raise ValueError("\n".join(problems))


def find_copies(looks: dict[PictureFile, Look]) -> Copies:
    """Of each content the copies in test stay, else those in val, else the first in train; none where classes differ."""
    same: dict[bytes, list[PictureFile]] = {}
    for file, seen in looks.items():
        same.setdefault(seen.digest, []).append(file)
    copies = Copies([], [], [])
    for files in same.values():
        if len(files) > 1:
            _sort_copies(files, copies)
    return copies


def _sort_copies(files: list[PictureFile], copies: Copies) -> None:
    last = max(SPLITS.index(file.part or "train") for file in files)
    stay = [file for file in files if SPLITS.index(file.part or "train") == last]
    copies.overlapping.extend((file, stay[0]) for file in files if file not in stay)
    if len({file.label for file in stay}) > 1:
        pairs = [(file, next(other for other in stay if other.label != file.label)) for file in stay]
        copies.contradicting.extend(pairs)
    elif last == 0:
        copies.repeated.extend((file, stay[0]) for file in stay[1:])


def check_classes(files: list[PictureFile], path: str) -> None:
    """Raises ValueError for fewer than two classes, a class with one picture to train on or with none."""
    train = Counter(file.label for file in files if file.part in (None, "train"))
    near = {_letters(label): label for label in train}
    unknown = sorted(
        f"{part}/{label}" + (f" (but of {near[_letters(label)]}, written otherwise)" if _letters(label) in near else "")
        for part, label in {(file.part, file.label) for file in files if file.label not in train}
    )
    single = [label for label, n in train.items() if n == 1]
    if not files:
        raise ValueError(f"data.path={path} has no picture that can be read and is in one part and class; bring some")
    if unknown:
        raise ValueError(
            f"data.path={path} has no training pictures of the classes {named(unknown)}; "
            "add them to train, or take these folders out"
        )
    if len(train) < 2:
        raise ValueError(f"data.path={path} has {len(train)} classes to train on ({named([*train])}); bring at least 2")
    if single:
        raise ValueError(
            f"data.path={path} has one picture only of {named(single)} to train on; add pictures, or delete the folder"
        )


def _letters(name: str) -> str:
    """What a person takes for the same name: é in one sign or two, capitals, blanks at the ends."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def check_trained(train: Examples, path: str) -> None:
    """Raises ValueError for classes of which nothing is left to train on, after the split and after decoding."""
    missing = [name for name, n in zip(train.classes, class_counts(train), strict=True) if not n]
    if missing:
        raise ValueError(
            f"data.path={path} has no picture of {named(missing)} in the training part; add pictures that can be read, "
            "or give train a larger share of data.split"
        )


def counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def named(items: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")
