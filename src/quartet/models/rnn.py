"""The recurrent text network: LSTM, GRU or a plain RNN, for language modelling with carried state or classification.

Sources: Hochreiter & Schmidhuber 1997, LSTM; Cho et al. 2014, GRU (arXiv:1406.1078); Gal & Ghahramani 2016, dropout
with one mask per sequence (arXiv:1512.05287); Merity et al. 2017, AWD-LSTM (arXiv:1708.02182); Press & Wolf 2017, tied
embeddings (arXiv:1608.05859); Jozefowicz et al. 2015, forget-gate bias 1; Saxe et al. 2014, orthogonal recurrent
weights (arXiv:1312.6120). We differ from Gal & Ghahramani in one detail: no mask inside the recurrence, which the fused
kernels do not offer; every layer is one fused call so that the mask can stand between layers.

Letters: B batch, T time, E embedding width, H hidden width, R directions (1 or 2), V vocabulary, C classes.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from quartet import signatures
from quartet.models.dropout import LockedDropout, TokenDropout
from quartet.signatures import PositiveInt, Probability

State = list[Any]  # of every layer: hidden state (1, B, H), for lstm the pair (hidden, cell)

_CELLS = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "rnn_tanh": (nn.RNN, {"nonlinearity": "tanh"}),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
}


class Layer(nn.Module):
    """One recurrent layer, optionally with a second one that reads every text backwards from its own end."""

    def __init__(self, *, cell: str, d_in: int, d_hidden: int, bidirectional: bool):
        super().__init__()
        make, options = _CELLS[cell]
        self.ahead = make(d_in, d_hidden, batch_first=True, **options)
        self.back = make(d_in, d_hidden, batch_first=True, **options) if bidirectional else None

    def forward(self, x: Tensor, state: Any, turned: Tensor | None) -> tuple[Tensor, Any]:
        """(B, T, D), the state before it, and where to find each position in a turned text -> (B, T, R·H), state."""
        y, state = self.ahead(x, state)  # (B, T, H)
        if self.back is None or turned is None:
            return y, state

        # turn each text, read it, and turn what was read, so that both directions stand at their position
        turned = turned.unsqueeze(-1)  # (B, T, 1)
        y_back, _ = self.back(x.gather(1, turned.expand_as(x)))
        return torch.cat((y, y_back.gather(1, turned.expand_as(y_back))), dim=-1), state


def turned_positions(lengths: Tensor, n_positions: int) -> Tensor:
    """(B,) lengths -> (B, T): L-1 … 0 within each text, its padding left where it stands; turning twice is identity."""
    position = torch.arange(n_positions, device=lengths.device).expand(lengths.shape[0], n_positions)
    last = lengths.unsqueeze(1) - 1
    return torch.where(position <= last, last - position, position)


class RNN(nn.Module):
    """Tokens to logits: (B, T) -> (B, T, V) for language modelling, -> (B, C) where `n_classes` is given.

    `vocab_size`, `context_length`, `n_classes` and `pad_id` are facts of the data; the rest is `conf/model`.
    `d_embedding` None means `d_hidden`. A classifier pools its states over the positions before the padding, which
    stands at the end; an empty text counts as one pad token.

    Raises ValueError where a choice is unknown or does not fit the task, all problems in one message.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        context_length: int,
        n_classes: int | None = None,
        pad_id: int | None = None,
        cell: Literal["lstm", "gru", "rnn_tanh", "rnn_relu"],
        n_layers: PositiveInt,
        d_embedding: PositiveInt | None,
        d_hidden: PositiveInt,
        dropout: Probability,
        token_dropout: Probability,
        tie_embeddings: bool,
        bidirectional: bool,
        pooling: Literal["mean", "max", "last"],
    ):
        signatures.check(RNN, locals())
        super().__init__()
        self.context_length, self.n_classes, self.pad_id = context_length, n_classes, pad_id
        self.pooling, self.bidirectional = pooling, bidirectional
        d_embedding, d_out = d_embedding or d_hidden, d_hidden * (1 + bidirectional)

        # 1. embedding and recurrent layers
        self.embedding = nn.Embedding(vocab_size, d_embedding)
        self.token_dropout, self.dropout = TokenDropout(token_dropout), LockedDropout(dropout)
        self.layers = nn.ModuleList(
            Layer(cell=cell, d_in=d_out if i else d_embedding, d_hidden=d_hidden, bidirectional=bidirectional)
            for i in range(n_layers)
        )

        # 2. the head; tied, it reads the embedding's width, which a projection restores where the layers have another
        tied = tie_embeddings and n_classes is None
        project = nn.Linear(d_out, d_embedding, bias=False) if tied and d_out != d_embedding else None
        last = nn.Linear(d_embedding if tied else d_out, n_classes or vocab_size)
        if tied:
            last.weight = self.embedding.weight
        self._initialise(last)
        self.head = last if project is None else nn.Sequential(project, last)

    @staticmethod
    def problems(settings: dict[str, Any]) -> list[str]:
        """What contradicts the task, which the constructor learns from the data."""
        problems = []
        if "n_classes" in settings and settings["n_classes"] is None and settings.get("bidirectional"):
            problems.append("model.bidirectional=true reads what it must predict; language modelling needs false")
        if settings.get("n_classes") is not None and settings.get("pad_id") is None:
            problems.append("a classifier needs pad_id, the token that fills short texts")
        return problems

    def _initialise(self, last: nn.Linear) -> None:
        # embedding and head with variance 1/width (a classifier's head less): the loss starts near ln(V) or ln(C), and
        # the cells read unit variance; the usual ±0.1 (AWD-LSTM) starves them: 2.92 instead of 2.16 nats after 150
        # steps of an LSTM on bytes
        nn.init.normal_(last.weight, std=last.in_features**-0.5 if self.n_classes is None else 0.02)
        nn.init.normal_(self.embedding.weight, std=self.embedding.embedding_dim**-0.5)
        nn.init.zeros_(last.bias)

        for cell in self.layers.modules():
            if not isinstance(cell, nn.RNNBase):
                continue
            # per gate: Xavier input weights, orthogonal recurrent weights, zero biases
            for name, parameter in cell.named_parameters():
                if name.startswith("bias"):
                    nn.init.zeros_(parameter)
                    continue
                initialise = nn.init.xavier_uniform_ if name.startswith("weight_ih") else nn.init.orthogonal_
                for gate in parameter.detach().split(cell.hidden_size):  # views of the weights, (H, ·) each
                    initialise(gate)
            # the LSTM's forget gate starts at 1; torch's order of gates is input, forget, cell, output
            if isinstance(cell, nn.LSTM):
                nn.init.ones_(cell.get_parameter("bias_ih_l0").detach()[cell.hidden_size : 2 * cell.hidden_size])

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, V), or (B, C) for a classifier."""
        if self.n_classes is None:
            return self.advance(tokens, None)[0]

        # 1. the states at every position, in one or both directions
        lengths = (tokens != self.pad_id).sum(1).clamp(min=1)  # (B,)
        x, _ = self._encode(tokens, None, turned_positions(lengths, tokens.shape[1]))  # (B, T, R·H)

        # 2. pooled over the positions before the padding; "last" is the final state of each direction
        keep = (torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1)).unsqueeze(-1)  # (B, T, 1)
        if self.pooling == "mean":
            x = (x * keep).sum(1) / lengths.unsqueeze(1).to(x.dtype)
        elif self.pooling == "max":
            x = x.masked_fill(~keep, float("-inf")).amax(1)
        else:
            last = x.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, x.shape[2])).squeeze(1)  # (B, R·H)
            half = x.shape[2] // 2
            x = torch.cat((last[:, :half], x[:, 0, half:]), dim=-1) if self.bidirectional else last
        return self.head(x)  # (B, C)

    def advance(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """(B, T) new tokens after those in `state` -> logits (B, T, V) and the state after them."""
        x, state = self._encode(tokens, state, None)
        return self.head(x), state

    def _encode(self, tokens: Tensor, state: State | None, turned: Tensor | None) -> tuple[Tensor, State]:
        # the scale makes the variance 1 at the start
        x = self.embedding(tokens) * self.embedding.embedding_dim**0.5  # (B, T, E)
        x = self.dropout(self.token_dropout(x))
        after = []
        for i, layer in enumerate(self.layers):
            x, layer_state = layer(x, state[i] if state else None, turned)
            x = self.dropout(x)
            after.append(layer_state)
        return x, after
