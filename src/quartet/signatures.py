"""What a signature says about its arguments: names, types, ranges and choices. Imports no torch.

A constructor annotates its arguments (`n_layers: PositiveInt`, `norm: Literal["rmsnorm", "layernorm"]`), and everything
else follows: a config is checked before any data are read, and all of its mistakes are reported together.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NamedTuple


class Rule(NamedTuple):
    """A condition on a value: in words, and as a predicate that is called with values of the annotated type."""

    words: str
    holds: Callable[[Any], bool]


PositiveInt = Annotated[int, Rule("an integer of at least 1", lambda n: n >= 1)]
NonNegativeInt = Annotated[int, Rule("an integer of at least 0", lambda n: n >= 0)]
PositiveFloat = Annotated[float, Rule("a number above 0", lambda x: x > 0)]
NonNegativeFloat = Annotated[float, Rule("a number of at least 0", lambda x: x >= 0)]
Fraction = Annotated[float, Rule("a number from 0 to 1", lambda x: 0 <= x <= 1)]
Probability = Annotated[float, Rule("a probability: at least 0 and below 1", lambda p: 0 <= p < 1)]

TYPE_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}


class Parameters(NamedTuple):
    """What can be passed to a callable: the annotation of each argument, and those without a default value."""

    hints: dict[str, Any]
    required: set[str]
    open_ended: bool  # whether it accepts any other keyword

    def accept(self, name: str) -> bool:
        return self.open_ended or name in self.hints


def parameters(target: Callable[..., Any]) -> Parameters:
    """The arguments of a function or class; `**kwargs` of a class stand for the arguments of its parent."""
    hints: dict[str, Any] = {}
    required: set[str] = set()
    # the signature of object() claims to accept anything
    if getattr(target, "__init__", None) is object.__init__:
        return Parameters(hints, required, open_ended=False)
    # a class that hands **kwargs on has the arguments of its parent too, and so on up
    for owner in target.__mro__ if inspect.isclass(target) else [target]:
        call = owner.__init__ if inspect.isclass(owner) else owner
        try:
            annotations = typing.get_type_hints(call, include_extras=True)
        except (NameError, TypeError):  # names that exist for type checkers only
            annotations = {}
        open_ended = False
        for name, parameter in inspect.signature(call).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                open_ended = True
            elif name not in hints and name != "self" and parameter.kind is not parameter.VAR_POSITIONAL:
                hints[name] = annotations.get(name, Any)
                required |= {name} if parameter.default is parameter.empty else set()
        if not open_ended:
            return Parameters(hints, required, open_ended=False)
    return Parameters(hints, required, open_ended=True)


def problems(
    target: Callable[..., Any], arguments: dict[str, Any], group: str, narrower: dict[str, Any] | None = None
) -> Iterator[str]:
    """One sentence for each argument that `target` does not have or would refuse, with its config key.

    `narrower` are annotations that count instead of the target's own: those of a library are often too wide. A class
    that has to compare several of its arguments does so in a static method `problems`, which gets the valid ones.
    """
    # 1. each argument by itself
    known = parameters(target)
    hints = {**known.hints, **(narrower or {})}
    valid = dict(arguments)
    for name, value in arguments.items():
        if not known.accept(name):
            near = get_close_matches(name, known.hints, n=1)
            yield f"{group}.{name}: {target.__name__} has no such argument" + (
                f", did you mean {near[0]}?" if near else ""
            )
            del valid[name]
        elif name in hints and not accepts(hints[name], value):
            yield refusal(f"{group}.{name}", hints[name], value)
            del valid[name]
    # 2. what the class says about several of them together
    if hasattr(target, "problems"):
        yield from target.problems(valid)  # type: ignore[attr-defined]


def check(target: type, arguments: dict[str, Any], group: str = "model") -> None:
    """Raise ValueError with all problems; a constructor calls it with `locals()`, for callers without a config."""
    given = {name: value for name, value in arguments.items() if name not in ("self", "__class__")}
    refuse(problems(target, given, group))


def refuse(found: Iterable[str | None]) -> None:
    """Raise ValueError with a line for each problem, if there are any."""
    if lines := list(filter(None, found)):
        raise ValueError("\n".join(lines))


def accepts(hint: Any, value: Any) -> bool:
    """Whether a value from YAML has the annotated type; types that YAML does not know accept anything."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return accepts(inner[0], value) and all(rule.holds(value) for rule in inner[1:] if isinstance(rule, Rule))
    if origin in (typing.Union, types.UnionType):
        return any(accepts(part, value) for part in inner)
    # True == 1 in Python, but true is not the choice 1
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inner)
    if origin is list and inner:
        return isinstance(value, list | tuple) and all(accepts(inner[0], item) for item in value)
    # a bool is an int in Python, and in no config
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (None, type(None)):
        return value is None
    return isinstance(value, hint) if hint in (bool, str, dict) else True


def words(hint: Any) -> str:
    """An annotation as a person says it: "an integer of at least 1 or null"."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return next((rule.words for rule in inner[1:] if isinstance(rule, Rule)), words(inner[0]))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words(part) for part in inner)
    if origin is Literal:
        choices = ", ".join(map(str, inner))
        return f"one of {choices}" if len(inner) > 1 else choices
    if origin is list:
        return f"a list, each item {words(inner[0])}"
    return TYPE_NAMES.get(hint, str(hint))


def refusal(key: str, hint: Any, value: Any) -> str:
    """What is wrong with a value that is not accepted, with the choice that was probably meant."""
    parts = [typing.get_args(part) for part in (hint, *typing.get_args(hint)) if typing.get_origin(part) is Literal]
    choices = [choice for part in parts for choice in part if isinstance(choice, str)]
    near = get_close_matches(str(value), choices, n=1)
    return f"{key} must be {words(hint)}, not {value!r}{f'; did you mean {near[0]}?' if near else ''}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names most like `name`, as text for an error message."""
    known = list(known)
    return ", ".join(get_close_matches(name, known, n=4, cutoff=0.3) or known)


def wrong_settings(kinds: dict[str, Any], values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What is wrong with the settings of a command, a line for each: `kinds` are their annotations."""
    return [
        refusal(f"{prefix}{key}", kind, values[key]) for key, kind in kinds.items() if not accepts(kind, values[key])
    ]
