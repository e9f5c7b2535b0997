"""Dropout for sequences: the same features at every position, or whole tokens.

Sources: Gal & Ghahramani 2016, one mask per sequence (arXiv:1512.05287); Iyyer et al. 2015, dropping whole words.

Letters: B batch, T time, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LockedDropout(nn.Dropout):
    """(B, T, D): the whole sequence loses the same features; the others are scaled up for them."""

    def forward(self, x: Tensor) -> Tensor:
        # a probability of 0 draws no random numbers
        if not self.training or not self.p:
            return x
        return x * F.dropout(torch.ones_like(x[:, :1]), self.p)  # (B, T, D) * (B, 1, D)


class TokenDropout(nn.Dropout):
    """(B, T, D): whole positions are lost, as if those words had not been there; nothing is scaled up for them."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        return x * (torch.rand_like(x[..., :1]) >= self.p)  # (B, T, D) * (B, T, 1)
