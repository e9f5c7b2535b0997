"""What takes minutes to make, as files under $QUARTET_CACHE: made once, mapped into memory afterwards.

A file's name is the hash of everything it depends on; so nothing there is ever out of date, and any folder of it may be
deleted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from quartet.files import written

FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk, of a user's share of it
DAY = 24 * 3600  # seconds
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}([0-9a-f]{4}(\.size)?)?")  # files that are being written; 12 digits until 2026
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)


def cache_directory() -> Path:
    """Where downloads and other things made once are kept: $QUARTET_CACHE, else ~/.cache/quartet."""
    try:
        return Path(os.environ.get("QUARTET_CACHE", "~/.cache/quartet")).expanduser()
    except RuntimeError:  # a container whose user has no name
        raise ValueError(
            "there is no home directory to keep a cache in; say where: QUARTET_CACHE=<a folder of yours>"
        ) from None


@dataclass(frozen=True)
class Cache:
    """A folder of the cache: `version` rises when its files are made otherwise; `room` says how much they take."""

    folder: str
    version: int
    room: str

    @property
    def path(self) -> Path:
        return cache_directory() / self.folder

    def key(self, kind: str, *facts: Any) -> str:
        """The name of a file that depends on these plain values alone."""
        return f"{hashlib.sha256(json.dumps([self.version, *facts]).encode()).hexdigest()[:32]}.{kind}"

    def made(self, name: str, write: Callable[[BinaryIO], object], n_bytes: int = 0) -> Path:
        """The file of this name, made by `write` if it is not there yet; needs `n_bytes` of free space.

        Two processes may both make it: each writes a file of its own, and the last to finish replaces the other's equal
        one. A file that was cut short, or that another user keeps from being read, is made anew.
        """
        target = self.path / name
        if not (target.is_file() and os.access(target, os.R_OK) and is_complete(target)):
            write_cached(target, write, room=self.room, n_bytes=n_bytes)
        return target


def is_complete(path: Path) -> bool:
    """Whether a file of the cache has the size that is noted beside it; one without a note has not."""
    try:
        return path.stat().st_size == int(path.with_name(f"{path.name}.size").read_text("ascii"))
    except (OSError, ValueError):
        return False


def write_cached(target: Path, write: Callable[[BinaryIO], object], *, room: str = "", n_bytes: int = 0) -> None:
    """A complete file of the cache, or none; an OSError says what the user can do about a cache that cannot be written."""
    folder, opened = target.parent, False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # what killed processes left behind; a file that is being written is younger than a day
        for path in folder.glob(".*.*"):
            with suppress(OSError):
                if LEFTOVER.fullmatch(path.name) and time.time() - path.stat().st_mtime > DAY:
                    path.unlink()
        if shutil.disk_usage(folder).free < n_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with written(target) as file:
            opened = True
            write(file)
            size = file.seek(0, os.SEEK_END)
            file.flush()
            os.fsync(file.fileno())
        # the size is noted last: a file without it is incomplete
        with written(target.with_name(f"{target.name}.size")) as note:
            note.write(f"{size}\n".encode("ascii"))
    except OSError as error:
        if error.errno in FULL:
            needed = f" ({room})" if room else ""
            raise OSError(
                f"the disk is full: no room in the cache {folder}{needed}; free some, or point QUARTET_CACHE to a folder "
                "on another disk"
            ) from None
        if error.errno in UNWRITABLE and not opened:  # afterwards, permissions are those of other files
            raise PermissionError(
                f"the cache {folder} cannot be written; point QUARTET_CACHE to a folder of yours"
            ) from None
        raise


class Mapped:
    """A file as memory: what is touched is read.

    The operating system keeps what was read as long as it has memory to spare; this process gives it back whenever it has
    `count`ed to `forget_after`, so that a long run does not come to hold the whole file.
    """

    def __init__(self, path: Path, forget_after: int):
        with open(path, "rb") as file:  # read-only: a writable map may be no larger than memory
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.forget_after, self.counted = forget_after, 0

    def tensor(self, dtype: torch.dtype, count: int = -1) -> Tensor:
        """The first `count` numbers, not to be written to."""
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch has no read-only tensors
            return torch.frombuffer(self.memory, dtype=dtype, count=count)

    def count(self, n: int) -> None:
        self.counted += n
        if self.counted >= self.forget_after:
            self.forget()

    def forget(self) -> None:
        self.counted = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            self.memory.madvise(mmap.MADV_DONTNEED)
