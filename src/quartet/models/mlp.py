"""The tabular MLP: scaled numeric columns and embedded categorical columns through fully connected layers.

Sources: Gorishniy et al. 2021, a plain MLP is a strong baseline for tables (arXiv:2106.11959); Guo & Berkhahn 2016,
entity embeddings (arXiv:1604.06737); Howard & Gugger 2020, fastai's rule for their width (arXiv:2002.04688); He et al.
2015, kaiming initialisation (arXiv:1502.01852); Glorot & Bengio 2010, xavier.

Letters: B batch, N numeric columns, K categorical columns, D width, C outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quartet.models.checks import bad_dropout, is_int, raise_if, too_small, unknown_choices

_ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
_NORMALIZATIONS = {"none": lambda width: nn.Identity(), "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
_INITIALIZATIONS = {
    "xavier": nn.init.xavier_uniform_,  # keeps the variance in both directions; for tanh, sigmoid
    "kaiming": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),  # for relu and its relatives
    "normal": lambda weight: nn.init.normal_(weight, std=0.05),  # a fixed scale, whatever the width
}
_CHOICES = {"activation": _ACTIVATIONS, "normalization": _NORMALIZATIONS, "initialization": _INITIALIZATIONS}


def embedding_width(cardinality: int, max_width: int) -> int:
    """fastai's rule of thumb: 1.6 · cardinality^0.56, at least 1, at most `max_width`."""
    return max(1, min(max_width, round(1.6 * cardinality**0.56)))


class MLP(nn.Module):
    """A row of a table to logits or a standardised target: (B, N) and (B, K) -> (B, C).

    `n_numeric`, `cardinalities` (values of each categorical column, slot 0 for unseen and missing ones) and `n_outputs`
    are facts of the data; the rest is `conf/model`. No hidden layer (`hidden: []`) is linear or logistic regression.

    Raises ValueError where a choice is unknown, a size not positive or no column left, all problems in one message.
    """

    def __init__(
        self,
        *,
        n_numeric: int,
        cardinalities: list[int],
        n_outputs: int,
        hidden: list[int],
        activation: str,
        normalization: str,
        dropout: float,
        max_embedding: int,
        initialization: str,
    ):
        super().__init__()
        problems = self.problems({name: value for name, value in locals().items() if name != "self"})
        if n_numeric + len(cardinalities) == 0:
            problems.append("the table has no column besides the target; bring one numeric or categorical column")
        raise_if(problems)
        self.embeddings = nn.ModuleList(nn.Embedding(n, embedding_width(n, max_embedding)) for n in cardinalities)
        width = n_numeric + sum(embedding_width(n, max_embedding) for n in cardinalities)
        self.layers = nn.Sequential()
        for d_hidden in hidden:
            self.layers.append(_layer(width, d_hidden, activation, normalization, dropout))
            width = d_hidden
        self.head = nn.Linear(width, n_outputs)
        self._initialise(_INITIALIZATIONS[initialization])

    @staticmethod
    def problems(settings: dict[str, Any]) -> list[str]:
        """What is wrong with these `conf/model` values, one sentence each; keys may be missing."""
        problems = unknown_choices(settings, _CHOICES)
        problems += too_small(settings, ("max_embedding",)) + bad_dropout(settings)
        hidden = settings.get("hidden")
        if isinstance(hidden, list | tuple) and any(is_int(width) and width < 1 for width in hidden):
            problems.append(f"model.hidden={list(hidden)} must hold widths of 1 or more")
        return problems

    def _initialise(self, initialise_weight) -> None:
        """Hidden layers by name; head near zero, so that the loss starts at ln(classes); unseen values add nothing."""
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                initialise_weight(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        for embedding in self.embeddings:  # normal with 1, like a standardised numeric column
            nn.init.zeros_(embedding.get_parameter("weight").detach()[0])

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """(B, N) scaled and (B, K) codes -> (B, C)."""
        embedded = [embedding(categorical[:, i]) for i, embedding in enumerate(self.embeddings)]
        return self.head(self.layers(torch.cat((numeric, *embedded), dim=1)))


def _layer(width: int, d_hidden: int, activation: str, normalization: str, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, d_hidden),
        _NORMALIZATIONS[normalization](d_hidden),
        _ACTIVATIONS[activation](),
        nn.Dropout(dropout),
    )
