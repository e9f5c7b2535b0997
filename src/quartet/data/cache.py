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
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk, of a user's share of it
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)


def cache_directory() -> Path:
    """Where downloads and other things made once are kept: $QUARTET_CACHE, else ~/.cache/quartet."""
    return Path(os.environ.get("QUARTET_CACHE", "~/.cache/quartet")).expanduser()


@dataclass(frozen=True)
class Cache:
    """A folder of the cache: `version` rises where its files are made otherwise; `room` says how much they take."""

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
        """The file of this name, made by `write` where it is not there yet; whole or not at all.

        Two processes may both make it: each writes a file of its own, and the last to finish replaces the other's equal
        one. Where less than `n_bytes` are free, it is not begun.
        """
        target = self.path / name
        if not target.is_file():
            write_whole(target, write, room=self.room, n_bytes=n_bytes)
        return target


def write_whole(target: Path, write: Callable[[BinaryIO], object], *, room: str = "", n_bytes: int = 0) -> None:
    """A file of the cache, whole or not at all; an OSError says what can be done about a cache that cannot be written."""
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(target.parent).free < n_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            temporary = file.name
            write(file)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        raise _explained(error, target.parent, room, begun=temporary is not None) from None


def _explained(error: BaseException, folder: Path, room: str, *, begun: bool) -> BaseException:
    """What the user can do about a cache that cannot be written; once it is begun, permissions are others' matter."""
    number = error.errno if isinstance(error, OSError) else None
    if number in FULL:
        needed = f" ({room})" if room else ""
        return OSError(
            f"the disk is full: no room in the cache {folder}{needed}; "
            "free some, or point QUARTET_CACHE to a folder on another disk"
        )
    if number in UNWRITABLE and not begun:
        return PermissionError(f"the cache {folder} cannot be written; point QUARTET_CACHE to a folder of yours")
    return error


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
