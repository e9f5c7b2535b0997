"""The tabular MLP: scaled numeric columns and embedded categorical columns through fully connected layers.

Sources: Gorishniy et al. 2021, a plain MLP is a strong baseline for tables (arXiv:2106.11959); Guo & Berkhahn 2016,
entity embeddings (arXiv:1604.06737); Howard & Gugger 2020, fastai's rule for their width (arXiv:2002.04688); He et al.
2015, kaiming initialisation (arXiv:1502.01852); Glorot & Bengio 2010, xavier; those of `tabular`.

Letters: B batch, N numeric columns, K categorical columns, D width, k members, C outputs.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from quartet import signatures
from quartet.models.tabular import (
    MemberBatchNorm,
    MemberHeads,
    MemberLinear,
    NumericEmbedding,
    Periodic,
    PiecewiseLinear,
)
from quartet.signatures import PositiveFloat, PositiveInt, Probability, Rule

# the names that `conf/model` may give
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
MAX_BINS = 64  # the data's quantiles have no room for more
Bins = Annotated[int, Rule(f"an integer from 1 to {MAX_BINS}", lambda n: 1 <= n <= MAX_BINS)]


def embedding_width(cardinality: int, max_width: int) -> int:
    """fastai's rule of thumb: 1.6 · cardinality^0.56, at least 1, at most `max_width`."""
    return max(1, min(max_width, round(1.6 * cardinality**0.56)))


class MLP(nn.Module):
    """A row of a table to logits or a standardised target: (B, N) and (B, K) -> (B, C).

    `n_numeric`, `quantiles` (65 for each numeric column, scaled), `cardinalities` (values of each categorical column,
    slot 0 for unseen and missing ones) and `n_outputs` are facts of the data; the rest is `conf/model`. No hidden layer
    (`hidden: []`) is linear or logistic regression.

    With `ensemble` k > 1 there are k members with shared weights (TabM). In training mode the outputs are (B, k, C), one
    for each member, so that each has a loss of its own; otherwise they are (B, C): the logarithm of the mean of the
    members' softmax probabilities, or the mean of their numbers where C is 1.

    Raises ValueError where a choice is unknown, a size not positive or no column left, all problems in one message.
    """

    def __init__(
        self,
        *,
        n_numeric: int,
        quantiles: list[list[float]],
        cardinalities: list[int],
        n_outputs: int,
        hidden: list[PositiveInt],
        activation: Literal["relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "tanh", "sigmoid"],
        normalization: Literal["none", "batch", "layer"],
        dropout: Probability,
        max_embedding: PositiveInt,
        initialization: Literal["kaiming", "xavier", "normal"],
        numeric_embedding: Literal["none", "periodic", "piecewise_linear"],
        d_numeric: PositiveInt,
        n_frequencies: PositiveInt,
        frequency_scale: PositiveFloat,
        n_bins: Bins,
        ensemble: PositiveInt,
    ):
        signatures.check(MLP, locals())
        super().__init__()
        self.n_members = ensemble
        members = ensemble > 1

        # 1. a vector for each column: of categorical ones always, of numeric ones if asked for
        self.embeddings = nn.ModuleList(nn.Embedding(n, embedding_width(n, max_embedding)) for n in cardinalities)
        self.numeric = nn.Identity()
        if numeric_embedding != "none" and n_numeric:
            if numeric_embedding == "periodic":
                code = Periodic(n_numeric, n_frequencies, frequency_scale)
            else:
                code = PiecewiseLinear(quantiles, n_bins)
            self.numeric = NumericEmbedding(code, n_numeric, d_numeric)
        width = n_numeric * (1 if isinstance(self.numeric, nn.Identity) else d_numeric)
        width += sum(embedding_width(n, max_embedding) for n in cardinalities)

        # 2. hidden layers; members of an ensemble share the weights and differ from the first layer on
        normalise = MemberBatchNorm if members and normalization == "batch" else _NORMALIZATIONS[normalization]
        self.layers = nn.Sequential()
        for i, d_hidden in enumerate(hidden):
            linear = MemberLinear(width, d_hidden, ensemble, spread=i == 0) if members else nn.Linear(width, d_hidden)
            # a module that does nothing still costs a call in each step
            parts = [
                linear,
                normalise(d_hidden),
                _ACTIVATIONS[activation](),
                *([nn.Dropout(dropout)] if dropout else []),
            ]
            self.layers.append(nn.Sequential(*(part for part in parts if not isinstance(part, nn.Identity))))
            width = d_hidden

        # 3. the head; each member has its own
        self.head = MemberHeads(width, n_outputs, ensemble) if members else nn.Linear(width, n_outputs)
        self._initialise(_INITIALIZATIONS[initialization])

    @staticmethod
    def problems(settings: dict[str, Any]) -> list[str]:
        """A table has to have columns, which the constructor learns from the data."""
        if settings.get("n_numeric") == 0 and not settings.get("cardinalities"):
            return ["the table has no column besides the target; add a numeric or categorical column"]
        return []

    def _initialise(self, initialise_weight) -> None:
        for module in self.layers.modules():
            if isinstance(module, nn.Linear | MemberLinear):
                initialise_weight(module.weight)
                nn.init.zeros_(module.bias)
        # near zero, so that the loss starts at ln(classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        # torch's normal with 1, like a standardised numeric column; unseen values add nothing
        for embedding in self.embeddings:
            nn.init.zeros_(embedding.get_parameter("weight").detach()[0])

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        """(B, N) scaled and (B, K) codes -> (B, C), or (B, k, C) from an ensemble in training."""
        embedded = [embedding(categorical[:, i]) for i, embedding in enumerate(self.embeddings)]
        x = self.numeric(numeric)
        if embedded:
            x = torch.cat((x, *embedded), dim=1)  # (B, D)
        if self.n_members == 1:
            return self.head(self.layers(x))

        # every member reads the same row
        x = x.unsqueeze(1).expand(-1, self.n_members, -1)  # (B, k, D)
        x = self.head(self.layers(x))  # (B, k, C)
        if self.training:
            return x
        # the members' prediction: the mean of their numbers, or the logarithm of the mean of their probabilities
        if x.shape[-1] == 1:
            return x.mean(1)
        return x.log_softmax(-1).logsumexp(1) - math.log(self.n_members)
