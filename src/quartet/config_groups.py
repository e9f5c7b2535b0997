"""The config groups of `conf/`: which options there are, and what their files say. Imports no torch."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import OmegaConf

from quartet.typed import PROJECT

CONF = PROJECT / "conf"


def is_group(key: str) -> bool:
    return "/" in key or (CONF / key).is_dir()


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml"))


def named_options(value: str) -> list[str]:
    """The options in a value such as a, [a,b], choice(a,b) or a,b."""
    words = re.split(r"[\s,()\[\]]+", value)
    return [word for word in words if word not in ("", "choice", "shuffle", "sort")]


def unknown_options(group: str, value: str) -> list[str]:
    known = {*options(group), "null"}
    return [word for word in named_options(value) if word not in known]


def content(group: str, option: str) -> dict[str, Any]:
    """The content of a file of `conf/`, over that of the files of its group that it includes."""
    own: Any = OmegaConf.load(CONF / group / f"{option}.yaml")
    included = [name for name in own.get("defaults", []) if isinstance(name, str) and name != "_self_"]
    below = [content(group, name) for name in included if (CONF / group / f"{name}.yaml").is_file()]
    merged: Any = OmegaConf.to_container(OmegaConf.merge(*below, own), resolve=False)
    return merged


def fitting(group: str, key: str, value: str) -> list[str]:
    """The options of a group whose file says `pairing: {key: value}`, or `key: value` as older files do."""
    contents = {name: content(group, name) for name in options(group)}
    return [name for name, values in contents.items() if (values.get("pairing") or values).get(key) == value]
