"""What a config may say and what is made of it: the allow-list, validation from signatures, instantiation. Imports no torch.

A node with a `_target_` is a call: its other keys are the arguments of that class or function. A config that is read back
from a run is data from outside, so a `_target_` may name nothing but parts of Quartet, of the libraries it is built on, and
of packages that the user trusts (`trust.py`).
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeAlias

from omegaconf import DictConfig, OmegaConf

from quartet import trust
from quartet.config_groups import fitting
from quartet.say import printable
from quartet.signatures import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Rule,
    accepts,
    problems,
    refusal,
    refuse,
)

GROUPS = ("data", "model", "task", "optimizer", "scheduler", "trainer")  # one node each
SEVERAL = ("callbacks", "logger")  # a node for each name, or null
HYDRA_KEYS = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")

StepsOrNoLimit = Annotated[int, Rule("an integer of at least 1, or -1 for no limit", lambda n: n == -1 or n >= 1)]
Shares = Annotated[
    list[Fraction],
    Rule(
        "three shares that sum to 1, such as [0.8,0.1,0.1]",
        lambda shares: len(shares) == 3 and abs(sum(shares) - 1) < 1e-6,
    ),
]
Share: TypeAlias = Annotated[
    float, Rule("a fraction above 0 and at most 1", lambda x: isinstance(x, float) and 0 < x <= 1)
]
StepsOrShare: TypeAlias = PositiveInt | Share
CountOrFraction: TypeAlias = NonNegativeInt | Fraction
OptionalPositiveInt: TypeAlias = PositiveInt | None
OptionalPositiveFloat: TypeAlias = PositiveFloat | None
OptionalNonNegativeFloat: TypeAlias = NonNegativeFloat | None
OptionalRun: TypeAlias = Annotated[str, Rule("the directory of a run, or latest", bool)] | None

# what none of our constructors annotates: keys that are not arguments, and arguments of libraries
SETTINGS: dict[str, Any] = {
    "seed": Annotated[int, Rule("an integer from 0 to 4294967295", lambda n: 0 <= n < 2**32)],  # NumPy's limit
    **dict.fromkeys(("find_lr", "find_batch_size", "summary"), bool),
    "monitor.mode": Literal["min", "max"] | None,
    "finetune.init_from": OptionalRun,
    "finetune.freeze": NonNegativeInt,
    "finetune.backbone_lr": NonNegativeFloat,
    "workers.max_restarts": NonNegativeInt,
    "workers.rendezvous": str | None,
    "data.batch_size": PositiveInt,
    "data.context_length": Annotated[int, Rule("an integer of at least 2", lambda n: n >= 2)],
    "data.vocab_size": PositiveInt,
    "data.split": Shares,
    "model.dropout": Probability,
    "optimizer.lr": PositiveFloat,
    "optimizer.weight_decay": NonNegativeFloat,
    "optimizer.momentum": Probability,
    "scheduler.warmup": Fraction,
    **dict.fromkeys(("task.l1", "task.l2"), NonNegativeFloat),
    "task.label_smoothing": Probability,
    "trainer.max_steps": StepsOrNoLimit,
    "trainer.max_epochs": StepsOrNoLimit,
    "trainer.val_check_interval": StepsOrShare,
    "trainer.check_val_every_n_epoch": OptionalPositiveInt,
    "trainer.overfit_batches": CountOrFraction,
    "trainer.accumulate_grad_batches": PositiveInt,
    "trainer.log_every_n_steps": PositiveInt,
    "trainer.profiler": Literal["simple", "advanced", "pytorch"] | None,
    "trainer.num_nodes": PositiveInt,
    "trainer.gradient_clip_val": OptionalNonNegativeFloat,
    "callbacks.checkpoint.every_n_steps": OptionalPositiveInt,
    "callbacks.checkpoint.every_minutes": OptionalPositiveFloat,
}

# text that leads out of a run's directory, arguments of libraries that say where to write, and harmless fields of file names
OUTSIDE, WHERE = re.compile(r"^[/\\~]|^\w+:[/\\]|(^|[/\\])\.\.([/\\]|$)"), re.compile(r"(dir|path|uri|location)$")
FIELD = re.compile(r"\{[\w/]+(:0?\d?\d?(\.\d)?[defg]?)?\}")  # {epoch}, {val/loss:.2f}

# which way a metric improves; a test compares this with what the tasks log
DIRECTIONS = {
    **dict.fromkeys(("loss", "perplexity", "bits_per_byte", "rmse", "mae", "calibration_error"), "min"),
    **dict.fromkeys(("accuracy", "precision", "recall", "f1", "auroc", "average_precision", "r2"), "max"),
}


def plain(config: DictConfig) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(config, resolve=True)
    return values


# allow-list


def locate(
    target: Any, group: str | None, kinds: tuple[type, ...], among: set[str] | None = None
) -> Callable[..., Any]:
    """The class or function behind a `_target_`; ValueError unless it may be used there. Nothing else is imported.

    `group` is the group of `conf/`, None for a part within a part, which has to be a class. The result is a class
    derived from one of `kinds`, or a function that is annotated to return one. `among`: the packages that are trusted,
    if the config comes from elsewhere.
    """
    # 1. by its name alone, because importing a module runs it
    target = str(target)
    refused = f"_target_={printable(target)} is not allowed: "
    reason = trust.refusal(target, group, among)
    if reason is not None:
        raise ValueError(f"{refused}{reason}")
    # 2. import it; what is the user's own may fail in any way
    module, _, name = target.rpartition(".")
    top, users = target.split(".")[0], is_users(target)
    try:
        found = getattr(trust.load(module), name, None)
    except Exception as error:
        if not users:
            raise ValueError(f"{refused}nothing of that name belongs there") from error
        remedy = "; put its folder on PYTHONPATH" if isinstance(error, ModuleNotFoundError) else ""
        reason = f"{type(error).__name__}: {printable(str(error))}"
        raise ValueError(f"_target_={target}: importing {module} failed ({reason}){remedy}") from error
    # 3. what it is, and where it was written: a module also holds what it has imported from elsewhere
    home = str(getattr(found, "__module__", ""))
    ours, home_package = trust.is_ours(home), home.split(".")[0]
    if group is None:
        if inspect.isclass(found) and (ours or home_package == top not in trust.KNOWN):
            return found
        reason = f"within another part there may be classes, and {target} is not a class of that package"
    else:
        made = typing.get_type_hints(found).get("return") if inspect.isfunction(found) else found
        known = ours or users or (inspect.isclass(found) and home_package in trust.LIBRARIES)
        if known and inspect.isclass(made) and issubclass(made, kinds):
            return found  # type: ignore[return-value]
        names = " or ".join(f"{kind.__module__}.{kind.__name__}" for kind in kinds if kind is not float)
        result = "float" if float in kinds else names
        reason = f"{group} must be a class derived from {names}, or a function annotated as -> {result}"
    raise ValueError(f"{refused}{reason if users else 'nothing of that name belongs there'}")


def _locate_all(
    node: dict[str, Any], group: str, kinds: tuple[type, ...], among: set[str] | None = None
) -> Callable[..., Any]:
    """The target of a node; ValueError unless it and those of the parts within it may be used."""
    target = locate(node["_target_"], group, kinds, among)
    for value in node.values():
        for inner in trust.targets(value):
            locate(inner, None, (), among)
    return target


def is_users(target: Any) -> bool:
    """Whether a `_target_` names a package of the user's own."""
    return str(target).split(".")[0] not in trust.KNOWN


def nodes(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The nodes of a config that are built, each with its key, such as "model" or "callbacks.ema"."""
    yield from ((group, config[group]) for group in GROUPS)
    for group in SEVERAL:
        yield from ((f"{group}.{name}", node) for name, node in config[group].items() if node is not None)


def arguments_of(node: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in HYDRA_KEYS}


def instantiate(node: dict[str, Any], group: str, kinds: tuple[type, ...], *args: Any, **facts: Any) -> Any:
    """Call the target of a node with its arguments and with facts that are known only at run time.

    Raises ValueError for a target that is not allowed, and for a fact that the config gives too: a size has one source.
    """
    target = _locate_all(node, group, kinds)
    # a size that is given twice would have to be kept equal by hand
    both = sorted(arguments_of(node).keys() & facts.keys())
    if both:
        source = "is set by Quartet" if group == "trainer" else "comes from the data"
        raise ValueError(f"{', '.join(both)} of {node['_target_']} {source}; leave it out of the config")
    from hydra.utils import instantiate as by_hydra

    arguments = {  # a nested node is built by Hydra; plain values stay what they are
        key: by_hydra(value, _convert_="all") if isinstance(value, dict) and "_target_" in value else value
        for key, value in arguments_of(node).items()
    }
    made = target(*args, *node.get("_args_", ()), **facts, **arguments)
    if not isinstance(made, kinds):
        raise ValueError(f"{node['_target_']} made a {type(made).__name__}, which is not a part of {group}")
    return made


# validation


def check(config: DictConfig, kinds: dict[str, tuple[type, ...]], among: set[str] | None = None) -> None:
    """Raise ValueError with a line for everything that can be known to be wrong before any data are read.

    `kinds`: what the nodes of each group make. `among`: the packages that are trusted, if the config comes from elsewhere.
    """
    check_pairing(config)
    found: dict[str, str] = {}
    for problem in (*_setting_problems(config), *_node_problems(plain(config), kinds, among)):
        found.setdefault(re.split(r"[ =:]", problem)[0], problem)  # one line for each key is enough
    refuse(found.values())


def check_pairing(config: DictConfig) -> None:
    """Raise ValueError if the model cannot read the data; nothing else is worth saying then."""
    accepted, provided = config.pairing.accepts, config.pairing.provides
    if accepted != provided:
        raise ValueError(
            f"this model accepts {accepted}, these data provide {provided}; "
            f"data that fit the model: {', '.join(fitting('data', 'provides', accepted))}; "
            f"models that fit the data: {', '.join(fitting('model', 'accepts', provided))}"
        )


def _node_problems(config: dict[str, Any], kinds: dict[str, tuple[type, ...]], among: set[str] | None) -> Iterator[str]:
    for key, node in nodes(config):
        group = key.split(".")[0]
        target = _locate_all(node, group, kinds[group], among)
        narrower = {name.removeprefix(f"{key}."): hint for name, hint in SETTINGS.items() if name.startswith(f"{key}.")}
        yield from problems(target, arguments_of(node), key, narrower)
        # code of a library writes where its arguments say, which knows nothing of runs; what it is derived from does not
        if inspect.isclass(target) and not trust.is_ours(target.__module__):
            common = {b for kind in kinds[group] for b in kind.__mro__} if target not in kinds[group] else set()
            bases = [base.__module__.split(".")[0] for base in target.__mro__ if base not in common]
            if set(bases) & set(trust.LIBRARIES):
                yield from _escapes(key, arguments_of(node))
    known = val_metrics(config, kinds)
    if config["monitor"]["metric"] not in known:
        yield f"monitor.metric must be one of {', '.join(known)}, not {config['monitor']['metric']!r}"


def val_metrics(config: Any, kinds: dict[str, tuple[type, ...]]) -> list[str]:
    """What the task logs after each validation."""
    task: Any = locate(config["task"]["_target_"], "task", kinds["task"])
    return [f"val/{name}" for name in task.METRICS]


def _escapes(key: str, arguments: Any) -> Iterator[str]:
    """Arguments of a library's part by which it would write elsewhere than into the run."""
    for name, value in arguments.items() if isinstance(arguments, dict) else enumerate(arguments):
        place = f"{key}.{name}={printable(str(value))}"
        if value is not None and WHERE.search(str(name)):
            yield f"{place} climbs out of the run, which holds all that it writes; leave it out"
        elif isinstance(value, dict | list):
            yield from _escapes(f"{key}.{name}", value)
        elif isinstance(value, str) and OUTSIDE.search(value):
            yield f"{place} climbs out of the run, which holds all that it writes; leave it out"
        elif isinstance(value, str) and re.search(r"[{}$]", FIELD.sub("", value)):
            fields = "{epoch} or {val/loss:.2f}"
            yield f"{place} could climb out of the run once it is filled in; use fields such as {fields}"


def _setting_problems(config: DictConfig) -> Iterator[str]:
    """Values of keys that are not arguments, and values that contradict each other."""
    from quartet.data.splits import fold_problem  # NumPy: a pair that does not fit is refused before it is imported

    # each by itself
    values = plain(config)
    for key, hint in SETTINGS.items():
        *groups, name = key.split(".")
        node: Any = values
        for group in groups:
            node = (node or {}).get(group)
        if isinstance(node, dict) and name in node and not accepts(hint, node[name]):
            yield refusal(key, hint, node[name])
    # folds of a cross-validation
    folds, fold = (values["data"].get(key) for key in ("folds", "fold"))
    if accepts(int | None, folds) and accepts(int | None, fold):
        yield from filter(None, [fold_problem(folds, fold)])

    # the length of a run and the rhythm of validation
    trainer = values["trainer"]
    steps, epochs, interval = map(trainer.get, ("max_steps", "max_epochs", "val_check_interval"))
    every, window = map(trainer.get, ("check_val_every_n_epoch", "accumulate_grad_batches"))
    batches = trainer.get("limit_train_batches")
    if steps == -1 and epochs == -1:
        yield (
            "trainer.max_steps and trainer.max_epochs are both -1, and schedules are shares of a run; give one of them, "
            "with trainer.max_time the one that would be reached without it"
        )
    if every is not None and accepts(int, interval):
        yield (
            f"trainer.check_val_every_n_epoch={every} counts epochs and trainer.val_check_interval={interval} steps; "
            "give trainer.val_check_interval=1.0 too, or leave the epochs out"
        )
    if isinstance(every, int) and isinstance(epochs, int) and steps == -1 and every > epochs > 0:
        yield f"trainer.check_val_every_n_epoch={every} is never reached in trainer.max_epochs={epochs}; use fewer epochs"
    if isinstance(window, int) and window > 1 and batches not in (None, 1.0):
        if not isinstance(batches, int):
            yield f"trainer.limit_train_batches={batches} must be an integer of batches while gradients accumulate"
        elif batches % window:
            yield (
                f"trainer.limit_train_batches={batches} must be a multiple of trainer.accumulate_grad_batches={window}, "
                "so that every step has as many samples"
            )

    # one trained network to start from, and nothing frozen without one
    finetune = values["finetune"]
    weights = values["model"].get("weights")
    if weights is not None and finetune["init_from"] is not None:
        yield "model.weights and finetune.init_from both say where the network starts from; give one of them"
    if finetune["freeze"] and weights is None and finetune["init_from"] is None:
        places = " or ".join(["model.weights"] * ("weights" in values["model"]) + ["finetune.init_from"])
        yield f"finetune.freeze={finetune['freeze']} would freeze a backbone that nothing has trained; give {places} too"
    if isinstance(trainer.get("strategy"), dict) and values["callbacks"].get("ema"):
        yield "callbacks.ema averages whole weights, trainer=fsdp holds shards; use trainer=ddp, or leave callbacks=ema out"


# the direction of metrics


def settle_monitor(config: DictConfig) -> None:
    """Fill in `monitor.mode`, and that of callbacks, if it is null: the direction in which the metric improves.

    Raises ValueError if a direction contradicts its metric, here or in a callback, and if that of a metric which is not
    one of Quartet's is missing.
    """
    monitor = config.monitor
    if monitor.mode is None:
        monitor.mode = direction(monitor.metric)
        if monitor.mode is None:
            raise ValueError(f"monitor.mode: give min or max, {monitor.metric} is not a metric of Quartet's own tasks")
    watching = {"monitor": (monitor.metric, monitor.mode)}
    for name, node in config.callbacks.items():
        if node is None or node.get("monitor") is None or "mode" not in node:
            continue
        if node.mode is None:  # the file of a run has no references left
            node.mode = monitor.mode if node.monitor == monitor.metric else direction(node.monitor)
        if node.mode is not None:
            watching[f"callbacks.{name}"] = (node.monitor, node.mode)
    refuse(direction_problem(f"{place}.mode", *watched) for place, watched in watching.items())


def direction(metric: str) -> str | None:
    """min or max, by the last part of a metric's name; None if it is not a metric of Quartet."""
    return DIRECTIONS.get(str(metric).rpartition("/")[2])


def direction_problem(key: str, metric: str, mode: str) -> str | None:
    better = direction(metric)
    if mode not in ("min", "max") or better in (None, mode):
        return None
    comparison = {"min": "the smaller", "max": "the larger"}[better]
    return (
        f"{key}={mode} contradicts {metric}, which is better {comparison} it is; leave it out, or give {key}={better}"
    )
