"""The text Transformer: a causal decoder for language modelling, an encoder with pooling for classification.

One file holds the modern default (rotary positions, RMSNorm before each sublayer, QK-norm, relu²), the GPT-2 style
(learned positions, LayerNorm, GELU, tied embeddings) and the classic encoder (sinusoids, LayerNorm after each
sublayer, ReLU); `conf/model/` holds the three as configurations.

Sources: Vaswani et al. 2017 (arXiv:1706.03762); Radford et al. 2019 (GPT-2); Su et al. 2021, rotary positions
(arXiv:2104.09864); Zhang & Sennrich 2019, RMSNorm (arXiv:1910.07467); Henry et al. 2020, QK-norm (arXiv:2010.04245);
So et al. 2021, relu² (arXiv:2109.08668); Shazeer 2020, SwiGLU (arXiv:2002.05202); Ainslie et al. 2023, grouped-query
attention (arXiv:2305.13245). We differ in one detail: output projections start small, not at zero, so that every
parameter receives a gradient from the first step.

Letters: B batch, T time, P past positions, D width, H heads, G key/value heads, V vocabulary, C classes.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quartet import signatures
from quartet.models.dropout import TokenDropout
from quartet.signatures import PositiveInt, Probability

Buffers = tuple[Tensor, Tensor]  # keys and values of the whole context, (B, G, context, D/H) each


class Cache(NamedTuple):
    """What a decoder has read: keys and values of its first `length` positions; the buffers hold nothing behind those."""

    blocks: list[Buffers]
    length: int


class Rotary(nn.Module):
    """Rotary positions: rotate pairs of features by an angle that grows with the position (base 10,000)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_size: int, context_length: int):
        super().__init__()
        rate = 10_000 ** (-torch.arange(0, head_size, 2).float() / head_size)
        angle = torch.outer(torch.arange(context_length).float(), rate)
        self.register_buffer("cos", torch.cat((angle.cos(), angle.cos()), -1), persistent=False)  # (T, D/H)
        self.register_buffer("sin", torch.cat((-angle.sin(), angle.sin()), -1), persistent=False)

    def forward(self, x: Tensor, start: int) -> Tensor:
        """(B, H, T, D/H) at positions start … start + T - 1, rotated; the shape is kept."""
        end = start + x.shape[-2]
        cos, sin = self.cos[start:end].to(x.dtype), self.sin[start:end].to(x.dtype)
        return x * cos + x.roll(x.shape[-1] // 2, -1) * sin  # feature i of both halves is a pair


class Sinusoids(nn.Module):
    """The fixed positions of Vaswani et al., section 3.5."""

    table: Tensor

    def __init__(self, context_length: int, d_model: int):
        super().__init__()
        rate = 10_000 ** (-torch.arange(0, d_model, 2).float() / d_model)
        angle = torch.outer(torch.arange(context_length).float(), rate)
        self.register_buffer("table", torch.stack((angle.sin(), angle.cos()), -1).flatten(1), persistent=False)

    def forward(self, positions: Tensor) -> Tensor:
        """(T,) positions -> (T, D)."""
        return self.table[positions]


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values."""

    def __init__(self, *, d_model, n_heads, n_kv_heads, qk_norm, bias, dropout, causal, rotary, make_norm):
        super().__init__()
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads
        self.dropout, self.causal, self.rotary = dropout, causal, rotary
        head_size = d_model // n_heads
        self.query = nn.Linear(d_model, n_heads * head_size, bias=bias)
        self.key = nn.Linear(d_model, n_kv_heads * head_size, bias=bias)
        self.value = nn.Linear(d_model, n_kv_heads * head_size, bias=bias)
        self.project = nn.Linear(n_heads * head_size, d_model, bias=bias)
        self.query_norm = make_norm(head_size) if qk_norm else nn.Identity()
        self.key_norm = make_norm(head_size) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None, cache: Buffers | None, P: int) -> Tensor:
        """(B, T, D) after P positions in the cache -> (B, T, D); their keys and values are written behind those."""
        B, T = x.shape[:2]

        # 1. split into heads
        q = self.query(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, H, T, D/H)
        k = self.key(x).unflatten(-1, (self.n_kv_heads, -1)).transpose(1, 2)  # (B, G, T, D/H)
        v = self.value(x).unflatten(-1, (self.n_kv_heads, -1)).transpose(1, 2)  # (B, G, T, D/H)
        q, k = self.query_norm(q), self.key_norm(k)
        if self.rotary is not None:
            q, k = self.rotary(q, P), self.rotary(k, P)

        # 2. write into the cache, and read what stands before; several new positions see all of that and the new ones up
        #    to themselves (`is_causal` would align the triangle with the first position)
        if cache is not None:
            keys, values = cache
            keys[:, :, P : P + T], values[:, :, P : P + T] = k, v
            if P:
                k, v = keys[:, :, : P + T], values[:, :, : P + T]  # (B, G, P + T, D/H)
                mask = torch.ones(T, P + T, dtype=torch.bool, device=x.device).tril(P) if T > 1 else None

        # 3. a single new position sees everything; its heads that share keys are read as positions of one head, which
        #    takes less time than enable_gqa does (docs/notes.md)
        if T == 1:
            q = q.reshape(B, self.n_kv_heads, -1, q.shape[-1])  # (B, G, H/G, D/H)

        # 4. attend, and join the heads: (B, H, T, D/H) -> (B, T, D)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal and mask is None and T > 1,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return self.project(y.reshape(B, self.n_heads, T, -1).transpose(1, 2).flatten(2))


_ACTIVATIONS = {"relu2": lambda x: F.relu(x).square(), "relu": F.relu, "gelu": F.gelu}


class FeedForward(nn.Module):
    """Two projections around an activation; SwiGLU multiplies by a third one."""

    def __init__(self, *, d_model, d_ff, activation, bias):
        super().__init__()
        self.activation = activation
        # three matrices with two thirds of the hidden width have as many parameters as two with all of it
        hidden = d_ff if activation != "swiglu" else int(d_ff * 2 / 3)
        self.expand = nn.Linear(d_model, hidden, bias=bias)
        self.gate = nn.Linear(d_model, hidden, bias=bias) if activation == "swiglu" else None
        self.project = nn.Linear(hidden, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.project(F.silu(self.gate(x)) * self.expand(x))
        return self.project(_ACTIVATIONS[self.activation](self.expand(x)))


class Block(nn.Module):
    """Attention, then feed-forward, each with a residual path; the norm stands before (pre) or after (post) it."""

    def __init__(self, *, attention: Attention, feed_forward: FeedForward, make_norm, d_model, dropout, pre_norm):
        super().__init__()
        self.attention, self.feed_forward, self.pre_norm = attention, feed_forward, pre_norm
        self.attention_norm, self.feed_forward_norm = make_norm(d_model), make_norm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Buffers | None, P: int) -> Tensor:
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), mask, cache, P))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, mask, cache, P)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Transformer(nn.Module):
    """Tokens to logits: (B, T) -> (B, T, V) for language modelling, -> (B, C) where `n_classes` is given.

    `vocab_size`, `context_length`, `n_classes` and `pad_id` are facts of the data; the rest is `conf/model`. A
    classifier pools over the positions that are not `pad_id`: "mean", "max", or "first" for the first position alone.

    Raises ValueError where the sizes do not fit each other or a choice is unknown, all problems in one message.
    """

    carries_state = False  # from window to window: its state ends where the context does

    def __init__(
        self,
        *,
        vocab_size: int,
        context_length: int,
        n_classes: int | None = None,
        pad_id: int | None = None,
        n_layers: PositiveInt,
        n_heads: PositiveInt,
        n_kv_heads: PositiveInt | None,
        d_model: PositiveInt,
        d_ff: PositiveInt,
        dropout: Probability,
        token_dropout: Probability,
        positions: Literal["rotary", "learned", "sinusoidal"],
        norm: Literal["rmsnorm", "layernorm"],
        norm_position: Literal["pre", "post"],
        qk_norm: bool,
        feed_forward: Literal["relu2", "relu", "gelu", "swiglu"],
        bias: bool,
        tie_embeddings: bool,
        pooling: Literal["mean", "max", "first"],
    ):
        signatures.check(Transformer, locals())
        super().__init__()
        n_kv_heads = n_kv_heads or n_heads
        self.context_length, self.n_classes, self.pad_id, self.pooling = context_length, n_classes, pad_id, pooling
        self.buffer_shape = n_kv_heads, context_length, d_model // n_heads
        make_norm = nn.RMSNorm if norm == "rmsnorm" else nn.LayerNorm

        # 1. tokens and positions: rotary ones turn queries and keys, the others are added to the embedding
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.embedding_scale = math.sqrt(d_model) if positions == "sinusoidal" else 1.0  # Vaswani et al., section 3.4
        rotary = self.positions = None
        if positions == "rotary":
            rotary = Rotary(d_model // n_heads, context_length)
        elif positions == "learned":
            self.positions = nn.Embedding(context_length, d_model)
        else:
            self.positions = Sinusoids(context_length, d_model)
        self.token_dropout, self.dropout = TokenDropout(token_dropout), nn.Dropout(dropout)

        # 2. blocks, which share one rotary table
        self.blocks = nn.ModuleList(
            Block(
                attention=Attention(
                    d_model=d_model,
                    n_heads=n_heads,
                    n_kv_heads=n_kv_heads,
                    qk_norm=qk_norm,
                    bias=bias,
                    dropout=dropout,
                    causal=n_classes is None,
                    rotary=rotary,
                    make_norm=make_norm,
                ),
                feed_forward=FeedForward(d_model=d_model, d_ff=d_ff, activation=feed_forward, bias=bias),
                make_norm=make_norm,
                d_model=d_model,
                dropout=dropout,
                pre_norm=norm_position == "pre",
            )
            for _ in range(n_layers)
        )

        # 3. the head; blocks that end with a norm need no other before it
        self.norm = make_norm(d_model) if norm_position == "pre" else nn.Identity()
        self.head = nn.Linear(d_model, n_classes or vocab_size, bias=n_classes is not None)
        if tie_embeddings and n_classes is None:
            self.head.weight = self.embedding.weight
        self._initialise(n_layers)

    @staticmethod
    def problems(settings: dict[str, Any]) -> list[str]:
        """Sizes that do not divide each other, and what a classifier needs of the data."""
        problems = []
        width, heads, kv_heads = (settings.get(name) for name in ("d_model", "n_heads", "n_kv_heads"))
        if width and heads and width % heads:
            fitting = [n for n in range(1, 4 * heads + 1) if width % n == 0]
            problems.append(f"model.n_heads={heads} does not divide model.d_model={width}; use one of {fitting}")
        elif width and heads and settings.get("positions") == "rotary" and (width // heads) % 2:
            problems.append(f"rotary positions need an even head size, not {width}/{heads}; change model.n_heads")
        if heads and kv_heads and heads % kv_heads:
            problems.append(f"model.n_kv_heads={kv_heads} does not divide model.n_heads={heads}")
        if width and settings.get("positions") == "sinusoidal" and width % 2:
            problems.append(f"sinusoidal positions need an even width, not model.d_model={width}")
        if settings.get("n_classes") is not None and settings.get("pad_id") is None:
            problems.append("a classifier needs pad_id, the token that fills short texts")
        return problems

    def _initialise(self, n_layers: int) -> None:
        # GPT-2: normal with 0.02, residual projections shrunk by √(2·layers) so that the variance does not grow
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                continue
            residual = name.endswith("project.weight")
            nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * n_layers) if residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, V), or (B, C) for a classifier."""
        if self.n_classes is None:
            return self.head(self._encode(tokens, None, None))

        # a classifier pools over the positions that are not padding; a text of padding only becomes zero
        keep = tokens != self.pad_id  # (B, T)
        x = self._encode(tokens, keep[:, None, None, :], None)  # (B, T, D)
        if self.pooling == "mean":
            weight = keep.unsqueeze(-1).to(x.dtype)  # (B, T, 1)
            x = (x * weight).sum(1) / weight.sum(1).clamp(min=1)
        elif self.pooling == "max":
            lowest = torch.finfo(x.dtype).min
            x = x.masked_fill(~keep.unsqueeze(-1), lowest).amax(1) * keep.any(1, keepdim=True)
        else:
            x = x[:, 0]
        return self.head(x)  # (B, C)

    def advance(self, tokens: Tensor, state: Cache | None) -> tuple[Tensor, Cache]:
        """(B, T) new tokens after those in `state` -> logits (B, T, V) and the state with them.

        Both states share their buffers, whose size is that of the context: a state is advanced once.
        Raises ValueError if the context is full.
        """
        if state is None:
            shape, empty = (len(tokens), *self.buffer_shape), self.embedding.weight.new_empty
            state = Cache([(empty(shape), empty(shape)) for _ in self.blocks], 0)
        length = state.length + tokens.shape[1]
        if length > self.context_length:
            raise ValueError(f"{length} tokens do not fit into a context of {self.context_length}; begin a new state")
        return self.head(self._encode(tokens, None, state)), Cache(state.blocks, length)

    def _encode(self, tokens: Tensor, mask: Tensor | None, state: Cache | None) -> Tensor:
        P = state.length if state else 0
        x = self.token_dropout(self.embedding(tokens) * self.embedding_scale)  # (B, T, D)
        if self.positions is not None:
            x = x + self.positions(torch.arange(P, P + tokens.shape[1], device=tokens.device))  # + (T, D)
        x = self.dropout(x)
        for i, block in enumerate(self.blocks):
            x = block(x, mask, state.blocks[i] if state else None, P)
        return self.norm(x)
