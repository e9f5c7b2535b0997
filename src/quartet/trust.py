"""Whose code a config may name. Imports no torch, and none of what it judges.

- our own parts, and the modules of torch, torchvision and Lightning that hold what a group of `conf/` is made of
- packages that the user trusts: those in `QUARTET_TRUST`, and those that the project's `conf/` names
- packages that the user names on the command line: for this command and the processes it starts, which inherit
  `QUARTET_TRUST`. The run notes them in `environment.json`, but a run is never believed about whom to trust.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from quartet.typed import PROJECT

VARIABLE = "QUARTET_TRUST"  # names of packages with commas between them
OURS = ("quartet.data", "quartet.models", "quartet.tasks", "quartet.optim", "quartet.callbacks")
OURS += ("quartet.engine.checkpoint", "quartet.engine.fsdp", "quartet.sweeps.pruning")
THEIRS = {  # group of conf/ -> modules of others that hold such parts; importing any other one could do anything
    "model": ("torch.nn", "torchvision.models"),
    "optimizer": ("torch.optim",),
    "scheduler": ("torch.optim.lr_scheduler",),
    "trainer": ("pytorch_lightning.trainer",),
    "callbacks": ("pytorch_lightning.callbacks",),
    "logger": ("pytorch_lightning.loggers",),
}
LIBRARIES = ("torch", "torchvision", "torchmetrics", "pytorch_lightning")
# never taken for a package of the user's own
KNOWN = {"quartet", "hydra_plugins", "hydra", *LIBRARIES, *sys.stdlib_module_names}
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")

_granted: set[str] = set()  # packages that the user of this process has named


def packages(config: Any) -> list[str]:
    """The packages of the user's own that a config names in its `_target_`s, at whatever depth."""
    return sorted(set(_own(targets(config))))


def targets(values: Any) -> Iterator[str]:
    """Every `_target_` of a config or a part of one, at whatever depth; that of the whole comes last."""
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        yield from targets(value)
    if isinstance(values, dict) and "_target_" in values:
        yield str(values["_target_"])


def _own(names: Iterable[str]) -> Iterator[str]:
    tops = (name.split(".")[0] for name in names if NAME.fullmatch(name))
    return (top for top in tops if top not in KNOWN)


def packages_in_words(words: Iterable[str]) -> list[str]:
    """The same of words such as `model._target_=mylib.Net`, or of lines of YAML: every dotted name after `_target_`."""
    values = (word.partition("_target_")[2] for word in words)
    return sorted(set(_own(match.group() for value in values for match in NAME.finditer(value))))


def trusted() -> set[str]:
    """What a config that is read back may name besides our own parts and the libraries'."""
    return _named_in_environment() | _named_in_conf()


def _named_in_environment() -> set[str]:
    return set(re.split(r"[\s,:;]+", os.environ.get(VARIABLE, ""))) - KNOWN - {""}


def _named_in_conf() -> set[str]:
    """Packages that the project's own files name; Hydra's settings in `conf/hydra` are not part of a run."""
    # read as text, because composing a config would already build what it names
    conf, found = PROJECT / "conf", set()
    for path in conf.rglob("*.yaml"):
        if path.relative_to(conf).parts[0] != "hydra":
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found.update(packages_in_words(line.partition("#")[0] for line in lines if "_target_" in line))
    return found


def grant(names: Iterable[str]) -> None:
    """The user of this process has named these packages: its own config may use them from now on."""
    _granted.update(names)


def revoke(names: Iterable[str]) -> None:
    """Take packages back that were granted to this process; tests restore it with this."""
    _granted.difference_update(names)


def inherit(names: Iterable[str]) -> None:
    """The same for this process and all that it starts, whatever they read."""
    grant(set(names) - trusted())
    os.environ.update(environment(names))


def environment(names: Iterable[str]) -> dict[str, str]:
    """By what variables a process that is started learns of them, besides those that it knows anyway."""
    names = set(names) - trusted()
    return {VARIABLE: ",".join(sorted(_named_in_environment() | names))} if names else {}


def prefix(config: Any) -> str:
    """What stands before a command that is to open the run of this config in another process."""
    names = _granted.intersection(packages(config)) - _named_in_conf()
    return f"{VARIABLE}={','.join(sorted(names))} " if names else ""


def refusal(target: str, place: str | None, among: set[str] | None = None) -> str | None:
    """Why a `_target_` may not be imported, from its name alone; None if it may. `among`: the packages that are trusted."""
    module, top = target.rpartition(".")[0], target.split(".")[0]
    # brackets, spaces or slashes are no name of a module, whatever Python would make of them
    if not NAME.fullmatch(target):
        return "it must name a class or function with its module, such as quartet.models.mlp.MLP"
    if top in (trusted() | _granted if among is None else among):
        return None
    # of the libraries not everything: torch.utils or torch.hub could run or fetch anything
    if top in ("quartet", *LIBRARIES):
        if is_ours(module) or _is_below(module, THEIRS.get(place or "", ())):
            return None
        if place == "trainer" and module == "pytorch_lightning":
            return None
        return "nothing of that name belongs there"
    if top in KNOWN:
        return f"nothing of that name belongs there; {ALLOWED}"
    # a package nobody vouches for may be the user's own: say how to vouch for it
    return f"nothing of that name belongs there; {ALLOWED}; if {top} is yours, set {VARIABLE}={top} or name it in conf/"


ALLOWED = (
    f"a config may use parts of quartet, {', '.join(LIBRARIES[:-1])} and {LIBRARIES[-1]}, "
    "and of packages that you trust"
)


def is_ours(module: str) -> bool:
    """Whether a module of Quartet holds parts that a config may name."""
    return _is_below(module, OURS)


def _is_below(module: str, parents: Iterable[str]) -> bool:
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def load(module: str) -> ModuleType:
    """Import a module that may be imported; one of the user's own from the project or the working directory too.

    They come last on the path, and only once such a package is found there: nothing else may be taken from a folder that
    happens to be the working directory. A run directory is never one of them.
    """
    top = module.split(".")[0]
    if top not in KNOWN and top not in sys.modules and importlib.util.find_spec(top) is None:
        places = [PROJECT] if (Path.cwd() / "environment.json").exists() else [PROJECT, Path.cwd()]
        for place in map(str, places):
            if PathFinder.find_spec(top, [place]) is not None:
                sys.path.append(place)
                break
    return importlib.import_module(module)
