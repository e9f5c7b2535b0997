"""What is said about a config that does not compose: mistyped keys, unknown options, values in the wrong place.

Hydra stops at the first mistake and knows nothing of the groups around it; here all of them are found, with a remedy each.
What a key's value may be is checked later, by `config.check` and `signatures`. Imports no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from quartet import config_groups
from quartet.config_groups import CONF
from quartet.old_configs import MOVED, REMOVED
from quartet.run import error_text

FULL_ERROR = "HYDRA_FULL_ERROR"
TORCHVISION = re.compile(
    r"(alexnet|convnext|densenet|efficientnet|inception|maxvit|mnasnet|mobilenet|regnet|resn|shufflenet|"
    r"squeezenet|swin|vgg|vit_|wide_resnet)"
)


def error_lines(error: Exception) -> str:
    """What went wrong, for a person: a line for each mistake."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not understood; brackets and quotes come in pairs, 'key=\"some text\"' quotes a text"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return " ".join(str(error).split())
    text = error_text(error)
    return text if isinstance(error, ValueError | OSError) else f"{text} ({FULL_ERROR}=1 shows the traceback)"


def override_problems(config_name: str, arguments: list[str]) -> Iterator[str]:
    """What is wrong with `key=value` arguments that Hydra refused: unknown options and misspelt keys, all of them."""
    # 1. words that are not settings
    for word in arguments:
        if not re.match(r"[-~]|[^=]+=", word):
            yield f"{word}: a setting is written key=value, such as optimizer.lr=0.01"

    # 2. options that a group does not have
    pairs = [word.lstrip("+~").partition("=")[::2] for word in arguments if re.match("[^-=][^=]*=", word)]
    choices = {
        key: config_groups.named_options(value) for key, value in pairs if (CONF / key).is_dir() and "/" not in key
    }
    valid = []
    for group, chosen in choices.items():
        known = config_groups.options(group)
        unknown = [option for option in chosen if option not in known]
        for option in unknown:
            near = suggestion(option, known)
            if group == "model" and TORCHVISION.match(option):
                near = f"; a network of torchvision's: model=image model.name={option}"
            yield f"{group}={option}: unknown {group}{near}; choose from {', '.join(known)}"
        if chosen and not unknown and chosen[0] != "null":
            valid.append(f"{group}={chosen[0]}")
    for key, value in pairs:
        if key == "hydra/launcher":
            by_plugins = [name.removesuffix(".yaml") for name in ConfigStore.instance().list(key)]
            launchers = sorted({*config_groups.options(key), *by_plugins})
            if value not in launchers:
                plugin = "its Hydra plugin is not installed, or it has another name"
                yield f"{key}={value}: unknown launcher; {plugin}; here are {', '.join(launchers)}"

    # 3. keys that the composed config does not have
    keys = known_keys(config_name, valid)
    for key, _ in pairs:
        if key not in choices and key not in keys and not key.startswith("hydra"):
            moved = f" any more; it is {MOVED[key]} now" if key in MOVED else ""
            if key in REMOVED:
                moved = f" any more: {REMOVED[key]}; leave it out"
            yield f"{key}: no such key{moved or _where_it_exists(key) or suggestion(key, sorted(keys))}"

    # 4. several values without a sweep
    multiple = [f"{key}={value}" for key, value in pairs if "," in value and value[0] not in "[({'\""]
    if multiple and not {"-m", "--multirun"} & set(arguments):
        yield f"{multiple[0]}: several values need -m (a sweep), or brackets for a list: '{multiple[0].split('=')[0]}=[…]'"


def suggestion(word: str, known: list[str], value: str | None = None) -> str:
    """The known key with the same last part, else the most similar one."""
    known = [key for key in known if not key.startswith("length.")]  # trainer.max_epochs and the like follow it
    same = sorted((key for key in known if key.rpartition(".")[2] == word and "." in key), key=len)
    near = same or difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {near[0]}{'' if value is None else f'={value}'}?" if near else ""


def _where_it_exists(key: str) -> str:
    """The options of a key's group that have it, or the group that has an option of its name."""
    group, _, rest = key.partition(".")
    if rest and (CONF / group).is_dir():
        contents = {name: config_groups.content(group, name) for name in config_groups.options(group)}
        there = [name for name, content in contents.items() if rest.partition(".")[0] in content.get(group, content)]
        return f" with this {group}; {', '.join(there)} {'have' if len(there) > 1 else 'has'} it" if there else ""
    having = [path.parent.name for path in CONF.glob(f"*/{key}.yaml")] if re.fullmatch(r"\w+", key) else []
    return f", did you mean {having[0]}={key}?" if having else ""


def known_keys(config_name: str, choices: list[str]) -> set[str]:
    """Every key of the composed config, with its groups."""
    try:
        config = compose(config_name, choices)
    except HydraException:
        config = compose(config_name, [])
    found = {path.name for path in CONF.iterdir() if path.is_dir()}

    def collect(values: Any, prefix: str) -> None:
        for key, value in values.items():
            found.add(f"{prefix}{key}")
            if isinstance(value, dict):
                collect(value, f"{prefix}{key}.")

    collect(OmegaConf.to_container(config, resolve=False), "")
    return found


def compose(config_name: str, overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose(config_name, overrides=overrides)
