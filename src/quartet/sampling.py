"""Sampling tokens from a language model, the text they make, the log-probabilities of given ones; torch only.

Letters: B rows of a batch, T tokens so far, V vocabulary. Top-p is the nucleus of Holtzman et al. 2020 (arXiv:1904.09751),
the repetition penalty that of Keskar et al. 2019, CTRL (arXiv:1909.05858).
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def filter_logits(logits: Tensor, *, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """(…, V) logits, scaled and with the unlikely tokens at minus infinity."""
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    if top_p is not None and top_p < 1:
        ranked, order = logits.softmax(-1).sort(descending=True)
        beyond = ranked.cumsum(-1) - ranked >= top_p  # the token that reaches top_p stays
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return logits


def choose(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generators: Sequence[torch.Generator | None],
) -> Tensor:
    """(B, V) logits and a generator for each row -> (B,) token ids; temperature 0 takes the likeliest and draws nothing."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p).softmax(-1)
    rows = zip(probabilities, generators, strict=True)
    return torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """(B, V) logits, less likely by `penalty` (at least 1) where a token is among the (B, T) seen ones of its row.

    They are divided if positive, else multiplied.
    """
    scores = logits.gather(-1, seen)  # (B, T)
    return logits.scatter(-1, seen, torch.where(scores > 0, scores / penalty, scores * penalty))


class Token(NamedTuple):
    """A token that was generated, with its log-probability (nats) by the network alone: no temperature, no filters."""

    id: int
    logprob: float


def generate(
    network: Any, prompt_ids: list[int], *, generator: torch.Generator | None, **settings: Any
) -> Iterator[int]:
    """Yield token ids that follow the prompt; the settings are those of `generate_batch`."""
    for (token,) in generate_batch(network, prompt_ids, generators=[generator], **settings):
        if token is not None:
            yield token.id


@torch.no_grad()
def generate_batch(
    network: Any,
    prompt_ids: list[int],
    *,
    generators: Sequence[torch.Generator | None],
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    repetition_penalty: float = 1.0,
    stop_id: int | None = None,
    forbidden_ids: tuple[int, ...] = (),
    first_ids: tuple[int, ...] | None = None,
    cache: bool = True,
) -> Iterator[list[Token | None]]:
    """Continue one prompt once for each generator; yield the next token of each row, None where the row has ended.

    A row ends with `stop_id`, all of them after `max_tokens`; the first token is one of `first_ids`. A row is what it would
    be alone, but for the rounding of sums in a batch. `network` may have `advance(tokens, state)`, without which all of the
    window is read for each token, as without `cache`, and a `context_length`; where the text outgrows it, the window is cut
    to its newer half and read again, with the cache and without it alike, so that both give the same tokens.
    """
    assert prompt_ids, "generation needs at least one token to start from"
    device = next(network.parameters()).device
    cache = cache and hasattr(network, "advance")
    forbidden = torch.tensor(forbidden_ids, dtype=torch.long)
    first = None if first_ids is None else torch.tensor(first_ids)

    # the window is what the network sees; it has read the first `read` positions and keeps them in its state
    context_length = getattr(network, "context_length", None)
    prompt = torch.tensor(prompt_ids[-context_length:] if context_length else prompt_ids)
    size = context_length or len(prompt) + max_tokens
    window = torch.empty(len(generators), size, dtype=torch.long)  # (B, T at most)
    window[:, : len(prompt)] = prompt
    length, read, state, ended = len(prompt), 0, None, [False] * len(generators)
    for step in range(max_tokens):
        # 1. what the network makes of what it has not read yet
        tokens = window[:, read:length].to(device)
        logits, state = network.advance(tokens, state) if cache else (network(tokens), None)
        scores = logits[:, -1].float().cpu()  # (B, V); drawing on the CPU gives the same tokens on every device

        # 2. a token for each row; rows that have ended stay in the batch, for the state has no rows to take out
        own = scores.log_softmax(-1)
        if repetition_penalty != 1:
            scores = penalize(scores, window[:, :length], repetition_penalty)
        scores = scores.index_fill(-1, forbidden, -torch.inf)
        if step == 0 and first is not None:
            scores = torch.full_like(scores, -torch.inf).index_copy(-1, first, scores[:, first])
        chosen = choose(scores, temperature=temperature, top_k=top_k, top_p=top_p, generators=generators)  # (B,)
        logprobs = own.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).tolist()
        found = [Token(*token) for token in zip(chosen.tolist(), logprobs, strict=True)]
        ended = [before or token.id == stop_id for before, token in zip(ended, found, strict=True)]
        yield [None if end else token for end, token in zip(ended, found, strict=True)]
        if all(ended):
            return

        # 3. what it reads next
        read = length if cache else 0
        if context_length and length == context_length:
            length = max(context_length // 2, 1) - 1  # with the new token a half
            window[:, :length] = window[:, size - length :].clone()
            read, state = 0, None
        window[:, length] = chosen
        length += 1


@torch.no_grad()
def log_probabilities(network: Any, ids: list[int], *, context_length: int, carry_state: bool) -> Iterator[Tensor]:
    """Yield the log-probabilities (nats) of `ids[1:]` given what precedes each, every one once, in pieces of a window.

    `carry_state`: windows follow each other and the state of the network is carried along, as validation does it on
    contiguous windows. Otherwise each window but the first begins with the newer half of the one before it, as it does in
    generation: no token is predicted from fewer than half a window, if the text has as many.
    """
    device = next(network.parameters()).device
    state, done, n = None, 0, len(ids) - 1
    while done < n:
        start = done if carry_state or done == 0 else done + 1 - context_length // 2
        window = torch.tensor([ids[start : min(start + context_length, n) + 1]], device=device)  # and one to predict
        if carry_state:
            logits, state = network.advance(window[:, :-1], state)
        else:
            logits = network(window[:, :-1])
        new = logits[0, done - start :]
        yield -F.cross_entropy(new, window[0, done - start + 1 :], reduction="none").cpu()
        done += len(new)


class Continuation:
    """What follows a prompt, token by token.

    `text` are its characters so far, but for those that are not whole yet or may begin a stop string; `tokens` are those
    that it was made of, up to the one in which it ends. `stop_reason` is None while it grows.
    """

    def __init__(self, stop: Sequence[str], reread: bytes = b""):
        self.text, self.tokens = "", list[Token]()
        self.stop_reason: Literal["stop_string", "end_of_document", "length", "interrupted"] | None = None
        self._stop, self._skip, self._held = stop, len(reread), ""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._starts: list[int] = []  # of each token, in characters

    @property
    def logprob(self) -> float:
        return math.fsum(token.logprob for token in self.tokens)

    @property
    def n_generated(self) -> int:
        """Tokens that the network was asked for, those of the stop string too."""
        return len(self._starts)

    def append(self, token: Token, piece: bytes) -> None:
        """Add a token that stands for the bytes `piece`."""
        self._starts.append(len(self.text) + len(self._held))
        self.tokens.append(token)
        self._extend(self._decoder.decode(piece[self._skip :]))
        self._skip = 0

    def end(self, reason: Literal["end_of_document", "length", "interrupted"]) -> None:
        """End it with what was held back, unless it has ended already."""
        if self.stop_reason is not None:
            return
        self._extend(self._decoder.decode(b"", final=True))
        if self.stop_reason is None:
            self.text, self._held, self.stop_reason = self.text + self._held, "", reason

    def _extend(self, new: str) -> None:
        held = self._held + new
        # of several the one that is complete first counts, however the text was cut into tokens
        found = [(at + len(stop), at) for stop in self._stop if (at := held.find(stop)) >= 0]
        if found:
            self.text, self._held, self.stop_reason = self.text + held[: min(found)[1]], "", "stop_string"
            starts = zip(self.tokens, self._starts, strict=True)
            self.tokens = [token for token, start in starts if start < len(self.text)]
            return
        begun = [n for stop in self._stop for n in range(1, len(stop)) if held.endswith(stop[:n])]
        certain = len(held) - max(begun, default=0)
        self.text, self._held = self.text + held[:certain], held[certain:]
