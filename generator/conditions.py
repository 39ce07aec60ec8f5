"""Conditions: what an image is to show, as one vector that the transformer reads.

Shapes: B batch, D width.
"""

import torch
from torch import Tensor, nn

from common.errors import UserError


class ClassCondition(nn.Module):
    """Class labels 0 … classes − 1; the label `classes` is the null condition."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.classes = classes
        self.embedding = nn.Embedding(classes, width)
        self.unconditional = nn.Parameter(torch.zeros(1, width))

    def forward(self, labels: Tensor) -> Tensor:
        """Labels [B], null ones among them or not → vectors [B, D]."""
        return torch.cat([self.embedding.weight, self.unconditional])[labels]

    def null(self, labels: Tensor) -> Tensor:
        """As many null conditions, the unconditional branch of guidance."""
        return torch.full_like(labels, self.classes)

    def drop(self, labels: Tensor, dropped: Tensor) -> Tensor:
        """Labels [B], null where `dropped` [B] is true."""
        return torch.where(dropped, self.classes, labels)

    def check(self, labels: Tensor) -> None:
        """Refuse labels that are no class, and none at all."""
        if not len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            found = sorted(set(labels.tolist()))
            raise UserError(f"class labels: found {found}, expected some of 0 … {self.classes - 1}")
