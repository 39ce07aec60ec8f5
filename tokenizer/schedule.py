"""The learning rate as a function of the step alone, so that a resumed run agrees."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a step-wise decay (`scheduler_config`).

    Args:
        warm_up_steps: steps from `lr_start` to `lr_max`.
        interval: steps after the warm-up between two decays.
        decay: factor of each decay; 1 keeps the rate.
        lr_start, lr_max, lr_min: multipliers of the base learning rate.
    """

    warm_up_steps: int = 0
    lr_start: float = 0.0
    lr_max: float = 1.0
    lr_min: float = 0.0
    interval: int = 1
    decay: float = 1.0

    def __post_init__(self) -> None:
        for key, least in {"warm_up_steps": 0, "interval": 1}.items():
            if getattr(self, key) < least:
                raise UserError(
                    f"scheduler_config.{key}: found {getattr(self, key)}, expected {least} or more"
                )

    def multiplier(self, step: int) -> float:
        """Of the base learning rate, at the update after `step` others."""
        if step < self.warm_up_steps:
            return self.lr_start + (self.lr_max - self.lr_start) * step / self.warm_up_steps
        decays = (step - self.warm_up_steps) // self.interval
        return max(self.lr_min, self.lr_max * self.decay**decays)
