"""Dropout for sequences: the same features at every position, or whole tokens.

Sources: Gal & Ghahramani 2016, one mask per sequence (arXiv:1512.05287); Iyyer et al. 2015, dropping whole words.

Letters: B batch, T time, D width.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn


class _Dropout(nn.Module):
    """(B, T, D) times `mask(x)`, in training only; a probability of 0 draws no random numbers."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask(x) if self.training and self.probability else x

    @abstractmethod
    def mask(self, x: Tensor) -> Tensor: ...


class LockedDropout(_Dropout):
    """The whole sequence loses the same features; the others are scaled up for them."""

    def mask(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(torch.ones_like(x[:, :1]), self.probability)


class TokenDropout(_Dropout):
    """Whole positions are lost, as if those words had not been there: nothing else is scaled up for them."""

    def mask(self, x: Tensor) -> Tensor:
        return torch.rand_like(x[..., :1]) >= self.probability
