"""Bricks for tables: embeddings of numeric columns, and layers whose weights an ensemble shares.

Sources: Gorishniy et al. 2022, embeddings for numerical features (arXiv:2203.05556): periodic ("PLR") and piecewise
linear ("Q-LR"); Gorishniy et al. 2024, TabM (arXiv:2410.24210); Wen et al. 2020, BatchEnsemble (arXiv:2002.06715).

Letters: B batch, N numeric columns, F codes of a number, E width of its embedding, k members, D widths.

Frequencies, scales and biases are vectors, one column's or member's after the other's: matrices decay, vectors do not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Periodic(nn.Module):
    """A number as sines and cosines of learnt frequencies, its own for each column: (B, N) -> (B, N, F).

    `scale` is the standard deviation of the frequencies at the start, in periods per unit of the scaled column.
    """

    def __init__(self, n_numeric: int, n_frequencies: int, scale: float):
        super().__init__()
        self.n_codes = 2 * n_frequencies
        self.frequencies = nn.Parameter(torch.empty(n_numeric * n_frequencies))
        nn.init.trunc_normal_(self.frequencies, std=scale, a=-3 * scale, b=3 * scale)

    def forward(self, x: Tensor) -> Tensor:
        angles = 2 * math.pi * self.frequencies.view(x.shape[1], -1) * x.unsqueeze(-1)
        return torch.cat((angles.cos(), angles.sin()), dim=-1)


class PiecewiseLinear(nn.Module):
    """A number as the filled part of each bin between training quantiles: (B, N) -> (B, N, F).

    Bins below the number are 1, those above 0, its own in between; the first and the last continue beyond the training
    values. `quantiles` are N ascending lists of evenly spaced ones; equal edges leave fewer bins, whose codes stay 0.
    """

    lower: Tensor
    width: Tensor
    least: Tensor
    most: Tensor

    def __init__(self, quantiles: list[list[float]], n_bins: int):
        super().__init__()
        self.n_codes = n_bins
        places = torch.linspace(0, len(quantiles[0]) - 1, n_bins + 1).round().long() if quantiles else []
        lower, width = torch.zeros(len(quantiles), n_bins), torch.full((len(quantiles), n_bins), math.inf)
        least, most = torch.zeros_like(lower), torch.ones_like(lower)
        for i, column in enumerate(quantiles):
            edges = torch.tensor(column)[places].unique()
            n = len(edges) - 1
            lower[i, :n], width[i, :n] = edges[:-1], edges.diff()
            if n:
                least[i, 0], most[i, n - 1] = -math.inf, math.inf
        for name, values in {"lower": lower, "width": width, "least": least, "most": most}.items():
            self.register_buffer(name, values, persistent=False)  # facts of the data, in the run's preprocessing

    def forward(self, x: Tensor) -> Tensor:
        filled = (x.unsqueeze(-1) - self.lower) / self.width
        return filled.clamp(self.least, self.most)


class NumericEmbedding(nn.Module):
    """Codes of each number through a linear layer of its column and ReLU: (B, N) -> (B, N · E)."""

    def __init__(self, code: Periodic | PiecewiseLinear, n_numeric: int, d_numeric: int):
        super().__init__()
        self.code = code
        bound = code.n_codes**-0.5
        self.weight = nn.Parameter(torch.empty(n_numeric, code.n_codes, d_numeric).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_numeric * d_numeric).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        embedded = torch.einsum("bnf,nfe->bne", self.code(x), self.weight)
        return (embedded.flatten(1) + self.bias).relu()


class MemberLinear(nn.Module):
    """One weight for k members, each with its own scales of inputs and outputs and its own bias: (B, k, D) -> (B, k, D').

    All scales start at 1; `spread` starts those of the inputs at random signs, which is what makes the members differ:
    the first layer of TabM. The weight is initialised from outside.
    """

    def __init__(self, d_in: int, d_out: int, k: int, *, spread: bool):
        super().__init__()
        self.k = k
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.zeros(k * d_out))
        signs = torch.randint(2, (k * d_in,)) * 2.0 - 1
        self.scale_in = nn.Parameter(signs if spread else torch.ones(k * d_in))
        self.scale_out = nn.Parameter(torch.ones(k * d_out))

    def forward(self, x: Tensor) -> Tensor:
        shared = (x * self.scale_in.view(self.k, -1)) @ self.weight.T
        return shared * self.scale_out.view(self.k, -1) + self.bias.view(self.k, -1)


class MemberHeads(nn.Module):
    """A linear layer for each member, nothing shared: (B, k, D) -> (B, k, D')."""

    def __init__(self, d_in: int, d_out: int, k: int):
        super().__init__()
        self.k = k
        self.weight = nn.Parameter(torch.empty(k, d_in, d_out))
        self.bias = nn.Parameter(torch.empty(k * d_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bkd,kdc->bkc", x, self.weight) + self.bias.view(self.k, -1)


class MemberBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over samples and members together: (B, k, D) -> (B, k, D)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(0, 1)).view_as(input)
