"""Sampling tokens from a language model, one at a time; torch only.

Letters: T tokens so far, V vocabulary. Top-p is the nucleus of Holtzman et al. 2020 (arXiv:1904.09751).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def filter_logits(logits: Tensor, *, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """(V,) logits, scaled and with the unlikely tokens at minus infinity."""
    logits = logits / temperature
    if top_k is not None and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    if top_p is not None and top_p < 1:
        ranked, order = logits.softmax(-1).sort(descending=True)
        beyond = ranked.cumsum(-1) - ranked >= top_p  # the token that reaches top_p stays
        logits = logits.index_fill(0, order[beyond], -torch.inf)
    return logits


def choose(
    logits: Tensor, *, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> int:
    """One token id from (V,) logits; temperature 0 takes the likeliest and uses no random number."""
    logits = logits.float().cpu()  # drawing on the CPU gives the same tokens on every device
    if temperature == 0:
        return int(logits.argmax())
    probabilities = filter_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p).softmax(-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))


@torch.no_grad()
def generate(
    network: Any,
    prompt_ids: list[int],
    *,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
    stop_id: int | None = None,
    forbidden_ids: tuple[int, ...] = (),
    first_ids: tuple[int, ...] | None = None,
    cache: bool = True,
) -> Iterator[int]:
    """Yield token ids that follow the prompt, until `stop_id` (not yielded) or `max_tokens`; the first of `first_ids`.

    `network` may have `advance(tokens, state)`, without which all of the window is read for each token, and a
    `context_length`; where the text outgrows it, the window is cut to its newer half and read again, with the cache and
    without it alike, so that both give the same tokens.
    """
    assert prompt_ids, "generation needs at least one token to start from"
    device = next(network.parameters()).device
    context_length = getattr(network, "context_length", None)
    window = list(prompt_ids[-context_length:] if context_length else prompt_ids)
    state, unread, advance = None, list(window), getattr(network, "advance", None)
    cache = cache and advance is not None
    for step in range(max_tokens):
        tokens = torch.tensor([unread if cache else window], device=device)
        logits, state = advance(tokens, state if cache else None) if advance else (network(tokens), None)
        scores = logits[0, -1].clone()
        scores[list(forbidden_ids)] = -torch.inf
        if step == 0 and first_ids is not None:
            scores = torch.full_like(scores, -torch.inf).index_copy(0, *_chosen(scores, first_ids))
        token = choose(scores, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        if token == stop_id:
            return
        yield token
        window.append(token)
        unread = [token]
        if context_length and len(window) > context_length:
            window = window[-(context_length // 2) :]
            state, unread = None, list(window)


def _chosen(scores: Tensor, ids: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    index = torch.tensor(ids, device=scores.device)
    return index, scores[index]
