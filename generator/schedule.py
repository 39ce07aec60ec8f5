"""The learning rate by fractional epoch: linear warm-up, then constant or cosine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """The rate as a function of the epoch alone, so that a resumed run agrees.

    Args:
        lr: rate after the warm-up.
        epochs: when the cosine ends.
        warmup_epochs: epochs from 0 to `lr`.
        min_lr: where the cosine ends.
        kind: `constant` or `cosine`.
    """

    lr: float
    epochs: float
    warmup_epochs: float = 0.0
    min_lr: float = 0.0
    kind: str = "constant"

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "cosine"):
            raise UserError(f"--lr_schedule: found {self.kind!r}, expected constant or cosine")

    def rate(self, epoch: float) -> float:
        """The rate after `epoch` epochs, a fraction in the middle of one."""
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        if self.kind == "constant":
            return self.lr
        done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1e-9)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1)))
