"""Mistakes in a config, found before anything is built or written; all of them together. Imports no torch."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from quartet.cli import fits


class Rule(typing.NamedTuple):
    """What the value of a key must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_number, value))


COUNT = Rule("a whole number of at least 1", lambda v: _whole(v) and v >= 1)
LENGTH = Rule("a whole number of at least 1, or -1 for no limit", lambda v: _whole(v) and (v == -1 or v >= 1))
POSITIVE = Rule("a number above 0", lambda v: _number(v) and v > 0)
NOT_NEGATIVE = Rule("a number of at least 0", lambda v: _number(v) and v >= 0)
SHARE = Rule("a number from 0 to 1", lambda v: _number(v) and 0 <= v <= 1)
PROBABILITY = Rule("a number from 0 to below 1", lambda v: _number(v) and 0 <= v < 1)

# which way a metric improves; a test holds it against what the tasks log
DIRECTIONS = {
    **dict.fromkeys(("loss", "perplexity", "bits_per_byte", "rmse", "mae", "calibration_error"), "min"),
    **dict.fromkeys(("accuracy", "precision", "recall", "f1", "auroc", "average_precision", "r2"), "max"),
}

RULES = {
    "seed": Rule("a whole number from 0 to 4294967295", lambda v: _whole(v) and 0 <= v < 2**32),  # NumPy takes no other
    "monitor.mode": Rule("min, max or null", lambda v: v in (None, "min", "max")),
    "data.batch_size": COUNT,
    "data.context_length": Rule("a whole number of at least 2", lambda v: _whole(v) and v >= 2),
    "data.vocab_size": COUNT,
    "data.split": Rule(
        "three shares that sum to 1, such as [0.8,0.1,0.1]",
        lambda v: _numbers(v) and len(v) == 3 and min(v) >= 0 and abs(sum(v) - 1) < 1e-6,
    ),
    "model.dropout": PROBABILITY,
    "model.init_from": Rule(
        "null, the directory of a run, or latest", lambda v: v is None or (isinstance(v, str) and bool(v))
    ),
    "model.freeze": Rule("a whole number of epochs, at least 0", lambda v: _whole(v) and v >= 0),
    "model.backbone_lr": NOT_NEGATIVE,
    "optimizer.lr": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.momentum": PROBABILITY,
    "scheduler.warmup": SHARE,
    "task.l1": NOT_NEGATIVE,
    "task.l2": NOT_NEGATIVE,
    "task.label_smoothing": PROBABILITY,
    "trainer.max_steps": LENGTH,
    "trainer.max_epochs": LENGTH,
    "trainer.val_check_interval": Rule(
        "a whole number of steps, or a share of an epoch such as 0.5",
        lambda v: COUNT.holds(v) or (isinstance(v, float) and 0 < v <= 1),
    ),
    "trainer.check_val_every_n_epoch": Rule(
        "a whole number of at least 1, or null", lambda v: v is None or COUNT.holds(v)
    ),
    "trainer.overfit_batches": Rule(
        "a whole number of batches of at least 0, or a share of them such as 0.1",
        lambda v: (_whole(v) and v >= 0) or (isinstance(v, float) and 0 <= v <= 1),
    ),
    "trainer.accumulate_grad_batches": COUNT,
    "trainer.log_every_n_steps": COUNT,
    "trainer.num_nodes": COUNT,
    "trainer.max_restarts": Rule("a whole number of at least 0", lambda v: _whole(v) and v >= 0),
    "callbacks.checkpoint.every_n_steps": Rule(
        "a whole number of at least 1, or null", lambda v: v is None or COUNT.holds(v)
    ),
    "callbacks.checkpoint.every_minutes": Rule("a number above 0, or null", lambda v: v is None or POSITIVE.holds(v)),
    "trainer.gradient_clip_val": Rule("a number of at least 0, or null", lambda v: v is None or NOT_NEGATIVE.holds(v)),
}


def settle_monitor(config: DictConfig) -> None:
    """Fill in `monitor.mode`, and that of callbacks, where it is null: the direction in which the metric improves.

    Raises ValueError where a direction contradicts its metric, here or in a callback, and where that of a metric of the
    user's own is not given.
    """
    monitor = config.monitor
    if monitor.mode is None:
        monitor.mode = direction(monitor.metric)
        if monitor.mode is None:
            raise ValueError(
                f"monitor.mode: give min or max, as {monitor.metric} is not a metric of Quartet's own tasks"
            )
    watching = {"monitor": (monitor.metric, monitor.mode)}
    for name, node in config.callbacks.items():
        if node is None or node.get("monitor") is None or "mode" not in node:
            continue
        if node.mode is None:  # a run's file has no references left
            node.mode = monitor.mode if node.monitor == monitor.metric else direction(node.monitor)
        if node.mode is not None:
            watching[f"callbacks.{name}"] = (node.monitor, node.mode)
    problems = [direction_problem(f"{place}.mode", *watched) for place, watched in watching.items()]
    if any(problems):
        raise ValueError("\n".join(filter(None, problems)))


def direction(metric: str) -> str | None:
    """min or max, by the last part of a metric's name; None where it is not one of ours."""
    return DIRECTIONS.get(str(metric).rpartition("/")[2])


def direction_problem(key: str, metric: str, mode: str) -> str | None:
    better = direction(metric)
    if mode not in ("min", "max") or better in (None, mode):
        return None
    words = {"min": "the smaller", "max": "the larger"}[better]
    return f"{key}={mode} contradicts {metric}, which is better {words} it is; leave it out, or give {key}={better}"


def check_pairing(config: DictConfig) -> None:
    """Raise ValueError where the model cannot read the data; nothing else is worth saying then."""
    problems = list(pairing_problems(config))
    if problems:
        raise ValueError("\n".join(problems))


def pairing_problems(config: DictConfig) -> Iterator[str]:
    """A model says what it `accepts`, data what they `provide`."""
    model, data = config.model, config.data
    if model.accepts != data.provides:
        yield (
            f"this model takes {model.accepts}, these data are {data.provides}; "
            f"data that fit the model: {', '.join(fits('data', 'provides', model.accepts))}; "
            f"models that fit the data: {', '.join(fits('model', 'accepts', data.provides))}"
        )


def value_problems(config: DictConfig) -> Iterator[str]:
    values: Any = OmegaConf.to_container(config, resolve=True)
    from quartet.data.splits import fold_problem  # numpy: late, a wrong pair is refused before it is imported

    folds, fold = (values["data"].get(key) for key in ("folds", "fold"))
    if all(value is None or _whole(value) for value in (folds, fold)):
        yield from filter(None, [fold_problem(folds, fold)])
    for key, rule in RULES.items():
        *groups, name = key.split(".")
        here = values
        for group in groups:
            here = (here or {}).get(group)
        if isinstance(here, dict) and name in here and not rule.holds(here[name]):
            yield f"{key} must be {rule.words}, not {here[name]!r}"
    yield from _length_problems(values["trainer"])
    yield from _start_problems(values["model"])
    yield from _sharding_problems(values)


def _length_problems(trainer: dict[str, Any]) -> Iterator[str]:
    """How long training goes on, in whole accumulation windows, and when it is validated."""
    steps, epochs, interval = (trainer.get(key) for key in ("max_steps", "max_epochs", "val_check_interval"))
    every, window, batches = (
        trainer.get(key) for key in ("check_val_every_n_epoch", "accumulate_grad_batches", "limit_train_batches")
    )
    if steps == -1 and epochs == -1:
        yield (
            "trainer.max_steps and trainer.max_epochs are both -1, and schedules are shares of a run; give one of them, "
            "with trainer.max_time the one that would be reached without it"
        )
    if every is not None and _whole(interval):
        yield (
            f"trainer.check_val_every_n_epoch={every} counts epochs and trainer.val_check_interval={interval} steps; "
            "give trainer.val_check_interval=1.0 too, or leave the epochs out"
        )
    if isinstance(every, int) and isinstance(epochs, int) and steps == -1 and every > epochs > 0:
        yield f"trainer.check_val_every_n_epoch={every} is never reached in trainer.max_epochs={epochs}; take fewer"
    if isinstance(window, int) and window > 1 and batches not in (None, 1.0):
        if not isinstance(batches, int):
            yield f"trainer.limit_train_batches={batches} must be a whole number of batches where gradients accumulate"
        elif batches % window:
            yield (
                f"trainer.limit_train_batches={batches} must be a multiple of trainer.accumulate_grad_batches={window}, "
                "so that every step has as many samples"
            )


def _start_problems(model: dict[str, Any]) -> Iterator[str]:
    """One trained network to start from, and nothing frozen without one."""
    ways = [key for key in ("weights", "init_from") if key in model]
    given = [key for key in ways if model[key] is not None]
    if len(given) > 1:
        yield "model.weights and model.init_from both say where the network starts from; give one of them"
    if model.get("freeze") and not given:
        places = " or ".join(f"model.{key}" for key in ways)
        yield f"model.freeze={model['freeze']} would freeze a backbone that nothing has trained; give {places} too"


def _sharding_problems(values: dict[str, Any]) -> Iterator[str]:
    sharded = isinstance(values["trainer"].get("strategy"), dict)
    if sharded and values["callbacks"].get("ema"):
        yield "callbacks.ema averages whole weights, trainer=fsdp holds shares; take trainer=ddp, or leave callbacks=ema out"


# what a constructor says about its arguments


def signature_problems(target: Callable[..., Any], settings: dict[str, Any], group: str) -> Iterator[str]:
    """Settings that `target` does not take, or whose plain type (int, float, bool, str, list, None) is another."""
    parameters, hints, open_ended = _parameters(target)
    for name, value in settings.items():
        if name not in parameters and not open_ended:
            yield f"{group}.{name}: {target.__name__} takes no such setting"
        elif name in hints and f"{group}.{name}" not in RULES and not _is_a(value, hints[name]):
            yield f"{group}.{name} must be {_words(hints[name])}, not {value!r}"


def _parameters(target: Callable[..., Any]) -> tuple[set[str], dict[str, Any], bool]:
    """Names of the arguments, their types, and whether others are taken; **keywords are the parent class's arguments."""
    names: set[str] = set()
    hints: dict[str, Any] = {}
    if getattr(target, "__init__", None) is object.__init__:  # whose signature says it takes everything
        return names, hints, False
    for owner in target.__mro__ if inspect.isclass(target) else [target]:
        call = owner.__init__ if inspect.isclass(owner) else owner
        parameters = inspect.signature(call).parameters
        names |= parameters.keys()
        hints = {**types_of(call), **hints}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return names, hints, False
    return names, hints, True


def takes(target: Callable[..., Any], name: str) -> bool:
    """Whether an argument of this name may be given."""
    names, _, open_ended = _parameters(target)
    return name in names or open_ended


def required(target: Callable[..., Any]) -> set[str]:
    """Arguments that have to be given by name."""
    parameters = inspect.signature(target).parameters.values()
    many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name for p in parameters if p.default is p.empty and p.kind not in many}


def types_of(call: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(call)
    except (NameError, TypeError):
        return {}


def _is_a(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, part) for part in typing.get_args(hint))
    if origin is list:
        inner = typing.get_args(hint)[0]
        return isinstance(value, list) and all(_is_a(item, inner) for item in value)
    if hint is float:
        return _number(value)
    if hint is int:
        return _whole(value)
    if hint is type(None):
        return value is None
    return isinstance(value, hint) if hint in (bool, str) else True  # anything richer is the constructor's business


def _words(hint: Any) -> str:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_words(part) for part in typing.get_args(hint))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(hint, str(hint).replace("list[", "a list of [") if typing.get_origin(hint) else str(hint))
