"""Opening a file that the user named. Imports no torch."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import BinaryIO

from quartet.typed import user_path


@contextmanager
def open_file(path: str, kind: str, key: str = "data.path") -> Iterator[BinaryIO]:
    """The regular file at `path` for reading bytes; messages say that it should be `kind`, and that `key` named it.

    Raises OSError or ValueError, one line that begins with the path as the user typed it.
    """
    place = user_path(path)
    try:
        mode = os.stat(place).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe or a device may never end
            raise ValueError(f"{path} is not a regular file; name {kind}, or remove it")
        file = open(place, "rb")  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        hint = f"{key} is relative to where you are"
        with suppress(OSError):
            near = get_close_matches(os.path.basename(place), os.listdir(os.path.dirname(place)), n=1)
            hint = f"did you mean {os.path.join(os.path.dirname(path), near[0])}?" if near else hint
        raise FileNotFoundError(f"{path} does not exist; {hint}") from None
    except PermissionError:
        raise PermissionError(f"no permission to read {path}; ask its owner, or allow it: chmod +r '{path}'") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder; name a file") from None
    with file:
        yield file
