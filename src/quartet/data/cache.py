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
import secrets
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

FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk, of a user's share of it
DAY = 24 * 3600  # seconds
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{12}(\.size)?")  # names of files that are being written
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
        one. Where less than `n_bytes` are free, it is not begun. One that was cut short, or that another user keeps from
        being read, is made anew.
        """
        target = self.path / name
        if not (target.is_file() and os.access(target, os.R_OK) and is_whole(target)):
            write_whole(target, write, room=self.room, n_bytes=n_bytes)
        return target


def is_whole(path: Path) -> bool:
    """Whether a file of the cache has the size that is noted beside it; one without a note has not."""
    try:
        return path.stat().st_size == int(_note(path).read_text("ascii"))
    except (OSError, ValueError):
        return False


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.size")


def write_whole(target: Path, write: Callable[[BinaryIO], object], *, room: str = "", n_bytes: int = 0) -> None:
    """A file of the cache, whole or not at all; an OSError says what can be done about a cache that cannot be written."""
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent)
        if shutil.disk_usage(target.parent).free < n_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
        with open(path, "xb") as file:  # with the permissions that the umask leaves: a cache may be a group's
            temporary = path
            write(file)
            file.flush()
            os.fsync(file.fileno())
        size = path.stat().st_size
        os.replace(path, target)
        temporary = _note(path)
        temporary.write_text(f"{size}\n", encoding="ascii")
        os.replace(temporary, _note(target))
    except BaseException as error:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        raise _explained(error, target.parent, room, begun=temporary is not None) from None


def _remove_leftovers(folder: Path) -> None:
    """What killed processes left behind; a file that is being written is younger than a day."""
    for path in folder.glob(".*.*"):
        with suppress(OSError):
            if LEFTOVER.fullmatch(path.name) and time.time() - path.stat().st_mtime > DAY:
                path.unlink()


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
