"""Checkpoints that are read safely, and the weights that a new network starts from: torchvision's, or another run's.

`model.weights` and `finetune.init_from` are read once, before training: evaluation and resuming use the run's own
checkpoint. Everything but the head is taken; the head too if the task and its classes are the same. A language model may
become a classifier: a Transformer then looks both ways with the weights that looked back only.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision import models

from quartet.build import opened, plain
from quartet.data.base import DataModule
from quartet.data.spec import Spec
from quartet.engine.checkpoint import TRAINING, WEIGHTS
from quartet.models.image import TorchvisionClassifier, is_file
from quartet.run import Run
from quartet.say import say

STATE = {"state_dict": dict}  # what evaluation needs of a checkpoint, and who starts from its weights
SHOWN = 3  # misfits named in a message; the others are of the same kind


# checkpoints


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The file's content, on the CPU; ValueError if it is more than tensors and plain containers, or damaged."""
    try:
        # torch compares no checksums; torchvision's oldest files are no archives
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                if torn := file.testzip():
                    raise zipfile.BadZipFile(torn)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is not a checkpoint, or holds more than tensors and plain data; it was not loaded"
        ) from error
    except Exception as error:  # whatever a reader of a broken file may stumble over
        raise ValueError(f"{path} is damaged; it was not loaded: restore a copy of it, or train again") from error


def _read_parts(path: Path, parts: dict[str, type]) -> dict[str, Any]:
    content: Any = read_checkpoint(path)
    checkpoint = content if isinstance(content, dict) else {}
    given = {part: checkpoint.get(part) for part in parts}
    missing = [part for part, value in given.items() if not isinstance(value, parts[part]) or value in ({}, [])]
    if missing or not _is_state(checkpoint["state_dict"]):
        what = ", ".join(missing) or "tensors as state_dict"
        raise ValueError(
            f"{path} is not a checkpoint of a run: it has no {what}; restore the run's own, or train again"
        )
    return checkpoint


def _is_state(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(k, str) and isinstance(x, Tensor) for k, x in values.items())


def load_checkpoint(task: nn.Module, path: Path, parts: dict[str, type] = STATE) -> dict[str, Any]:
    """Load the weights of a run's checkpoint into its network; ValueError if a part is missing or a weight misfits."""
    checkpoint = _read_parts(path, parts)
    misfits = _load(task, dict(checkpoint["state_dict"]), fresh=())
    if misfits:
        raise ValueError(f"{path} is of another network: {misfits}; restore the run's own, or train again")
    return checkpoint


def check_resumable(task: nn.Module, run: Run) -> None:
    """Read what training resumes from, and what it may end with, before a minute is spent."""
    for path in filter(None, {run.last_checkpoint, run.best_checkpoint}):
        checkpoint = load_checkpoint(task, path, WEIGHTS | TRAINING if path == run.last_checkpoint else WEIGHTS)
        for schedule in checkpoint.get("lr_schedulers", []):
            known = isinstance(schedule, dict)
            rates = [*schedule.get("base_lrs", []), *schedule.get("_last_lr", [])] if known else [None]
            if not all(isinstance(rate, int | float | Tensor) and math.isfinite(rate) for rate in rates):
                raise ValueError(f"{path} is damaged (a learning rate is not a finite number); train again")


def _load(module: nn.Module, state: dict[str, Tensor], *, fresh: tuple[str, ...]) -> str:
    """Load `state` into `module`, except what begins with `fresh`; the tensors that misfit, in words, or ""."""

    def shape(x: Tensor) -> str:
        return "×".join(map(str, x.shape)) or "a number"

    own = module.state_dict()
    other = {name for name in state.keys() & own.keys() if state[name].shape != own[name].shape}
    misfits = [f"{name} is {shape(state[name])} there and {shape(own[name])} here" for name in own if name in other]
    # in place: torch keeps the versions of modules beside the tensors
    for name in other:
        del state[name]
    missing, unexpected = module.load_state_dict(state, strict=False)
    misfits += [f"{name} is not there" for name in missing if name not in other and not name.startswith(fresh)]
    misfits += [f"{name} is not here" for name in unexpected]
    more = f" and {len(misfits) - SHOWN} more" if len(misfits) > SHOWN else ""
    return ", ".join(misfits[:SHOWN]) + more


# starting weights


def find_source(config: DictConfig) -> Run | None:
    """The run that `finetune.init_from` names; ValueError if its network is of another kind."""
    where = config.finetune.init_from
    if where is None:
        return None
    source = Run.open(where, root=config.run.root)
    there, here = (str(c.model._target_).rpartition(".")[2] for c in (opened(source), config))
    if there != here:
        raise ValueError(
            f"finetune.init_from={where} is a {there}, this model a {here}; use that model, or another run"
        )
    return source


def reuse_preprocessing(data: DataModule, source: Run) -> None:
    """Read the data as those of the old network were read: texts with the old tokenizer. Before `setup`."""
    taken = data.reuse(source.read("preprocessing.json"))
    if taken:
        say(f"{taken}: that of {source}, whose weights the network takes")


def initialise(
    network: nn.Module, config: DictConfig, spec: Spec, source: Run | None, *, download: bool = True
) -> None:
    """Load the weights that the config asks for, if any; `download`: if they are not on this machine.

    Raises ValueError if they do not fit or are unsafe to load, OSError if they cannot be had.
    """
    weights = config.model.get("weights")
    if weights is not None:
        assert isinstance(network, TorchvisionClassifier)
        load_torchvision(network, config.model.name, weights, download)
    if source is None:
        return

    # another run's: its head too, if the task and the classes are the same
    state = _read_parts(source.best_checkpoint, STATE)["state_dict"]
    state = {name.removeprefix("network."): x for name, x in state.items() if name.startswith("network.")}
    head = next(name for name, module in network.named_modules() if module is network.head) + "."
    there = source.config
    spec_there = Spec.from_json(source.read("preprocessing.json")["spec"])
    same_output = (there.task._target_, spec_there.classes) == (config.task._target_, spec.classes)
    if not same_output:
        state = {name: x for name, x in state.items() if not name.startswith(head)}
    misfits = _load(network, state, fresh=() if same_output else (head,))
    if misfits:
        # name the settings of the model and the facts of the data that differ, as they are there
        model, own = plain(there)["model"], plain(config)["model"]
        differences = [f"model.{name}={value}" for name, value in model.items() if value != own.get(name)]
        sizes = {name: size for name, size in spec_there.sizes.items() if name in spec.sizes and name != "n_classes"}
        differences += [f"{name}={size}" for name, size in sizes.items() if size != spec.sizes[name]]
        remedy = f"; what differs there: {', '.join(differences)}"
        raise ValueError(f"the network of finetune.init_from={source} does not fit this one: {misfits}{remedy}")
    say(f"weights: those of {source}, {'head included' if same_output else 'with a new head'}")


def load_torchvision(network: TorchvisionClassifier, name: str, weights: str, download: bool = True) -> None:
    """Weights that torchvision publishes, from a file, torch's cache or the network; the file's hash is checked."""
    if is_file(weights):
        if not Path(weights).is_file():
            raise FileNotFoundError(f"model.weights={weights}: there is no such file")
        state: Any = read_checkpoint(Path(weights))
        if not _is_state(state):
            raise ValueError(f"model.weights={weights} is not a file of weights as torchvision publishes them")
    else:
        entry = models.get_model_weights(name)[weights]
        cached = Path(torch.hub.get_dir(), "checkpoints", entry.url.rpartition("/")[2])
        if not download and not cached.is_file():
            raise FileNotFoundError(
                f"model.weights={weights}: {cached} is not there, and a run that is read back fetches nothing; "
                f"start a new run with model.weights={weights}, or put the file there"
            )
        try:
            state = entry.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
        except OSError as error:  # urllib's errors are such
            reason = getattr(error, "reason", error)
            remedy = "without a network bring the file from elsewhere and give model.weights=<its path, .pth and all>"
            raise ConnectionError(f"model.weights={weights}: cannot load {entry.url} ({reason}); {remedy}") from error
    misfits = _load(network.backbone, network.fit_weights(state), fresh=network.fresh)
    if misfits:
        remedy = f"they must be those of model.name={name}, for images of this size, or model.weights=null"
        raise ValueError(f"model.weights={weights} does not fit the network: {misfits}; {remedy}")
    say(f"weights: {weights} of torchvision's {name}, with a new head")
