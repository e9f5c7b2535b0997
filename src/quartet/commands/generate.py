"""Text from a language model, and the likelihood of a given text, from the run directory alone."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Annotated, Any, TypeAlias

import torch
from omegaconf import DictConfig

from quartet import config, sampling
from quartet.callbacks.progress import StderrProgress
from quartet.files import written
from quartet.inference.language import is_language_model, load, load_task, score
from quartet.run import Run
from quartet.sampling import Continuation, Token
from quartet.say import printable
from quartet.signatures import PositiveInt, Rule, wrong_settings
from quartet.typed import user_path

OptionalShare: TypeAlias = Annotated[float, Rule("a number above 0 and at most 1", lambda p: 0 < p <= 1)] | None
OutputFile = Annotated[str, Rule("a file that ends in .jsonl or .txt", lambda name: name.endswith((".jsonl", ".txt")))]
OptionalOutputFile: TypeAlias = OutputFile | None
OptionalText: TypeAlias = str | None
SETTINGS: dict[str, Any] = {
    "max_tokens": PositiveInt,
    "temperature": Annotated[float, Rule("a number of at least 0 (0 chooses the likeliest token)", lambda t: t >= 0)],
    "top_k": config.OptionalPositiveInt,
    "top_p": OptionalShare,
    "seed": config.SETTINGS["seed"],
    "repetition_penalty": Annotated[
        float, Rule("a number of at least 1 (1 changes nothing)", lambda x: 1 <= x < math.inf)
    ],
    "stop": list[Annotated[str, Rule("a text that is not empty", bool)]],
    "samples": PositiveInt,
    "logprobs": bool,
    "output": OptionalOutputFile,
    "prompts": OptionalText,
    "score": OptionalText,
    "score_file": OptionalText,
    "cache": bool,
}
SOURCES = ("prompt", "prompts", "score", "score_file")  # of text; one of them is given
MAX_ROWS = 32  # samples decoded at a time: bounds the memory of their states, and the wait for the first of them


def main(arguments: DictConfig) -> None:
    """What scripts/generate.py does: continue a prompt or each of a file, or score a text."""
    # 1. mistakes in the settings, all of them
    values = config.plain(arguments)
    stop = [] if values["stop"] is None else values["stop"]
    stop = stop if isinstance(stop, list) else [stop]
    values["stop"] = [unescaped(text) if isinstance(text, str) else text for text in stop]
    problems = wrong_settings(SETTINGS, {key: values[key] for key in SETTINGS})
    given = [f"{key}=" for key in SOURCES if values[key] not in (None, "")]
    if len(given) > 1:
        problems.append(f"{' and '.join(given)} do not go together; give one of them")
    if problems:
        raise ValueError("\n".join(problems))

    # 2. what is read, and where it is written
    output = None if values["output"] is None else Path(user_path(values["output"]))
    if output is not None and not output.parent.is_dir():
        raise FileNotFoundError(f"output={values['output']}: there is no directory {output.parent}; make it first")
    text = values["score"] if values["score_file"] is None else read_text("score_file", values["score_file"])
    prompts = [clean(str(values["prompt"] or ""))]
    if values["prompts"] is not None:
        prompts = read_prompts(values["prompts"])
    source = values["prompts"] or values["score_file"] or "-"
    if output is not None and source != "-" and output.exists() and output.samefile(user_path(source)):
        raise ValueError(f"output={values['output']} would replace what is read; name another file")

    # 3. the work itself
    run = Run.open(values["run"], kind=("language model", is_language_model))
    if text is not None:
        return print_score(run, clean(text), output, logprobs=values["logprobs"])
    network, tokenizer = load(run)
    names = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "stop", "cache")
    settings = {name: values[name] for name in names}
    started = time.perf_counter()
    if len(prompts) == values["samples"] == 1 and output is None:
        row = stream(prompts[0], continuations(network, tokenizer, prompts[0], [values["seed"]], **settings))
        n_tokens = row.n_generated
        if values["logprobs"]:
            print("\n" + token_table(row.tokens, tokenizer))
    else:
        plan = {name: values[name] for name in ("samples", "seed", "logprobs")}
        n_tokens = write_samples(network, tokenizer, prompts, output, **plan, **settings)
    print_speed(n_tokens, time.perf_counter() - started, output)


# one prompt


@torch.inference_mode()  # its small operations cost less than without gradients alone (docs/notes.md)
def continuations(
    network: Any, tokenizer: Any, prompt: str, seeds: Sequence[int], *, stop: Sequence[str], **settings: Any
) -> Iterator[list[Continuation]]:
    """Continue a prompt once for each seed, as one batch: yield the same growing list after each token of theirs."""
    context, reread, first_ids = heal(tokenizer.encode(prompt), tokenizer)
    rows = [Continuation(stop, reread) for _ in seeds]
    steps = sampling.generate_batch(
        network,
        context,
        first_ids=first_ids,
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
        stop_id=tokenizer.eos_id,
        forbidden_ids=tokenizer.textless_ids,
        **settings,
    )
    for tokens in steps:
        for row, token in zip(rows, tokens, strict=True):
            if row.stop_reason is None:
                if token is None:
                    row.end("end_of_document")
                else:
                    row.append(token, tokenizer.token_bytes[token.id])
        yield rows
        if all(row.stop_reason for row in rows):
            return
    for row in rows:
        row.end("length")
    yield rows


def generate(
    run: Run,
    *,
    prompt: str,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    cache: bool = True,
) -> Iterator[str]:
    """Yield pieces of text that continue `prompt`, of whole characters, and end before the first of the `stop` strings.

    Raises ValueError if the run is not a language model or a setting is out of range.
    """
    settings: Any = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    settings |= {"repetition_penalty": repetition_penalty, "stop": stop}
    given = {**settings, "seed": seed}
    if wrong := wrong_settings({key: SETTINGS[key] for key in given}, given):
        raise ValueError("\n".join(wrong))
    shown = 0
    for (row,) in continuations(*load(run), prompt, [seed], cache=cache, **settings):
        if len(row.text) > shown:
            yield row.text[shown:]
        shown = len(row.text)


def stream(prompt: str, steps: Iterator[list[Continuation]]) -> Continuation:
    """Print a prompt and its one continuation as it is made; nothing before the first token exists."""
    on_terminal, shown, row = sys.stdout.isatty(), None, Continuation(())
    for (row,) in steps:
        piece = prompt + row.text if shown is None else row.text[shown:]
        shown = len(row.text)
        piece = printable(piece, keep="\n\t") if on_terminal else piece  # a file gets every character
        print(piece, end="", flush=True)
    print()
    return row


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


# several samples


def write_samples(
    network: Any,
    tokenizer: Any,
    prompts: list[str],
    output: Path | None,
    *,
    samples: int,
    seed: int,
    logprobs: bool,
    **settings: Any,
) -> int:
    """Write the samples of each prompt, to a file or standard output, whenever a batch of them is done; returns the tokens.

    An existing file is replaced once there is something to write. What there is of a batch that is interrupted is written.
    """
    on_terminal = output is None and sys.stdout.isatty()
    batches = list(itertools.product(range(len(prompts)), range(0, samples, MAX_ROWS)))
    progress, n_tokens = StderrProgress("generating"), 0
    with ExitStack() as files:
        file: IO[str] | None = None if output else sys.stdout
        for n_done, (number, first) in enumerate(batches):
            numbers = range(first, min(first + MAX_ROWS, samples))
            seeds, rows = [sample_seed(seed, number, k) for k in numbers], list[Continuation]()
            try:
                for rows in continuations(network, tokenizer, prompts[number], seeds, **settings):
                    file = file or files.enter_context(output.open("w", encoding="utf-8"))  # type: ignore[union-attr]
                    share = max(row.n_generated for row in rows) / settings["max_tokens"]
                    progress.show((n_done + share) / len(batches))
            finally:
                progress.hide()
                for k, row, own_seed in zip(numbers, rows, seeds, strict=False):  # no rows if there is no token yet
                    row.end("interrupted")
                    if output is not None and output.suffix == ".jsonl":
                        record: dict[str, Any] = {"prompt_number": number + 1, "sample_number": k + 1, "seed": own_seed}
                        record |= {"prompt": prompts[number], "text": row.text, "tokens": len(row.tokens)}
                        record |= {"logprob": row.logprob, "stop_reason": row.stop_reason}
                        if logprobs:
                            record["logprobs"] = token_records(row.tokens, tokenizer)
                        text = json.dumps(record, ensure_ascii=False)
                    else:
                        names = [f"prompt {number + 1}"] * (len(prompts) > 1) + [f"sample {k + 1}"] * (samples > 1)
                        text = f"--- {', '.join(names)} ---\n" if names else ""
                        text += prompts[number] + row.text + "\n"
                        text += f"\n{token_table(row.tokens, tokenizer)}\n" if logprobs else ""
                    print(printable(text, keep="\n\t") if on_terminal else text, file=file, flush=True)
            n_tokens += sum(row.n_generated for row in rows)
    return n_tokens


def sample_seed(seed: int, prompt: int, sample: int) -> int:
    """The seed of a sample, below 2^32, by the numbers of its prompt and of itself, which begin with 0.

    The first sample of the first prompt has `seed` itself, so that each can be had alone: prompt=… seed=<its own>.
    """
    if prompt == sample == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {prompt} {sample}".encode()).digest()[:4], "big")


def token_records(tokens: Iterable[Token], tokenizer: Any) -> list[dict[str, Any]]:
    pieces = ((token, tokenizer.token_bytes[token.id]) for token in tokens)
    return [
        {"id": token.id, "token": piece.decode("utf-8", "replace"), "logprob": token.logprob} for token, piece in pieces
    ]


def token_table(tokens: Iterable[Token], tokenizer: Any) -> str:
    """A line for each token: its log-probability in nats, and itself as Python writes it, in bytes if it is not whole."""
    lines = []
    for token in tokens:
        piece: bytes | str = tokenizer.token_bytes[token.id]
        with suppress(UnicodeDecodeError):
            piece = piece.decode()  # type: ignore[union-attr]
        lines.append(f"{token.logprob:9.4f}  {piece!r}")
    return "\n".join(lines)


# the likelihood of a text


def print_score(run: Run, text: str, output: Path | None, *, logprobs: bool) -> None:
    """Print the score of a text, or write it to a file, atomically."""
    if not text:
        raise ValueError("the text to score is empty; give one with score=<text> or score_file=<file>")
    task, data = load_task(run)
    tokenizer = data.tokenizer
    started = time.perf_counter()
    found = score(task, tokenizer, text)
    values = {"tokens": len(found.tokens), "bytes": found.n_bytes, "logprob": found.logprob}
    values |= {"perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}
    if found.n_unknown:
        values["unknown_tokens"] = found.n_unknown
    if output is not None and output.suffix == ".jsonl":
        each = {"logprobs": token_records(found.tokens, tokenizer)} if logprobs else {}
        lines = json.dumps({**values, **each}, ensure_ascii=False)
    else:
        lines = "\n".join(
            f"  {name:<16} {value:,}" if isinstance(value, int) else f"  {name:<16} {value:.6f}"
            for name, value in values.items()
        )
        lines += f"\n\n{token_table(found.tokens, tokenizer)}" if logprobs else ""
    if output is None:
        print(lines)
    else:
        with written(output) as file:
            file.write(f"{lines}\n".encode())
    print_speed(len(found.tokens), time.perf_counter() - started, output)


# settings, and files that are read


def unescaped(text: str) -> str:
    r"""A stop string as it was meant: Hydra leaves \n, \t and \\ of a command line as they are."""
    return re.sub(r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t"}.get(found[1], "\\"), text)


def clean(text: str) -> str:
    """As tokenizers read it: a lone surrogate, which no UTF-8 text can hold, is a question mark."""
    return text.encode("utf-8", "replace").decode()


def read_prompts(where: str) -> list[str]:
    """The prompts of a file: one a line, or the "prompt" of each object of JSON Lines. Blank lines are skipped.

    `where` is a path, or "-" for standard input, which is JSON Lines if its first line is an object with a prompt.
    """
    lines = [(number, line) for number, line in enumerate(read_text("prompts", where).split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError(f"prompts={where} holds no prompts; write one a line, or JSON Lines with a key prompt")
    as_json = where.endswith((".jsonl", ".ndjson")) or (where == "-" and json_prompt(lines[0][1]) is not None)
    if not as_json:
        return [clean(line) for _, line in lines]
    prompts = [json_prompt(line) for _, line in lines]
    if None in prompts:
        number, line = lines[prompts.index(None)]
        raise ValueError(
            f'prompts={where}, line {number}: expected an object such as {{"prompt": "def "}}, not {line[:80]}'
        )
    return [clean(prompt) for prompt in prompts if prompt is not None]


def json_prompt(line: str) -> str | None:
    """The prompt of a line of JSON, None if there is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    prompt = value.get("prompt") if isinstance(value, dict) else None
    return prompt if isinstance(prompt, str) else None


def read_text(key: str, where: str) -> str:
    """A UTF-8 file, "-" for standard input, with \\n at the end of lines; errors name the setting."""
    try:
        content = sys.stdin.buffer.read() if where == "-" else Path(user_path(where)).read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise type(error)(
            f"{key}={where} cannot be read ({error.strerror}); name a file, or - for standard input"
        ) from error
    except UnicodeDecodeError as error:
        byte, position = error.object[error.start], error.start
        raise ValueError(f"{key}={where} is not UTF-8: byte 0x{byte:02x} at position {position}; convert it") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


# the model


def print_speed(n_tokens: int, seconds: float, output: Path | None) -> None:
    line = f"{n_tokens:,} tokens in {seconds:.1f} s, {n_tokens / max(seconds, 1e-9):,.0f} tokens/s"
    line += "" if output is None else f", written to {printable(str(output))}"
    print(f"\033[2m{line}\033[0m" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)
