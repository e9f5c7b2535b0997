"""Checks of `conf/model` values, shared by the networks: each returns sentences that name the key, or nothing.

They look at values of the expected type only: a missing key or a wrong type is reported where the config is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, TypeGuard


def is_int(value: Any) -> TypeGuard[int]:
    return type(value) is int  # True and False are no sizes


def unknown_choices(settings: dict[str, Any], allowed: Mapping[str, Iterable[str]]) -> list[str]:
    """A sentence for each text value that is not among the allowed ones of its key."""
    return [
        f"model.{name} must be one of {', '.join(choices)}, not {settings[name]!r}"
        for name, choices in allowed.items()
        if isinstance(settings.get(name), str) and settings[name] not in choices
    ]


def too_small(settings: dict[str, Any], names: Iterable[str]) -> list[str]:
    """A sentence for each whole number below 1."""
    return [
        f"model.{name}={settings[name]} must be 1 or more"
        for name in names
        if is_int(settings.get(name)) and settings[name] < 1
    ]


def bad_dropout(settings: dict[str, Any], names: Iterable[str] = ("dropout",)) -> list[str]:
    """A sentence for each of these that is not a probability below 1."""
    return [
        f"model.{name}={settings[name]} must be a probability: at least 0 and below 1"
        for name in names
        if isinstance(settings.get(name), float | int) and not 0 <= settings[name] < 1
    ]


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names most like `name`, as text for an error message."""
    known = list(known)
    return ", ".join(get_close_matches(name, known, n=4, cutoff=0.3) or known)


def raise_if(problems: list[str]) -> None:
    """ValueError with all problems in one message."""
    if problems:
        raise ValueError("; ".join(problems))
