"""The files that a user names: opened, and listed below a folder or by a glob. Imports no torch."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
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


# what file managers, archives and storage systems leave in folders: beginnings of names, and whole ones in lower case
LEFT_BEHIND = (".", "__macosx", "@ea", "#recycle", "#snapshot", "$recycle")
LEFT_ALONE = {"thumbs.db", "desktop.ini", "system volume information", "lost+found", "@recycle", "@sharebin", "@tmp"}


def is_left_behind(name: str) -> bool:
    """Whether a file or folder is none of the user's data."""
    return name.lower().startswith(LEFT_BEHIND) or name.lower() in LEFT_ALONE


def list_files(folder: str, shown: str) -> list[str]:
    """Names of all files below a folder (`shown` in messages), with forward slashes; each linked folder once."""

    def refuse(error: OSError) -> None:
        remedy = f"allow it (chmod -R u+rX) or take it out of {shown}"
        raise PermissionError(f"no permission to read {error.filename}; {remedy}") from None

    names, seen = [], {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        below = os.path.relpath(parent, folder).replace(os.sep, "/")
        names += [name if below == "." else f"{below}/{name}" for name in files if not is_left_behind(name)]
        # descend into each real folder once: links may lead back to a folder above
        visible, folders[:] = sorted(name for name in folders if not is_left_behind(name)), []
        for name in visible:
            real = os.path.realpath(os.path.join(parent, name))
            if real not in seen:
                seen.add(real)
                folders.append(name)
    return sorted(names)


def expand_glob(pattern: str) -> list[str]:
    """The files that a glob names. ** follows links into each folder once, where `glob` would go round in circles."""
    if "**" not in pattern:
        return sorted(path for path in glob.glob(pattern) if os.path.isfile(path))
    parts = Path(pattern).parts
    n_fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = str(Path(*parts[:n_fixed]))
    # each part of the pattern as a regular expression that stays within its folder
    expression = ""
    for part in parts[n_fixed:]:
        translated = fnmatch.translate(part).removeprefix("(?s:").removesuffix(r")\Z")
        expression += "(?:[^/]+/)*" if part == "**" else re.sub(r"(?<!\\)\.(\*?)", r"[^/]\1", translated) + "/"
    names = [name for name in list_files(root, root) if re.fullmatch(expression, f"{name}/")]
    return [os.path.join(root, name) if n_fixed else name for name in names]
