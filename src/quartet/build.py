"""From a config to a data module, a network, a task and a trainer; the only place that instantiates.

A config read back from a run is data from outside: a `_target_` may name nothing but our own parts, the modules,
optimizers, schedules, callbacks and loggers of torch, torchvision and Lightning, and what the user trusts (`trust.py`).
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from quartet import optim, trust
from quartet.callbacks.checkpoint import Checkpoints
from quartet.callbacks.pruning import Pruning
from quartet.callbacks.transfer import Freeze
from quartet.check import (
    check_pairing,
    required,
    settle_monitor,
    signature_problems,
    takes,
    types_of,
    value_problems,
)
from quartet.cli import in_sweep
from quartet.data.base import DataModule, user_path
from quartet.data.spec import Spec
from quartet.failures import is_out_of_memory
from quartet.hardware import is_fast
from quartet.run import Run
from quartet.say import printable, say
from quartet.tasks.base import Task

PLACES = {  # what a group is made of; a function must say in its annotation that it makes such a thing
    "data": DataModule, "model": nn.Module, "task": Task, "optimizer": Optimizer, "scheduler": (LRScheduler, float),
    "trainer": Trainer, "callbacks": Callback, "logger": Logger,
}  # fmt: skip
# text that leads out of a run's directory, and settings of Lightning's parts that say where to write
OUTSIDE, WHERE = re.compile(r"^[/\\~]|^\w+:[/\\]|(^|[/\\])\.\.([/\\]|$)"), re.compile(r"(dir|path|uri|location)$")
FIELD = re.compile(
    r"\{[\w/]+(:0?\d?\d?(\.\d)?[defg]?)?\}"
)  # of a file name: {epoch}, {val/loss:.2f}; others make any character
LOGGER_EXTRAS = ("wandb", "mlflow")  # of pyproject.toml
# keys that no constructor takes: those that steer composition, and those that say how training starts
NOTES = ("_target_", "accepts", "provides", "window_order", "recipe", "predicts", "max_restarts", "rendezvous")
START = ("init_from", "freeze", "backbone_lr")
# what Python raises where a file has another shape than the code that reads it expects
STUMBLES = (ArithmeticError, AttributeError, LookupError, TypeError)


# instantiation


def locate(target: str, place: str | None = None, among: set[str] | None = None) -> Callable[..., Any]:
    """The class or function behind `_target_`; ValueError unless it is on the allow-list for that place.

    `place` is a group of `conf/`; None: within a part, where there may be classes of ours only. `among`: the packages
    that are trusted, for a config from elsewhere. What is not allowed is not imported.
    """
    target = str(target)
    reason = trust.refusal(target, place, among)
    if reason is None:
        found = _imported(target)
        if _allowed(found, place, target):
            return found
        reason = _unfit(target, place) if _is_users(target) else "nothing of that name belongs there"
    raise ValueError(f"_target_={printable(target)} is not allowed: {reason}")


def _imported(target: str) -> Any:
    """What a name stands for; None if our parts or the libraries have none such. The user's own must be importable."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(trust.load(module), name, None)
    except Exception as error:
        if not _is_users(target):
            return None
        reason = f"{type(error).__name__}: {printable(str(error))}"
        where = "" if type(error).__name__ != "ModuleNotFoundError" else "; put its folder on PYTHONPATH"
        raise ValueError(f"_target_={target}: importing {module} failed ({reason}){where}") from error


def _is_users(target: str) -> bool:
    return target.split(".")[0] not in trust.KNOWN


def _allowed(found: Any, place: str | None, target: str) -> bool:
    if place is None:
        return inspect.isclass(found) and (
            _is_ours(found) or _home(found)[0] == target.split(".")[0] not in trust.KNOWN
        )
    made = types_of(found).get("return") if inspect.isfunction(found) else found
    known = _is_ours(found) or _is_users(target) or (inspect.isclass(found) and _home(found)[0] in trust.LIBRARIES)
    return known and inspect.isclass(made) and issubclass(made, PLACES[place])


def _unfit(target: str, place: str | None) -> str:
    """What is wrong with a part of the user's own."""
    if place is None:
        return f"within another part there may be classes, and {target} is not a class of that package"
    kinds = [f"{kind.__module__}.{kind.__name__}" for kind in _kinds(place) if kind is not float]
    what = f"a class derived from {' or '.join(kinds)}"
    function = (
        "a function annotated as -> float" if float in _kinds(place) else f"a function annotated as -> {kinds[0]}"
    )
    return f"{place} must be {what}, or {function}"


def _kinds(place: str) -> tuple[type, ...]:
    kinds = PLACES[place]
    return kinds if isinstance(kinds, tuple) else (kinds,)


def _is_ours(found: Any) -> bool:
    return ".".join(_home(found)[:2]) in trust.OURS


def _home(found: Any) -> list[str]:
    return str(getattr(found, "__module__", None)).split(".")


def settings_of(node: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments in a config node; nested nodes with a `_target_` are built."""
    arguments = {key: value for key, value in node.items() if key not in (*NOTES, *START)}
    return {k: make(v) if isinstance(v, dict) and "_target_" in v else v for k, v in arguments.items()}


def make(node: dict[str, Any], place: str | None = None, /, **facts: Any) -> Any:
    """Call the target of a node with its settings and with facts that are known only at run time.

    Raises ValueError where a fact is given in the config too: no size is typed twice.
    """
    target, settings = locate(node["_target_"], place), settings_of(node)
    both = sorted(settings.keys() & facts.keys())
    if both:
        source = "is set by Quartet" if place == "trainer" else "comes from the data"
        raise ValueError(f"{', '.join(both)} of {node['_target_']} {source}; leave it out of the config")
    return target(**facts, **settings)


# checking


def plain(config: DictConfig) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(config, resolve=True)
    return values


def check(config: DictConfig) -> None:
    """Everything that can be known to be wrong before data are read: one ValueError with a line for each problem.

    Fills in `monitor.mode`. The config is the user's own: it may use the packages that it names.
    """
    if not in_sweep():  # a job may have been composed from a file; what the user typed is in the environment then
        trust.grant(trust.packages(plain(config)))
    settle_monitor(config)
    _check(config)


def _check(config: DictConfig, among: set[str] | None = None) -> None:
    check_pairing(config)
    problems: dict[str, str] = {}
    for problem in [*value_problems(config), *_construction_problems(plain(config), among)]:
        key = re.split(r"[ =:]", problem)[0]  # a rule and a constructor may both mind a value: once is enough
        problems.setdefault(key, problem)
    if problems:
        raise ValueError("\n".join(problems.values()))


def _construction_problems(config: dict[str, Any], among: set[str] | None) -> Iterator[str]:
    for place, node in _nodes(config):
        target = locate(node["_target_"], place.split(".")[0], among)
        for inner in _inner_targets(node):
            locate(inner, None, among)
        settings = {key: value for key, value in node.items() if key not in (*NOTES, *START)}
        yield from signature_problems(target, settings, place)
        if _writes_by_itself(target, place.split(".")[0]):
            yield from _escapes(place, settings)
        if hasattr(target, "problems"):
            yield from target.problems(settings)  # type: ignore[attr-defined]
    known = val_metrics(config)
    if config["monitor"]["metric"] not in known:
        yield f"monitor.metric must be one of {', '.join(known)}, not {config['monitor']['metric']!r}"


def _inner_targets(node: Any) -> Iterator[Any]:
    """Of the parts within a part, at whatever depth."""
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, dict) and "_target_" in value:
            yield value["_target_"]
        if isinstance(value, dict | list):
            yield from _inner_targets(value)


def _writes_by_itself(target: Any, group: str) -> bool:
    """Whether code of a library would write what the settings say, which looks at no run: in a class derived from it too."""
    if _is_ours(target) or not inspect.isclass(target):
        return False
    common = {base for kind in _kinds(group) for base in kind.__mro__} if target not in _kinds(group) else set()
    return any(_home(base)[0] in trust.LIBRARIES for base in target.__mro__ if base not in common)


def val_metrics(config: Any) -> list[str]:
    """What the task logs after each validation."""
    return [f"val/{name}" for name in locate(config["task"]["_target_"], "task").METRICS]  # type: ignore[attr-defined]


def _nodes(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is built, with its key; callbacks and loggers are several, and those set to null none."""
    for group in PLACES:
        several = group in ("callbacks", "logger")
        found = {f"{group}.{name}": node for name, node in config[group].items()} if several else {group: config[group]}
        yield from ((place, node) for place, node in found.items() if node is not None)


def _escapes(place: str, settings: Any) -> Iterator[str]:
    """Settings of Lightning's parts by which they would write elsewhere than in the run."""
    for key, value in settings.items() if isinstance(settings, dict) else enumerate(settings):
        name = f"{place}.{key}={printable(str(value))}"
        if value is not None and WHERE.search(str(key)):
            yield f"{name} climbs out of the run, which holds all that it writes; leave it out"
        elif isinstance(value, dict | list):
            yield from _escapes(f"{place}.{key}", value)
        elif isinstance(value, str) and OUTSIDE.search(value):
            yield f"{name} climbs out of the run, which holds all that it writes; leave it out"
        elif isinstance(value, str) and re.search(r"[{}$]", FIELD.sub("", value)):
            yield f"{name} could climb out of the run once it is filled in; use fields such as {{epoch}} or {{val/loss:.2f}}"


def opened(run: Run, data_path: str | None = None) -> DictConfig:
    """The config of a run, checked as one from the command line is: it may come from elsewhere, as the run may.

    `data_path`: where its data are now. ValueError where they are read from no path.
    """
    config, where = run.config, run.directory / "config.yaml"
    if data_path is not None:
        if config.data.get("path") is None:
            raise ValueError(f"data.path={data_path}: {run} reads no files of yours; leave it out")
        config.data.path = user_path(data_path)
    try:
        settle_monitor(config)
        _check(config, trust.trusted() | run.trusted)
        if not run.may_download:
            _download_nothing(config.data)
    except ValueError as error:
        raise ValueError("\n".join(f"{where}: {line}" for line in str(error).splitlines())) from error
    except Exception as error:  # parts that are missing or of another shape
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{where} is no config of a run ({reason}); bring back the file, or train again") from error
    return config


def _download_nothing(node: DictConfig) -> None:
    """A run that is read back fetches nothing: what it names it may name for somebody else."""
    for key in node:
        if key == "download":
            node[key] = False
        elif isinstance(node.get(key), DictConfig):
            _download_nothing(node[key])


# the parts


def build_data(config: DictConfig, preprocessing: dict[str, Any] | None = None) -> DataModule:
    """The data module; with the preprocessing of a run it knows its `spec` without reading any data."""
    data = make(plain(config)["data"], "data")
    if preprocessing is not None:
        with _blaming("preprocessing.json", Exception):  # nothing but this file is read here
            data.restore(preprocessing)
            data.spec.check()
    return data


def restore_data(run: Run, config: DictConfig, *, read: bool = True) -> DataModule:
    """The data module of a run with its preprocessing; `read`: with its data, which must be what they were."""
    path = run.directory / "preprocessing.json"
    preprocessing = run.read(path.name)
    try:
        data = build_data(config, preprocessing)
    except ValueError as error:
        raise ValueError(str(error).replace(path.name, str(path), 1)) from error
    if read:  # mistakes in the data are ValueErrors with a message of their own
        try:
            with _blaming(str(path), *STUMBLES):
                data.setup()
        except FileNotFoundError as error:
            text = str(error).replace("; data.path is relative to where you are", "")
            raise FileNotFoundError(f"{text}; if the data have moved, say where they are: data.path=<path>") from error
    return data


@contextmanager
def _blaming(name: str, *kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds are those of a damaged file: whatever a reader may stumble over in it."""
    try:
        yield
    except kinds as error:
        reason = printable(f"{type(error).__name__}: {error}")
        raise ValueError(f"{name} is not that of these data ({reason}); bring it back, or train again") from error


def build_network(config: DictConfig, spec: Spec) -> nn.Module:
    """Sizes flow in from the data; a network of the user's own is given those that its constructor names."""
    node = plain(config)["model"]
    target, sizes = locate(node["_target_"], "model"), spec.sizes
    if _is_users(node["_target_"]):
        sizes = {name: size for name, size in sizes.items() if takes(target, name)}
        missing = required(target) - sizes.keys() - settings_of(node).keys()
        if missing:
            known = ", ".join(spec.sizes)
            raise ValueError(
                f"model: {node['_target_']} needs {', '.join(sorted(missing))}; the data give {known}, "
                "and the rest belongs in the config, such as +model.width=64"
            )
    try:
        network = make(node, "model", **sizes)
    except (*STUMBLES, RuntimeError) as error:
        if _is_users(node["_target_"]) or is_out_of_memory(error):
            raise
        raise ValueError(
            f"{node['_target_']} cannot be built with the sizes of the data ({printable(str(error))}); "
            "if preprocessing.json of a run has them, it is damaged: bring it back, or train again"
        ) from error
    asked = [f"model.{key}" for key in ("freeze", "backbone_lr") if node.get(key) not in (None, 0, 1.0)]
    if asked and not isinstance(getattr(network, "head", None), nn.Module):
        raise ValueError(f"{' and '.join(asked)} spares the head, and {node['_target_']} has no module named head")
    return network


def build_task(config: DictConfig, spec: Spec, *, train: bool = False) -> Task:
    """The task around its network; for evaluation it needs neither optimizer nor schedule."""
    network = build_network(config, spec)
    values = plain(config)
    optimisation = {}
    if train:
        rate = values["model"].get("backbone_lr", 1.0)
        optimisation["make_optimizer"] = partial(build_optimizer, values["optimizer"], backbone_lr=rate)
        optimisation["make_scheduler"] = partial(build_scheduler, values["scheduler"], values["monitor"])
    return make(values["task"], "task", network=network, spec=spec, **optimisation)


def build_optimizer(node: dict[str, Any], network: nn.Module, *, backbone_lr: float = 1.0) -> Optimizer:
    """`backbone_lr` multiplies the rate of all but the head."""
    settings = settings_of(node)
    group = optim.muon_groups if node["_target_"].endswith("MuonAdamW") else optim.parameter_groups
    groups = group(network, settings.get("weight_decay", 0.0))
    if backbone_lr != 1:
        groups = optim.backbone_groups(network, groups, settings["lr"], backbone_lr)
    optimizer: Optimizer = locate(node["_target_"], "optimizer")(groups, **settings)
    optimizer.register_load_state_dict_pre_hook(optim.check_state)
    return optimizer


def build_scheduler(
    node: dict[str, Any], monitor: dict[str, Any], optimizer: Optimizer, total_steps: int
) -> dict[str, Any]:
    """Lightning's description of a schedule; `total_steps` counts optimizer steps."""
    target: Any = locate(node["_target_"], "scheduler")
    settings = settings_of(node)
    if inspect.isfunction(target):
        multiplier = partial(_call_schedule, target, total_steps, settings)
        return {"scheduler": LambdaLR(optimizer, multiplier), "interval": "step"}
    if issubclass(target, ReduceLROnPlateau):
        scheduler = target(optimizer, mode=monitor["mode"], **settings)
        return {"scheduler": scheduler, "interval": "step", "monitor": monitor["metric"], "strict": False}
    if takes(target, "total_steps"):
        settings.setdefault("total_steps", total_steps)
    return {"scheduler": target(optimizer, **settings), "interval": "step"}


def _call_schedule(schedule: Callable[..., float], total: int, settings: dict[str, Any], step: int) -> float:
    return schedule(step, total, **settings)


def build_callbacks(config: DictConfig, directory: Path) -> list[Callback]:
    """Some of them work with files of the run in `directory`."""
    values, places = plain(config), {Checkpoints: directory / "checkpoints", Pruning: directory}
    frozen = values["model"].get("freeze", 0)
    callbacks: list[Callback] = [Freeze(epochs=frozen)] if frozen else []  # before those that look at gradients
    for node in values["callbacks"].values():
        if node is not None:
            target = locate(node["_target_"], "callbacks")
            bases = target.__mro__ if inspect.isclass(target) else ()
            place = next((places[base] for base in bases if base in places), None)
            callbacks.append(make(node, "callbacks", **({"directory": place} if place else {})))
    return callbacks


def build_loggers(config: DictConfig, directory: Path) -> list[Logger]:
    """Those that write files are told where; one of the user's own need not be.

    Raises ValueError where the package behind one of ours is not installed.
    """
    return [_build_logger(name, node, directory) for name, node in plain(config)["logger"].items() if node is not None]


def _build_logger(name: str, node: dict[str, Any], directory: Path) -> Logger:
    files = {"save_dir": str(directory)} if takes(locate(node["_target_"], "logger"), "save_dir") else {}
    ours = {"name": directory.name, "run_name": directory.name, "tracking_uri": f"sqlite:///{directory / 'mlflow.db'}"}
    try:
        return make({key: ours.get(key) if value is None else value for key, value in node.items()}, "logger", **files)
    except ModuleNotFoundError as error:
        if name not in LOGGER_EXTRAS:
            raise
        raise ValueError(
            f"logger={name} needs a package that is not installed: {sys.executable} -m pip install -e '.[{name}]' ({error})"
        ) from error


def build_trainer(
    config: DictConfig, directory: Path, *, train: bool = False, callbacks: tuple[Callback, ...] = ()
) -> Trainer:
    """A trainer whose files go to `directory`; for evaluation it logs nothing and keeps no checkpoint."""
    values = plain(config)["trainer"]
    values.update(_validation_rhythm(values))
    if train:
        extras = {
            "callbacks": [*callbacks, *build_callbacks(config, directory)],
            "logger": build_loggers(config, directory),
        }
    else:
        values.update(strategy="auto", devices=1, num_nodes=1)
        extras = {"callbacks": list(callbacks), "logger": False}
    facts = {
        "enable_checkpointing": any(isinstance(x, Checkpoints) for x in extras["callbacks"])
    }  # never Lightning's own
    trainer = make(
        values,
        "trainer",
        default_root_dir=str(directory),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **extras,
        **facts,
    )
    _warn_of_slow_precision(trainer)
    return trainer


def _warn_of_slow_precision(trainer: Trainer) -> None:
    device = trainer.strategy.root_device.type
    for name, dtype in (("bf16", torch.bfloat16), ("16", torch.float16)):
        if str(trainer.precision).startswith(name) and not is_fast(dtype, device):
            kind = str(dtype).removeprefix("torch.")
            say(
                f"trainer.precision={trainer.precision} is slow here: this {device.upper()} emulates {kind} products, "
                "which takes 5 to 20 times as long; trainer.precision=32-true is faster"
            )


def _validation_rhythm(trainer: dict[str, Any]) -> dict[str, Any]:
    """A whole number counts steps over all epochs, a float is a share of every n-th epoch; see also `align_validation`."""
    interval, epochs = trainer["val_check_interval"], trainer.get("check_val_every_n_epoch")
    every = None if isinstance(interval, int) else epochs or 1
    return {"check_val_every_n_epoch": every, "val_check_interval": interval}


def seed_everything(seed: int) -> None:
    """Python, NumPy and torch; the order of samples has its own generators."""
    import pytorch_lightning as pl

    pl.seed_everything(seed, workers=True, verbose=False)
    torch.use_deterministic_algorithms(False)
