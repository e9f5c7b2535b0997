"""Commands as a person types them: every one that is printed runs as printed, whatever its paths and names hold."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
PLAIN = re.compile(r"(?=.*[A-Za-z])[\w./@%+:-]+", re.ASCII)  # what Hydra takes for text without quotes
OTHER = re.compile(r"(?i)true|false|null|[+-]?(nan|inf)|[+-]?[\d_.]+(e[+-]?\d+)?")  # what it takes for something else
EVERYWHERE = "python scripts/train.py"  # in pages, which are read on other machines too


def user_path(path: str) -> str:
    """A path as the user typed it, with `~` expanded; relative paths are relative to the working directory."""
    return os.path.abspath(os.path.expanduser(path))


def argument(key: str, value: Any) -> str:
    """`key=value` for a shell: a text stays that text, through the shell, Hydra and OmegaConf."""
    return shell(f"{key}={hydra(str(value))}")


def hydra(text: str) -> str:
    """A text as Hydra reads it: in quotes where it would see something else in it, or nothing at all."""
    if PLAIN.fullmatch(text) and not OTHER.fullmatch(text):
        return text
    # Hydra's grammar: a backslash counts only before what it quotes, so those that stand there already are doubled
    text = re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", text)  # no reference to another value
    text = re.sub(r'(\\*)"', lambda match: 2 * match[1] + r"\"", text)
    return '"' + re.sub(r"(\\+)$", lambda match: 2 * match[1], text) + '"'


def shell(word: str) -> str:
    """A word for a shell; one with simple quotes of its own stays readable."""
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!\n]', word) else shlex.quote(word)


def command(script: str, *words: str) -> str:
    """The command that runs `scripts/<script>.py` with these words, which are quoted already, from where the user is."""
    return " ".join([_python(), _path(PROJECT / "scripts" / f"{script}.py"), *words])


def tensorboard(directory: Path) -> str:
    """The command that shows one run, or the runs of one sweep."""
    return f"{_python()} -m tensorboard.main --logdir {_path(directory)}"


def repeated(overrides: Iterable[str], *, sweep: bool = False) -> str:
    """What trains again with these overrides, in Hydra's words; for a page that may be read elsewhere."""
    return " ".join([EVERYWHERE, *(["-m"] if sweep else []), *map(shell, overrides)])


def _python() -> str:
    """python, where that is this one; a person need not have activated its environment."""
    found = shutil.which("python")
    return (
        "python" if found and Path(found).absolute() == Path(sys.executable).absolute() else _path(Path(sys.executable))
    )


def _path(path: Path) -> str:
    here = Path.cwd()
    return shlex.quote(os.path.relpath(path, here) if path.is_relative_to(here) else str(path))
