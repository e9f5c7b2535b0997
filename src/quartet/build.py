"""From a config to a data module, a network, a task, an optimizer, a schedule, callbacks, loggers and a trainer."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from quartet import config as configs
from quartet import optim, trust
from quartet.callbacks.freeze import Freeze
from quartet.callbacks.profile import Profile
from quartet.config import arguments_of, is_users, plain, settle_monitor
from quartet.data.base import DataModule, user_path
from quartet.data.spec import Spec
from quartet.old_configs import upgrade
from quartet.run import Run
from quartet.say import printable, say
from quartet.signatures import parameters
from quartet.system import loop
from quartet.system.hardware import is_fast, is_out_of_memory
from quartet.tasks.base import Task

KINDS: dict[str, tuple[type, ...]] = {  # what the nodes of each group make
    "data": (DataModule,),
    "model": (nn.Module,),
    "task": (Task,),
    "optimizer": (Optimizer,),
    "scheduler": (LRScheduler, float),
    "trainer": (Trainer,),
    "callbacks": (Callback,),
    "logger": (Logger,),
}
LOGGER_EXTRAS = ("wandb", "mlflow")  # of pyproject.toml
# what Python raises if a file has another shape than the code that reads it expects
STUMBLES = (ArithmeticError, AttributeError, LookupError, TypeError)


def locate(target: Any, group: str | None = None, among: set[str] | None = None) -> Callable[..., Any]:
    """The class or function that a node of this group names; ValueError unless it may be used there."""
    return configs.locate(target, group, KINDS.get(group or "", ()), among)


def make(node: dict[str, Any], group: str, /, *args: Any, **facts: Any) -> Any:
    return configs.instantiate(node, group, KINDS[group], *args, **facts)


def val_metrics(config: Any) -> list[str]:
    """What the task logs after each validation."""
    return configs.val_metrics(config, KINDS)


# configs


def check(config: DictConfig) -> None:
    """Everything that can be known to be wrong before data are read: one ValueError with a line for each problem.

    Fills in `monitor.mode`. The config is the user's own: it may use the packages that it names.
    """
    upgrade(config)
    trust.grant(trust.packages(plain(config)))
    settle_monitor(config)
    configs.check(config, KINDS)


def opened(run: Run, data_path: str | None = None) -> DictConfig:
    """The config of a run, checked like one from the command line: it may come from elsewhere, as the run may.

    `data_path`: where its data are now. Raises ValueError if they are not read from a path.
    """
    # 1. its data may have moved since
    config, where = run.config, run.directory / "config.yaml"
    if data_path is not None:
        if config.data.get("path") is None:
            raise ValueError(f"data.path={data_path}: {run} reads no files of yours; leave it out")
        config.data.path = user_path(data_path)
    # 2. believe nothing that it says, least of all whom to trust
    try:
        settle_monitor(config)
        configs.check(config, KINDS, trust.trusted() | run.trusted)
        if not run.may_download:
            _forbid_downloads(config.data)
    except ValueError as error:
        if run.may_download:  # the user has just typed it
            raise
        raise ValueError("\n".join(f"{where}: {line}" for line in str(error).splitlines())) from error
    except Exception as error:  # parts are missing, or have another shape
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{where} is not the config of a run ({reason}); restore the file, or train again") from error
    return config


def _forbid_downloads(node: DictConfig) -> None:
    """A run that is read back downloads nothing: somebody else may have written what it names."""
    for key in node:
        if key == "download":
            node[key] = False
        elif isinstance(node.get(key), DictConfig):
            _forbid_downloads(node[key])


# data


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
    try:
        data = build_data(config, run.read(path.name))
    except ValueError as error:
        raise ValueError(str(error).replace(path.name, str(path), 1) if path.name in str(error) else error) from error
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
    """Errors of these kinds are those of a damaged file: whatever its reader may stumble over."""
    try:
        yield
    except kinds as error:
        reason = printable(f"{type(error).__name__}: {error}")
        raise ValueError(f"{name} is not that of these data ({reason}); restore it, or train again") from error


# network, task, optimizer, schedule


def build_network(config: DictConfig, spec: Spec) -> nn.Module:
    """The network, with the sizes of the data; one of the user's own gets those that its constructor names."""
    values = plain(config)
    node, sizes = values["model"], spec.sizes
    target = node["_target_"]
    # 1. a network of the user's own need not name every size, and the data may lack what it needs
    if is_users(target):
        known = parameters(locate(target, "model"))
        sizes = {name: size for name, size in sizes.items() if known.accept(name)}
        missing = known.required - sizes.keys() - node.keys()
        if missing:
            raise ValueError(
                f"model: {target} needs {', '.join(sorted(missing))}; the data give {', '.join(spec.sizes)}, "
                "and the rest belongs in the config, such as +model.width=64"
            )
    # 2. our own get all sizes; those of a damaged file may be absurd
    try:
        network = make(node, "model", **sizes)
    except (*STUMBLES, RuntimeError) as error:
        if is_users(target) or is_out_of_memory(error):
            raise
        raise ValueError(
            f"{target} cannot be built with the sizes of the data ({printable(str(error))}); "
            "if preprocessing.json of a run has them, it is damaged: restore it, or train again"
        ) from error
    # 3. fine-tuning has to know the head
    asked = [
        f"finetune.{key}" for key, neutral in (("freeze", 0), ("backbone_lr", 1)) if values["finetune"][key] != neutral
    ]
    if asked and not isinstance(getattr(network, "head", None), nn.Module):
        raise ValueError(f"{' and '.join(asked)} spares the head, and {target} has no module named head")
    return network


def build_task(config: DictConfig, spec: Spec, *, train: bool = False) -> Task:
    """The task around its network; for evaluation it needs neither optimizer nor schedule."""
    network, values, optimisation = build_network(config, spec), plain(config), {}
    if train:
        rate = values["finetune"]["backbone_lr"]
        node = values["optimizer"]
        if values["trainer"]["precision"] == "16-mixed" and "fused" in node:
            # a fused step undoes the scaling of gradients itself, after they have been clipped
            node = {**node, "fused": False}
        optimisation["make_optimizer"] = partial(build_optimizer, node, backbone_lr=rate)
        optimisation["make_scheduler"] = partial(build_scheduler, values["scheduler"], values["monitor"])
    return make(values["task"], "task", network=network, spec=spec, **optimisation)


def build_optimizer(node: dict[str, Any], network: nn.Module, *, backbone_lr: float = 1.0) -> Optimizer:
    """An optimizer with the parameter groups that its class wants, else with weights that decay and others that do not.

    `backbone_lr` multiplies the learning rate of all but the head.
    """
    group = getattr(locate(node["_target_"], "optimizer"), "parameter_groups", optim.parameter_groups)
    groups = group(network, node.get("weight_decay", 0.0))
    if backbone_lr != 1:
        groups = optim.backbone_groups(network, groups, node["lr"], backbone_lr)
    optimizer: Optimizer = make(node, "optimizer", groups)
    optimizer.register_load_state_dict_pre_hook(optim.check_state)
    return optimizer


def build_scheduler(
    node: dict[str, Any], monitor: dict[str, Any], optimizer: Optimizer, total_steps: int
) -> dict[str, Any]:
    """Lightning's description of a schedule; `total_steps` counts optimizer steps."""
    target: Any = locate(node["_target_"], "scheduler")
    if inspect.isfunction(target):  # f(step, total_steps, …) -> multiplier of the learning rate
        scheduler: Any = optim.Schedule(optimizer, partial(_multiplier, target, total_steps, arguments_of(node)))
    elif issubclass(target, ReduceLROnPlateau):
        scheduler = make(node, "scheduler", optimizer, mode=monitor["mode"])
        return {"scheduler": scheduler, "interval": "step", "monitor": monitor["metric"], "strict": False}
    else:
        length = {"total_steps": total_steps} if parameters(target).accept("total_steps") else {}
        scheduler = make({**length, **node}, "scheduler", optimizer)
    return {"scheduler": scheduler, "interval": "step"}


def _multiplier(schedule: Callable[..., float], total_steps: int, arguments: dict[str, Any], step: int) -> float:
    return schedule(step, total_steps, **arguments)  # a function of this module: LambdaLR is saved in checkpoints


# callbacks, loggers, trainer


def build_callbacks(config: DictConfig, directory: Path) -> list[Callback]:
    """The callbacks of a run; those whose constructor names a `run_directory` get that of the run."""
    values = plain(config)
    frozen = values["finetune"]["freeze"]
    callbacks: list[Callback] = [Freeze(epochs=frozen)] if frozen else []  # before those that look at gradients
    for node in values["callbacks"].values():
        if node is not None:
            wants = "run_directory" in parameters(locate(node["_target_"], "callbacks")).hints
            callbacks.append(make(node, "callbacks", **({"run_directory": directory} if wants else {})))
    return callbacks


def build_loggers(config: DictConfig, directory: Path) -> list[Logger]:
    """The loggers of a run; those that write files write them into it.

    Raises ValueError if the package behind one of Quartet's own choices is not installed.
    """
    ours = {"name": directory.name, "run_name": directory.name, "tracking_uri": f"sqlite:///{directory / 'mlflow.db'}"}
    loggers = []
    for name, node in plain(config)["logger"].items():
        if node is None:
            continue
        writes = parameters(locate(node["_target_"], "logger")).accept("save_dir")
        filled = {key: ours.get(key) if value is None else value for key, value in node.items()}
        try:
            loggers.append(make(filled, "logger", **({"save_dir": str(directory)} if writes else {})))
        except ModuleNotFoundError as error:
            if name not in LOGGER_EXTRAS:
                raise
            command = f"{sys.executable} -m pip install -e '.[{name}]'"
            raise ValueError(f"logger={name} needs a package that is not installed: {command} ({error})") from error
    return loggers


def build_trainer(
    config: DictConfig, directory: Path, *, train: bool = False, callbacks: tuple[Callback, ...] = ()
) -> Trainer:
    """A trainer whose files go to `directory`; for evaluation it logs nothing and keeps no checkpoint."""
    # evaluation is always of one device: several would have to share out samples, some of them twice
    values, watching = plain(config)["trainer"], list(callbacks)
    loggers: list[Logger] | bool = False
    profiler = values.pop("profiler", None)
    if train and profiler is not None:
        profile = Profile(profiler, directory)
        watching.append(profile)
        values["profiler"] = profile.profiler
    if train:
        watching += build_callbacks(config, directory)
        loggers = build_loggers(config, directory)
    else:
        values.update(strategy="auto", devices=1, num_nodes=1)
    # an integer interval counts steps over all epochs, a float is a share of every n-th epoch; see also `align_validation`
    steps = isinstance(values["val_check_interval"], int)
    values["check_val_every_n_epoch"] = None if steps else values.get("check_val_every_n_epoch") or 1
    trainer = make(
        values,
        "trainer",
        callbacks=watching,
        logger=loggers,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in watching),  # never Lightning's own
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=str(directory),
    )
    loop.install(trainer)
    # nothing fails where a format is emulated, so a person would not learn why it is slow
    device = trainer.strategy.root_device.type
    for name, dtype in (("bf16", torch.bfloat16), ("16", torch.float16)):
        if str(trainer.precision).startswith(name) and not is_fast(dtype, device):
            kind = str(dtype).removeprefix("torch.")
            say(
                f"trainer.precision={trainer.precision} is slow here: this {device.upper()} emulates {kind} products, "
                "which takes 5 to 20 times as long; trainer.precision=32-true is faster"
            )
    return trainer


def seed_everything(seed: int) -> None:
    """Python, NumPy and torch; the order of samples has its own generators."""
    pl.seed_everything(seed, workers=True, verbose=False)
    torch.use_deterministic_algorithms(False)
