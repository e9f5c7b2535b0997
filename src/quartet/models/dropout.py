"""Dropout for sequences: the same features at every position, or whole tokens.

Sources: Gal & Ghahramani 2016, one mask per sequence (arXiv:1512.05287); Iyyer et al. 2015, dropping whole words.

Letters: B batch, T time, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LockedDropout(nn.Module):
    """Dropout with one mask for the whole sequence: (B, T, D) loses the same features at every position."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        return x * nn.functional.dropout(torch.ones_like(x[:, :1]), self.probability)


class TokenDropout(nn.Module):
    """(B, T, D) loses whole positions, as if those words had not been there: nothing else is scaled up for them."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        return x * (torch.rand_like(x[..., :1]) >= self.probability)
