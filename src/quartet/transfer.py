"""Where the weights of a new network come from, if not from chance: torchvision, or another run of ours.

Asked for by `model.weights` and `finetune.init_from`, and read once, before training: evaluation and resuming take a run's
own checkpoint and never come here. Everything but the head is taken; the head too where it answers the same question.
A language model may become a classifier: a Transformer then looks both ways with the weights that looked back only.
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
from quartet.callbacks.checkpoint import TRAINING, WEIGHTS
from quartet.cli import in_sweep
from quartet.data.base import DataModule, user_path
from quartet.data.spec import Spec
from quartet.models.image import TorchvisionClassifier, is_file
from quartet.run import Run
from quartet.say import say

STATE = {"state_dict": dict}  # what evaluation needs of a checkpoint, and who starts from its weights
SHOWN = 3  # misfits named in a message; the others are of the same kind


def make_absolute(config: DictConfig) -> None:
    """Write the run or file to start from as an absolute path: the run's config then means the same from everywhere.

    Raises FileNotFoundError where there is no such run, ValueError where its network is of another kind.
    """
    if config.finetune.init_from == "latest" and in_sweep():
        raise ValueError(
            "finetune.init_from=latest would be another run in each job of a sweep; name the run directory"
        )
    source = find_source(config)
    if source is not None:
        config.finetune.init_from = str(source.directory.resolve())
    weights = config.model.get("weights")
    if weights is not None and is_file(weights):
        config.model.weights = user_path(weights)


def find_source(config: DictConfig) -> Run | None:
    """The run that `finetune.init_from` names."""
    where = config.finetune.init_from
    if where is None:
        return None
    try:
        source = Run.open(where, root=config.run.root)
    except FileNotFoundError as error:
        if where == "latest":
            raise
        message = f"finetune.init_from={where} is not a run directory (no config.yaml in it); name a run, or latest"
        raise FileNotFoundError(message) from error
    there, here = (str(c.model._target_).rpartition(".")[2] for c in (opened(source), config))
    if there != here:
        raise ValueError(
            f"finetune.init_from={where} is a {there}, this model a {here}; take that model, or another run"
        )
    return source


def reuse_preprocessing(data: DataModule, source: Run) -> None:
    """What the old network was trained on must be read the same way: texts with the old tokenizer. Before `setup`."""
    taken = data.reuse(source.read("preprocessing.json"))
    if taken:
        say(f"{taken}: that of {source}, whose weights the network takes")


def initialise(
    network: nn.Module, config: DictConfig, spec: Spec, source: Run | None, *, download: bool = True
) -> None:
    """Load the weights that the config asks for; without any the network stays as it is. `download`: where they lack.

    Raises ValueError where they do not fit or are unsafe to load, OSError where they cannot be had.
    """
    weights = config.model.get("weights")
    if weights is not None:
        assert isinstance(network, TorchvisionClassifier)
        _load_torchvision(network, config.model.name, weights, download)
    if source is not None:
        _load_run(network, config, spec, source)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The file's content, on the CPU; ValueError where it is more than tensors and plain containers, or damaged."""
    try:
        _check_sums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is no checkpoint, or holds more than tensors and plain data; it was not loaded"
        ) from error
    except Exception as error:  # whatever a reader of a broken file may stumble over
        raise ValueError(f"{path} is damaged; it was not loaded: bring back a copy of it, or train again") from error


def _check_sums(path: Path) -> None:
    """torch compares no checksums: weights with a flipped bit would be weights."""
    if zipfile.is_zipfile(path):  # torchvision's oldest files are none
        with zipfile.ZipFile(path) as file:
            if torn := file.testzip():
                raise zipfile.BadZipFile(torn)


def load_checkpoint(task: nn.Module, path: Path, parts: dict[str, type] = STATE) -> dict[str, Any]:
    """The weights of a run's checkpoint into its network; ValueError where a part is missing or a weight misfits."""
    checkpoint = _read_parts(path, parts)
    misfits = _load(task, dict(checkpoint["state_dict"]), fresh=())
    if misfits:
        raise ValueError(f"{path} is of another network: {_some(misfits)}; bring back the run's own, or train again")
    return checkpoint


def check_resumable(task: nn.Module, run: Run) -> None:
    """What training goes on from, and what it may end with, before a minute is spent."""
    for path in filter(None, {run.last_checkpoint, run.best_checkpoint}):
        checkpoint = load_checkpoint(task, path, WEIGHTS | TRAINING if path == run.last_checkpoint else WEIGHTS)
        for schedule in checkpoint.get("lr_schedulers", []):
            rates = (
                [*schedule.get("base_lrs", []), *schedule.get("_last_lr", [])] if isinstance(schedule, dict) else [None]
            )
            if not all(isinstance(rate, int | float | Tensor) and math.isfinite(rate) for rate in rates):
                raise ValueError(f"{path} is damaged (a learning rate is not a finite number); train again")


def _read_parts(path: Path, parts: dict[str, type]) -> dict[str, Any]:
    content: Any = read_checkpoint(path)
    checkpoint = content if isinstance(content, dict) else {}
    given = {part: checkpoint.get(part) for part in parts}
    missing = [part for part, value in given.items() if not isinstance(value, parts[part]) or value in ({}, [])]
    if missing or not _is_state(checkpoint["state_dict"]):
        what = ", ".join(missing) or "tensors as state_dict"
        raise ValueError(
            f"{path} is no checkpoint of a run: it has no {what}; bring back the run's own, or train again"
        )
    return checkpoint


def _is_state(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(k, str) and isinstance(x, Tensor) for k, x in values.items())


# a run of ours


def _load_run(network: nn.Module, config: DictConfig, spec: Spec, source: Run) -> None:
    state = _read_parts(source.best_checkpoint, STATE)["state_dict"]
    state = {name.removeprefix("network."): x for name, x in state.items() if name.startswith("network.")}
    head = next(name for name, module in network.named_modules() if module is network.head) + "."
    same_question = _question(source.config, _spec(source)) == _question(config, spec)
    if not same_question:
        state = {name: x for name, x in state.items() if not name.startswith(head)}
    misfits = _load(network, state, fresh=() if same_question else (head,))
    if misfits:
        remedy = "; what differs there: " + ", ".join(_differences(source, config, spec))
        raise ValueError(f"the network of finetune.init_from={source} does not fit this one: {_some(misfits)}{remedy}")
    say(f"weights: those of {source}, {'head included' if same_question else 'with a new head'}")


def _spec(run: Run) -> Spec:
    return Spec.from_json(run.read("preprocessing.json")["spec"])


def _question(config: DictConfig, spec: Spec) -> tuple[str, tuple[str, ...]]:
    return config.task._target_, spec.classes


def _differences(source: Run, config: DictConfig, spec: Spec) -> list[str]:
    """Settings of the model and facts of the data that are not the same there, as they are there."""
    there, here = plain(source.config)["model"], plain(config)["model"]
    names = [name for name in there if there[name] != here.get(name)]
    sizes = _spec(source).sizes
    facts = [name for name in sizes if name in spec.sizes and name != "n_classes" and sizes[name] != spec.sizes[name]]
    return [f"model.{name}={there[name]}" for name in names] + [f"{name}={sizes[name]}" for name in facts]


# torchvision


def _load_torchvision(network: TorchvisionClassifier, name: str, weights: str, download: bool = True) -> None:
    state = _read_file(weights) if is_file(weights) else _download(name, weights, download)
    misfits = _load(network.backbone, network.fit_weights(state), fresh=network.fresh)
    if misfits:
        remedy = f"they must be those of model.name={name}, for images of this size, or model.weights=null"
        raise ValueError(f"model.weights={weights} does not fit the network: {_some(misfits)}; {remedy}")
    say(f"weights: {weights} of torchvision's {name}, with a new head")


def _read_file(path: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"model.weights={path}: there is no such file")
    state = read_checkpoint(Path(path))
    if not _is_state(state):
        raise ValueError(f"model.weights={path} is no file of weights as torchvision publishes them")
    return state


def _download(name: str, weights: str, allowed: bool) -> dict[str, Tensor]:
    """From torch's cache, or from where torchvision keeps them; the file's hash is checked."""
    entry = models.get_model_weights(name)[weights]
    cached = Path(torch.hub.get_dir(), "checkpoints", entry.url.rpartition("/")[2])
    if not allowed and not cached.is_file():
        raise FileNotFoundError(
            f"model.weights={weights}: {cached} is not there, and a run that is read back fetches nothing; "
            f"start a new run with model.weights={weights}, or put the file there"
        )
    try:
        return entry.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
    except OSError as error:  # urllib's errors are such
        reason = getattr(error, "reason", error)
        remedy = "without a network bring the file from elsewhere and give model.weights=<its path, .pth and all>"
        raise ConnectionError(f"model.weights={weights}: cannot load {entry.url} ({reason}); {remedy}") from error


# loading


def _load(module: nn.Module, state: dict[str, Tensor], *, fresh: tuple[str, ...]) -> list[str]:
    """Load `state` into `module`, of which what begins with `fresh` stays new; a phrase for each tensor that misfits."""
    own = module.state_dict()
    other = {name for name in state.keys() & own.keys() if state[name].shape != own[name].shape}
    misfits = [f"{name} is {_shape(state[name])} there and {_shape(own[name])} here" for name in own if name in other]
    for name in other:
        del state[name]  # in place: torch keeps the versions of modules beside the tensors
    missing, unexpected = module.load_state_dict(state, strict=False)
    misfits += [f"{name} is not there" for name in missing if name not in other and not name.startswith(fresh)]
    return misfits + [f"{name} is not here" for name in unexpected]


def _shape(x: Tensor) -> str:
    return "×".join(map(str, x.shape)) or "a number"


def _some(misfits: list[str]) -> str:
    more = len(misfits) - SHOWN
    return ", ".join(misfits[:SHOWN]) + (f" and {more} more" if more > 0 else "")
