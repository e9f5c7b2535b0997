"""Text from a language model, streamed as it is made, from the run directory alone."""

from __future__ import annotations

import codecs
import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, TypeAlias

import torch
from omegaconf import DictConfig

from quartet import build, config, sampling
from quartet.engine.weights import load_checkpoint
from quartet.run import Run
from quartet.say import printable
from quartet.signatures import PositiveInt, Rule, accepts, words
from quartet.tasks.language_modeling import LanguageModeling

OptionalShare: TypeAlias = Annotated[float, Rule("a number above 0 and at most 1", lambda p: 0 < p <= 1)] | None
SETTINGS: dict[str, Any] = {
    "max_tokens": PositiveInt,
    "temperature": Annotated[float, Rule("a number of at least 0 (0 chooses the likeliest token)", lambda t: t >= 0)],
    "top_k": config.OptionalPositiveInt,
    "top_p": OptionalShare,
    "seed": config.SETTINGS["seed"],
}


def stream(arguments: DictConfig) -> None:
    """Print the prompt and what follows it, as it is made."""
    run = Run.open(arguments.run, kind=("language model", is_language_model))
    prompt = "" if arguments.prompt is None else str(arguments.prompt)  # prompt=42 is a number to Hydra
    settings: Any = {key: value for key, value in arguments.items() if key not in ("run", "prompt")}
    pieces = generate(run, prompt=prompt, **settings)
    first = next(pieces, "")  # an error is raised before any text is printed
    on_terminal = sys.stdout.isatty()  # a file gets every sign as it is
    for piece in itertools.chain([prompt, first], pieces):
        print(printable(piece, keep="\n\t") if on_terminal else piece, end="", flush=True)
    print()


def generate(
    run: Run,
    *,
    prompt: str,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    cache: bool = True,
) -> Iterator[str]:
    """Yield pieces of text that continue `prompt`; each piece holds whole characters only.

    Raises ValueError if the run is not a language model or a setting is out of range.
    """
    settings = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    wrong = [key for key, value in settings.items() if not accepts(SETTINGS[key], value)]
    if wrong:
        raise ValueError("\n".join(f"{key} must be {words(SETTINGS[key])}, not {settings[key]!r}" for key in wrong))
    network, tokenizer = load(run)
    context, reread, first_ids = heal(tokenizer.encode(prompt), tokenizer)
    ids = sampling.generate(
        network,
        context,
        first_ids=first_ids,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        generator=torch.Generator().manual_seed(seed),
        stop_id=tokenizer.eos_id,
        forbidden_ids=tokenizer.textless_ids,
        cache=cache,
    )
    pieces = (tokenizer.token_bytes[i] for i in ids)
    yield from characters(piece[len(reread) :] if n == 0 else piece for n, piece in enumerate(pieces))


def heal(ids: list[int], tokenizer: Any) -> tuple[list[int], bytes, tuple[int, ...] | None]:
    """The prompt without its last token, that token's bytes, and the tokens that begin with them.

    "def " ends in a space that the text would have given to the next word (" main"): the last token of a prompt is chosen
    anew among those that continue it ("token healing", Lundberg 2023), but for an <unk>, which nothing continues. An empty
    prompt begins a document.
    """
    last = tokenizer.token_bytes[ids[-1]] if ids and ids[-1] not in tokenizer.textless_ids else b""
    if not last:
        return ids or [tokenizer.eos_id], b"", None
    candidates = tuple(i for i, piece in enumerate(tokenizer.token_bytes) if piece.startswith(last))
    return ids[:-1] or [tokenizer.eos_id], last, candidates


def is_language_model(values: DictConfig) -> bool:
    task = values.get("task")
    return isinstance(task, DictConfig) and str(task.get("_target_")).endswith(".LanguageModeling")


def load(run: Run) -> tuple[torch.nn.Module, Any]:
    """The network of a language-model run with its best weights, and the run's tokenizer."""
    values = build.opened(run)
    task: Any = build.locate(values.task._target_, "task")
    if not issubclass(task, LanguageModeling):
        raise ValueError(
            f"{run} is not a language model ({values.run.name}); train one with data=stdlib, data=shakespeare or data=text"
        )
    data = build.restore_data(run, values, read=False)
    task = build.build_task(values, data.spec)
    load_checkpoint(task, run.best_checkpoint)
    return task.network.eval(), data.tokenizer  # type: ignore[attr-defined]


def characters(pieces: Iterable[bytes]) -> Iterator[str]:
    """Bytes to text as it arrives: a multi-byte character is held back until it is whole."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest
